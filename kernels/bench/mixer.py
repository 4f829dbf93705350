"""The mixer's whole cell, projection to merge, on the chunk ops and on a (T, T) matrix; and the attention twin's cell.

B batch, T frames, C frames of a chunk, L chunks of left context, D channels, H heads, d channels of a head.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sumix_kernels import broadcast_chunks, chunk_summary, merge_chunks
from sumix_kernels.bench import chunk_summary as summary_bench
from sumix_kernels.bench.registry import (
    COMPILED_ON_GPU,
    Benchmark,
    Contender,
    Inputs,
    Shape,
    Work,
    batches,
    compiled_contender,
    grown,
    make_lengths,
    random_tensors,
    triton_contender,
)
from sumix_kernels.chunk_summary import naive

_CELL = ("x", "w_in", "b_in", "w_local", "w_summary", "b_out")
_TWIN = ("x", "w_qkv", "b_qkv", "w_attention", "b_attention")


def _make(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    D = shape["D"]
    shapes = {"w_in": (2 * D, D), "w_local": (D, D), "w_summary": (D, D), "w_qkv": (3 * D, D), "w_attention": (D, D)}
    shapes |= {"b_in": (2 * D,), "b_out": (D,), "b_qkv": (3 * D,), "b_attention": (D,)}
    tensors = random_tensors(dtype, device, x=(shape["B"], shape["T"], D), **shapes)
    for name in shapes:  # as a trained layer's: outputs as large as inputs
        tensors[name] *= D**-0.5
    return tensors | {"lengths": make_lengths(shape, device)}


def _project(inputs: Inputs) -> tuple[Tensor, Tensor]:
    local, summands = F.gelu(F.linear(inputs["x"], inputs["w_in"], inputs["b_in"])).chunk(2, dim=-1)
    return F.linear(local, inputs["w_local"]), summands


def _padding(inputs: Inputs) -> Tensor:
    return (torch.arange(inputs["x"].shape[1], device=inputs["x"].device) >= inputs["lengths"][:, None])[:, :, None]


def _cell(inputs: Inputs, shape: Shape) -> Tensor:
    local, summands = _project(inputs)
    mean = chunk_summary(summands, inputs["lengths"], shape["C"], shape["L"], backend="torch")
    merged = F.linear(mean, inputs["w_summary"], inputs["b_out"])  # once a chunk
    frames = broadcast_chunks(merged, shape["C"], shape["T"], backend="torch")
    return F.gelu(local + frames).masked_fill(_padding(inputs), 0)


def _fused_cell(inputs: Inputs, shape: Shape) -> Tensor:
    local, summands = F.linear(inputs["x"], inputs["w_in"], inputs["b_in"]).chunk(2, dim=-1)
    local = F.linear(F.gelu(local), inputs["w_local"])
    mean = chunk_summary(summands, inputs["lengths"], shape["C"], shape["L"], gelu=True, backend="triton")
    merged = F.linear(mean, inputs["w_summary"], inputs["b_out"])
    return merge_chunks(local, merged, inputs["lengths"], shape["C"], backend="triton")


def _matrix_cell(inputs: Inputs, shape: Shape) -> Tensor:
    """The mean, and its product with the weights, once a frame, as the method that it restates."""
    local, summands = _project(inputs)
    mean = summary_bench.visible_mean(summands, inputs)
    merged = F.linear(mean, inputs["w_summary"], inputs["b_out"])
    return F.gelu(local + merged).masked_fill(inputs["padding"], 0)


def _reference_cell(inputs: Inputs, shape: Shape) -> Tensor:
    local, summands = _project(inputs)
    mean = naive.chunk_summary(summands, inputs["lengths"], shape["C"], shape["L"])
    merged = F.linear(mean, inputs["w_summary"], inputs["b_out"])
    frames = naive.broadcast_chunks(merged, shape["C"], shape["T"])
    return F.gelu(local + frames).masked_fill(_padding(inputs), 0)


def _prepare_attention(inputs: Inputs, shape: Shape) -> Inputs:
    """Mask (B, 1, T, T) and rotations (T, d/2), which all layers share."""
    x, half = inputs["x"], shape["D"] // shape["H"] // 2
    mask = summary_bench.sees(shape, x.device) & ~_padding(inputs).transpose(1, 2)
    frequencies = 10_000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(shape["T"], device=x.device)[:, None] * frequencies
    # A padded query that sees nothing would be NaN; its output is masked afterwards.
    mask = (mask | ~mask.any(-1, keepdim=True))[:, None]
    return {"mask": mask, "cos": angles.cos().to(x.dtype), "sin": angles.sin().to(x.dtype)}


def _prepare_flex(inputs: Inputs, shape: Shape) -> Inputs:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    lengths, C, L, T = inputs["lengths"], shape["C"], shape["L"], shape["T"]

    def visible(b, h, query, key):
        behind = query // C - key // C
        return (behind >= 0) & (behind <= L) & (key < lengths[b])

    block_mask = create_block_mask(visible, shape["B"], None, T, T, device=inputs["x"].device)
    rotations = {name: value for name, value in _prepare_attention(inputs, shape).items() if name != "mask"}
    flex = torch.compile(flex_attention, dynamic=False)
    return rotations | {"attend": lambda query, key, value: flex(query, key, value, block_mask=block_mask)}


def _rotate(x: Tensor, inputs: Inputs) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    cos, sin = inputs["cos"], inputs["sin"]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def _twin(attend: Callable[[Inputs, Tensor, Tensor, Tensor], Tensor]):
    def run(inputs: Inputs, shape: Shape) -> Tensor:
        qkv = F.linear(inputs["x"], inputs["w_qkv"], inputs["b_qkv"]).chunk(3, dim=-1)
        query, key, value = (x.unflatten(-1, (shape["H"], -1)).transpose(1, 2) for x in qkv)
        y = attend(inputs, _rotate(query, inputs), _rotate(key, inputs), value).transpose(1, 2).flatten(2)
        return F.linear(y, inputs["w_attention"], inputs["b_attention"]).masked_fill(_padding(inputs), 0)

    return run


def _sdpa(inputs: Inputs, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, inputs["mask"])


def _flex(inputs: Inputs, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return inputs["attend"](query, key, value)


def _softmax(inputs: Inputs, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    mask = _prepare_attention(inputs, _reference_shape(query))["mask"]
    scores = (query @ key.transpose(2, 3) * query.shape[3] ** -0.5).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ value


def _reference_shape(query: Tensor) -> Shape:
    B, H, T, d = query.shape
    return {**_GATE_SHAPE, "B": B, "T": T, "H": H, "D": H * d}


def _work(shape: Shape, itemsize: int) -> dict[str, Work]:
    """x and y once, weights once; three products a frame and one a chunk, each again for both gradients."""
    D, frames = shape["D"], shape["B"] * shape["T"]
    rows = shape["B"] * -(-shape["T"] // shape["C"])
    flops = 2 * D * D * (3 * frames + rows)
    num_bytes = itemsize * (2 * frames * D + 4 * D * D)
    return {"forward": Work(num_bytes, flops), "forward+backward": Work(2 * num_bytes, 3 * flops)}


def _mask_bytes(shape: Shape, itemsize: int) -> int:
    return (3 + itemsize * shape["H"]) * shape["B"] * shape["T"] ** 2  # mask, its making, a bias for each head


_REST = {"D": 512, "H": 4, "C": 16, "L": 4}
_GATE_SHAPE = {"B": 3, "T": 75, "D": 32, "H": 2, "C": 16, "L": 1, "shortest": 20}

BENCHMARK = Benchmark(
    name="mixer",
    source=__name__,
    shapes={
        "cpu": grown(4096, **_REST)[::2],
        "cuda": ({"B": 32, "T": 1500, **_REST}, *grown(16384, **_REST)[1::2]),
    },
    dtypes={"cpu": ("fp32",), "cuda": ("bf16",)},
    gate_shape=_GATE_SHAPE,
    make=_make,
    work=_work,
    # Four products and an activation between them round one after another.
    tolerance={"fp32": (4e-5, 1.2e-5), "fp16": (6e-3, 2.4e-3), "bf16": (4e-2, 1.6e-2)},
    contenders=(
        triton_contender(_fused_cell, _reference_cell, _CELL),
        Contender("torch", _cell, _reference_cell, _CELL, baseline=True, ours=True),
        compiled_contender(_cell, _reference_cell, _CELL),
        Contender(
            "(T, T) product",
            _matrix_cell,
            _reference_cell,
            _CELL,
            prepare=summary_bench.prepare_matrix,
            working_bytes=summary_bench.matrix_bytes,
            baseline=True,
        ),
        Contender(
            "attention, SDPA",
            _twin(_sdpa),
            _twin(_softmax),
            _TWIN,
            prepare=_prepare_attention,
            working_bytes=_mask_bytes,
            baseline=True,
        ),
        Contender(
            "attention, FlexAttention",
            _twin(_flex),
            _twin(_softmax),
            _TWIN,
            prepare=_prepare_flex,
            at=batches,
            obstacle=COMPILED_ON_GPU,
            baseline=True,
        ),
    ),
    about="Projection, GELU, chunk summary, merge; and the attention twin's cell, with rotations, in its place. Masks, "
    "the (T, T) matrix and rotations are made once a batch, untimed, and count as memory. Bytes and operations are "
    "those of the summary cell.",
)
