"""GLU and chunk convolution, beside the public way: unfold chunks with their past, convolve each as an utterance.

B batch, T frames, C frames of a chunk, D channels, k taps; x is (B, T, 2D).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sumix_kernels import chunk_conv1d
from sumix_kernels.bench.registry import (
    Benchmark,
    Contender,
    Inputs,
    Shape,
    Work,
    compiled_contender,
    grown,
    make_lengths,
    random_tensors,
    triton_contender,
)
from sumix_kernels.chunk_conv import naive

_WRT = ("x", "weight", "bias")


def _make(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    B, T, D, k = (shape[letter] for letter in "BTDk")
    tensors = random_tensors(dtype, device, x=(B, T, 2 * D), weight=(D, k), bias=(D,))
    tensors["weight"] *= k**-0.5
    return tensors | {"lengths": make_lengths(shape, device)}


def _ours(backend: str):
    def run(inputs: Inputs, shape: Shape) -> Tensor:
        x, weight, bias, lengths = (inputs[name] for name in (*_WRT, "lengths"))
        return chunk_conv1d(x, weight, bias, lengths, shape["C"], glu=True, backend=backend)

    return run


def _unfolded(inputs: Inputs, shape: Shape) -> Tensor:
    """Each chunk is copied with the k//2 frames before it and zeros after it, and becomes an utterance of a batch."""
    B, T, D, C, half = shape["B"], shape["T"], shape["D"], shape["C"], shape["k"] // 2
    padding = (torch.arange(T, device=inputs["x"].device) >= inputs["lengths"][:, None])[:, None]
    frames = F.glu(inputs["x"]).transpose(1, 2).masked_fill(padding, 0)  # (B, D, T)
    num_chunks = -(-T // C)
    frames = F.pad(frames, (half, num_chunks * C - T))
    chunks = frames.unfold(2, half + C, C).transpose(1, 2).reshape(B * num_chunks, D, half + C)
    y = F.conv1d(F.pad(chunks, (0, half)), inputs["weight"][:, None], inputs["bias"], groups=D)  # (B * N, D, C)
    y = y.view(B, num_chunks, D, C).permute(0, 1, 3, 2).reshape(B, num_chunks * C, D)[:, :T]
    return y.masked_fill(padding.transpose(1, 2), 0)


def _reference(inputs: Inputs, shape: Shape) -> Tensor:
    weight, bias, lengths = (inputs[name] for name in ("weight", "bias", "lengths"))
    return naive.chunk_conv1d(F.glu(inputs["x"]), weight, bias, lengths, shape["C"])


def _work(shape: Shape, itemsize: int) -> dict[str, Work]:
    """x (2D a frame) read, y written; backwards x and y's gradient read, x's written. A multiply-add for each tap."""
    values = shape["B"] * shape["T"] * shape["D"]
    flops = 2 * shape["k"] * values
    return {
        "forward": Work(3 * itemsize * values, flops),
        "forward+backward": Work((3 + 5) * itemsize * values, 3 * flops),
    }


def _unfolded_bytes(shape: Shape, itemsize: int) -> int:
    num_chunks = -(-shape["T"] // shape["C"])
    return 2 * itemsize * shape["B"] * num_chunks * shape["D"] * (shape["C"] + 2 * (shape["k"] // 2))


_REST = {"D": 512, "k": 31, "C": 8}

BENCHMARK = Benchmark(
    name="chunk_conv1d",
    source=__name__,
    shapes={
        "cpu": grown(4096, **_REST)[::2],
        "cuda": ({"B": 32, "T": 1500, **_REST}, *grown(65536, **_REST)[::2]),
    },
    dtypes={"cpu": ("fp32",), "cuda": ("bf16",)},
    gate_shape={"B": 2, "T": 45, "D": 6, "k": 31, "C": 8, "shortest": 12},
    make=_make,
    work=_work,
    # GLU's result is rounded before the convolution where the two are not fused.
    tolerance={"fp32": (1e-5, 3e-6), "fp16": (3e-3, 1.2e-3), "bf16": (2e-2, 8e-3)},
    contenders=(
        triton_contender(_ours("triton"), _reference, _WRT),
        Contender("torch", _ours("torch"), _reference, _WRT, baseline=True, ours=True),
        compiled_contender(_ours("torch"), _reference, _WRT),
        Contender("unfold + conv1d", _unfolded, _reference, _WRT, working_bytes=_unfolded_bytes, baseline=True),
    ),
    about="GLU, then the depthwise convolution whose future ends with the chunk.",
)
