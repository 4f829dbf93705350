"""`chunk_decay_mean` beside the product with a (T, T) matrix of weights."""

import torch
from torch import Tensor

from sumix_kernels import chunk_decay_mean
from sumix_kernels.bench.chunk_summary import make, sees
from sumix_kernels.bench.registry import (
    Benchmark,
    Contender,
    Inputs,
    Shape,
    Work,
    compiled_contender,
    grown,
    triton_contender,
)
from sumix_kernels.chunk_decay import naive

DECAY = 0.995


def _ours(backend: str):
    def run(inputs: Inputs, shape: Shape) -> Tensor:
        x, lengths = inputs["x"], inputs["lengths"]
        return chunk_decay_mean(x, lengths, shape["C"], shape["L"], DECAY, backend=backend)

    return run


def _prepare_matrix(inputs: Inputs, shape: Shape) -> Inputs:
    x = inputs["x"]
    time = torch.arange(shape["T"], device=x.device, dtype=torch.float32)
    weights = DECAY ** (time[:, None] - time).abs_() * sees(shape, x.device)
    valid = (time < inputs["lengths"][:, None])[:, :, None]
    totals = (weights @ valid.float()).where(valid, 1)
    return {"matrix": weights.to(x.dtype), "valid": valid, "totals": totals}


def _matrix_product(inputs: Inputs, shape: Shape) -> Tensor:
    x, valid = inputs["x"], inputs["valid"]
    return (inputs["matrix"] @ x.masked_fill(~valid, 0) / inputs["totals"]).masked_fill(~valid, 0).to(x.dtype)


def _reference(inputs: Inputs, shape: Shape) -> Tensor:
    return naive.chunk_decay_mean(inputs["x"], inputs["lengths"], shape["C"], shape["L"], DECAY)


def _work(shape: Shape, itemsize: int) -> dict[str, Work]:
    """x read, y written; and the same backwards. A scan's multiply-add in each direction of time, and a division."""
    values = shape["B"] * shape["T"] * shape["D"]
    num_bytes, flops = 2 * itemsize * values, 5 * values
    return {"forward": Work(num_bytes, flops), "forward+backward": Work(2 * num_bytes, 2 * flops)}


_REST = {"D": 512, "C": 16, "L": 4}

BENCHMARK = Benchmark(
    name="chunk_decay_mean",
    source=__name__,
    shapes={
        "cpu": grown(4096, **_REST)[::2],
        "cuda": ({"B": 32, "T": 1500, **_REST}, *grown(65536, **_REST)[::2]),
    },
    dtypes={"cpu": ("fp32",), "cuda": ("bf16",)},
    gate_shape={"B": 3, "T": 75, "D": 6, "C": 16, "L": 1, "shortest": 20},
    make=make,
    work=_work,
    contenders=(
        triton_contender(_ours("triton"), _reference, ("x",)),
        Contender("torch", _ours("torch"), _reference, ("x",), baseline=True, ours=True),
        compiled_contender(_ours("torch"), _reference, ("x",)),
        Contender(
            "(T, T) product",
            _matrix_product,
            _reference,
            ("x",),
            prepare=_prepare_matrix,
            working_bytes=lambda shape, itemsize: 24 * shape["T"] ** 2,  # distances and who sees whom, while it is made
            baseline=True,
        ),
    ),
    about=f"Weights {DECAY} to the power of the distance. The (T, T) matrix is made once a batch, untimed.",
)
