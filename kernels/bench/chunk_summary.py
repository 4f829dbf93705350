"""`chunk_summary` beside what it replaces: the product of x with a (T, T) matrix of weights."""

import torch
from torch import Tensor

from sumix_kernels import broadcast_chunks, chunk_summary
from sumix_kernels.bench.registry import Benchmark, Contender, Shape
from sumix_kernels.chunk_summary import naive


def _rows(x: Tensor, lengths: Tensor, shape: Shape) -> Tensor:
    return chunk_summary(x, lengths, shape["C"], shape["L"], backend="torch")


def _frames(x: Tensor, lengths: Tensor, shape: Shape) -> Tensor:
    return broadcast_chunks(_rows(x, lengths, shape), shape["C"], shape["T"], backend="torch")


def _masked_product(x: Tensor, lengths: Tensor, shape: Shape) -> Tensor:
    """Mean over the frames that each frame sees, by a matrix with one weight for every pair of frames."""
    time = torch.arange(shape["T"], device=x.device)
    end = (time // shape["C"] + 1) * shape["C"]
    begin = end - (shape["L"] + 1) * shape["C"]
    sees = (time >= begin[:, None]) & (time < torch.minimum(end, lengths[:, None])[:, :, None])  # (B, T, T)
    weights = sees.to(x.dtype)
    weights /= weights.sum(2, keepdim=True).clamp_(min=1)
    return weights @ x


def _reference_rows(x: Tensor, lengths: Tensor, shape: Shape) -> Tensor:
    return naive.chunk_summary(x, lengths, shape["C"], shape["L"])


def _reference_frames(x: Tensor, lengths: Tensor, shape: Shape) -> Tensor:
    return naive.broadcast_chunks(_reference_rows(x, lengths, shape), shape["C"], shape["T"])


def _matrix_bytes(shape: Shape) -> int:
    return (1 + 4) * shape["B"] * shape["T"] ** 2  # mask, weights


BENCHMARK = Benchmark(
    op="chunk_summary",
    shapes=tuple({"B": 1, "T": 1024 * 2**i, "D": 512, "C": 16, "L": 4} for i in range(8)),
    gate_shape={"B": 3, "T": 1000, "D": 4, "C": 16, "L": 4},
    contenders=(
        Contender("chunk_summary, torch", _rows, _reference_rows),
        Contender("chunk_summary + broadcast_chunks, torch", _frames, _reference_frames),
        Contender("masked (T, T) product", _masked_product, _reference_frames, _matrix_bytes),
    ),
)
