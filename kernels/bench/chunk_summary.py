"""`chunk_summary` beside what it replaces: the product of x with a (T, T) matrix that says who sees whom."""

import torch
from torch import Tensor

from sumix_kernels import broadcast_chunks, chunk_summary
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
from sumix_kernels.chunk_summary import naive


def make(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    x = random_tensors(dtype, device, x=(shape["B"], shape["T"], shape["D"]))
    return x | {"lengths": make_lengths(shape, device)}


def _rows(backend: str):
    def run(inputs: Inputs, shape: Shape) -> Tensor:
        return chunk_summary(inputs["x"], inputs["lengths"], shape["C"], shape["L"], backend=backend)

    return run


def _frames(inputs: Inputs, shape: Shape) -> Tensor:
    return broadcast_chunks(_rows("torch")(inputs, shape), shape["C"], shape["T"], backend="torch")


def sees(shape: Shape, device: torch.device) -> Tensor:
    """(T, T) bool: whether frame t (row) sees frame u of an utterance without padding."""
    chunk = torch.arange(shape["T"], device=device) // shape["C"]
    behind = chunk[:, None] - chunk
    return (behind >= 0) & (behind <= shape["L"])


def prepare_matrix(inputs: Inputs, shape: Shape) -> Inputs:
    x = inputs["x"]
    matrix = x.new_zeros(shape["T"], shape["T"])
    for begin in range(0, shape["T"], shape["C"]):  # a chunk at a time: at 128k frames no second matrix would fit
        matrix[begin : begin + shape["C"], max(0, begin - shape["L"] * shape["C"]) : begin + shape["C"]] = 1
    valid = torch.arange(shape["T"], device=x.device) < inputs["lengths"][:, None]
    end = (torch.arange(shape["T"], device=x.device) // shape["C"] + 1) * shape["C"]
    begin = (end - (shape["L"] + 1) * shape["C"]).clamp(min=0)
    lengths = inputs["lengths"][:, None]
    counts = torch.minimum(end, lengths) - torch.minimum(begin, lengths)
    counts = counts.clamp(min=1)[:, :, None].to(x.dtype)
    return {"matrix": matrix, "padding": ~valid[:, :, None], "counts": counts}


def masked_product(inputs: Inputs, shape: Shape) -> Tensor:
    """Mean over the frames that each frame sees, by one matrix for the batch, made once and shared by all layers."""
    return visible_mean(inputs["x"], inputs)


def visible_mean(x: Tensor, prepared: Inputs) -> Tensor:
    return prepared["matrix"] @ x.masked_fill(prepared["padding"], 0) / prepared["counts"]


def matrix_bytes(shape: Shape, itemsize: int) -> int:
    return itemsize * shape["T"] ** 2


def _reference_rows(inputs: Inputs, shape: Shape) -> Tensor:
    return naive.chunk_summary(inputs["x"], inputs["lengths"], shape["C"], shape["L"])


def _reference_frames(inputs: Inputs, shape: Shape) -> Tensor:
    return naive.broadcast_chunks(_reference_rows(inputs, shape), shape["C"], shape["T"])


def _work(shape: Shape, itemsize: int) -> dict[str, Work]:
    """x read once, rows written; and the same backwards. An addition for every element, a window's for every row."""
    frames = shape["B"] * shape["T"] * shape["D"]
    rows = shape["B"] * -(-shape["T"] // shape["C"]) * shape["D"]
    num_bytes, flops = itemsize * (frames + rows), frames + (shape["L"] + 1) * rows
    return {"forward": Work(num_bytes, flops), "forward+backward": Work(2 * num_bytes, 2 * flops)}


_REST = {"D": 512, "C": 16, "L": 4}

BENCHMARK = Benchmark(
    name="chunk_summary",
    source=__name__,
    shapes={
        "cpu": grown(16384, **_REST)[::2],
        "cuda": (
            {"B": 32, "T": 1500, **_REST},
            {"B": 32, "T": 16384, **_REST},
            *grown(131072, **_REST),
        ),
    },
    dtypes={"cpu": ("fp32",), "cuda": ("bf16",)},
    gate_shape={"B": 3, "T": 131, "D": 6, "C": 16, "L": 4, "shortest": 21},
    make=make,
    work=_work,
    contenders=(
        triton_contender(_rows("triton"), _reference_rows, ("x",)),
        Contender("torch", _rows("torch"), _reference_rows, ("x",), baseline=True, ours=True),
        Contender("torch + broadcast_chunks", _frames, _reference_frames, ("x",), ours=True),
        compiled_contender(_rows("torch"), _reference_rows, ("x",)),
        Contender(
            "(T, T) product",
            masked_product,
            _reference_frames,
            ("x",),
            prepare=prepare_matrix,
            working_bytes=matrix_bytes,
            baseline=True,
        ),
    ),
    about="The (T, T) product gives a row a frame, as the method it restates; its matrix is made once a batch, "
    "untimed, and counts as memory. The others give a row a chunk.",
)
