"""`chunk_summary` and `broadcast_chunks` on a GPU: x is read once and N rows are written, backward the other way round.

Sums of frames are products with a matrix of zeros and ones that is made in registers, so any chunk size costs the
same, and fp16 and bf16 frames are summed exactly as they are, in fp32. Where a window is short, a program sums the few
chunks before its own a second time (out of the cache) and writes means at once; else sums of chunks go through
`windowed_rows`. Chunks that are long for the machine to be busy are cut in parts first. A frame that is not finite
may spoil other rows of its utterance, earlier ones too.

B batch, T frames, C frames of a chunk, N chunks, L chunks of left context, D channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from sumix_kernels.arguments import split
from sumix_kernels.launch import cdiv, config, on_device, power_of_2, tuned
from sumix_kernels.window import visible_frames
from sumix_kernels.window_triton import windowed_rows

_FRAMES = 256  # that a program sums, about
_PROGRAMS = 512  # that keep a GPU busy


def chunk_summary(
    x: Tensor, lengths: Tensor, chunk_size: int | Tensor, left_context: int | Tensor | None, num_chunks: int, gelu: bool
) -> Tensor:
    """Chunk sizes and left contexts are ints or (B, 1); left_context None: each chunk sees all before it."""
    size, sizes = split(chunk_size)
    left, lefts = split(num_chunks if left_context is None else left_context)
    return torch.ops.sumix.chunk_summary(x, lengths, size, sizes, left, lefts, num_chunks, gelu)[0]


def broadcast_chunks(summary: Tensor, chunk_size: int | Tensor, num_frames: int) -> Tensor:
    size, sizes = split(chunk_size)
    return torch.ops.sumix.broadcast_chunks(summary, size, sizes, num_frames)


@library.custom_op("sumix::chunk_summary", mutates_args=())
def _chunk_summary(
    x: Tensor,
    lengths: Tensor,
    size: int,
    sizes: Tensor | None,
    left: int,
    lefts: Tensor | None,
    num_chunks: int,
    gelu: bool,
) -> tuple[Tensor, Tensor]:
    """Means (B, N, D), and the number of frames behind each (at least 1) in fp32 (B, N)."""
    B, _, D = x.shape
    mean = x.new_empty(B, num_chunks, D)
    if (
        lefts is None
        and sizes is None
        and left <= max(1, cdiv(_FRAMES, size))
        and not parts_of_chunk(x, size, num_chunks)
    ):
        counts = x.new_empty((B, num_chunks), dtype=torch.float32)
        _row_sums(x, lengths, mean, size, left=left, counts=counts, gelu=gelu)
        return mean, counts
    sums = chunk_sums(x, lengths, size, sizes, num_chunks, gelu)
    chunks = torch.arange(num_chunks, device=x.device)
    size_, left_ = (n if each is None else each[:, None] for n, each in ((size, sizes), (left, lefts)))
    lo, hi = visible_frames(chunks, size_, left_, lengths[:, None])
    counts = (hi - lo).clamp_(min=1).float()
    return windowed_rows(sums, left if lefts is None else lefts, counts=counts, divide="after", out=mean), counts


@_chunk_summary.register_fake
def _(x, lengths, size, sizes, left, lefts, num_chunks, gelu):
    return x.new_empty(x.shape[0], num_chunks, x.shape[2]), x.new_empty((x.shape[0], num_chunks), dtype=torch.float32)


@library.custom_op("sumix::chunk_summary_backward", mutates_args=())
def _chunk_summary_backward(
    grad: Tensor,
    gelu_input: Tensor | None,
    lengths: Tensor,
    counts: Tensor,
    size: int,
    sizes: Tensor | None,
    left: int,
    lefts: Tensor | None,
    num_frames: int,
) -> Tensor:
    rows = windowed_rows(grad, left if lefts is None else lefts, reverse=True, counts=counts, divide="before")
    return _spread(rows, grad.new_empty(len(grad), num_frames, grad.shape[2]), lengths, size, sizes, gelu_input)


@_chunk_summary_backward.register_fake
def _(grad, gelu_input, lengths, counts, size, sizes, left, lefts, num_frames):
    return grad.new_empty(grad.shape[0], num_frames, grad.shape[2])


def _setup_chunk_summary(ctx, inputs, output) -> None:
    x, lengths, size, sizes, left, lefts, _, gelu = inputs
    ctx.save_for_backward(x if gelu else None, lengths, output[1], sizes, lefts)
    ctx.geometry = size, left, x.shape[1]
    ctx.mark_non_differentiable(output[1])


def _backward_chunk_summary(ctx, grad, _):
    gelu_input, lengths, counts, sizes, lefts = ctx.saved_tensors
    size, left, num_frames = ctx.geometry
    grad_x = torch.ops.sumix.chunk_summary_backward(
        grad, gelu_input, lengths, counts, size, sizes, left, lefts, num_frames
    )
    return grad_x, *(None,) * 7


_chunk_summary.register_autograd(_backward_chunk_summary, setup_context=_setup_chunk_summary)


@library.custom_op("sumix::broadcast_chunks", mutates_args=())
def _broadcast_chunks(summary: Tensor, size: int, sizes: Tensor | None, num_frames: int) -> Tensor:
    B, _, D = summary.shape
    return _spread(summary, summary.new_empty(B, num_frames, D), None, size, sizes, None)


@_broadcast_chunks.register_fake
def _(summary, size, sizes, num_frames):
    return summary.new_empty(summary.shape[0], num_frames, summary.shape[2])


@library.custom_op("sumix::broadcast_chunks_backward", mutates_args=())
def _broadcast_chunks_backward(grad: Tensor, size: int, sizes: Tensor | None, num_chunks: int) -> Tensor:
    return chunk_sums(grad, None, size, sizes, num_chunks).to(grad.dtype)


@_broadcast_chunks_backward.register_fake
def _(grad, size, sizes, num_chunks):
    return grad.new_empty(grad.shape[0], num_chunks, grad.shape[2])


def _setup_broadcast_chunks(ctx, inputs, output) -> None:
    summary, size, sizes, _ = inputs
    ctx.save_for_backward(sizes)
    ctx.geometry = size, summary.shape[1]


def _backward_broadcast_chunks(ctx, grad):
    (sizes,), (size, num_chunks) = ctx.saved_tensors, ctx.geometry
    return torch.ops.sumix.broadcast_chunks_backward(grad, size, sizes, num_chunks), None, None, None


_broadcast_chunks.register_autograd(_backward_broadcast_chunks, setup_context=_setup_broadcast_chunks)


def chunk_sums(
    x: Tensor, lengths: Tensor | None, size: int, sizes: Tensor | None, num_chunks: int, gelu: bool = False
) -> Tensor:
    """Sums over the valid frames of each chunk, fp32 (B, N, D); lengths None: all frames are valid."""
    B, _, D = x.shape
    parts = 0 if sizes is not None else parts_of_chunk(x, size, num_chunks)
    sums = x.new_empty((B, num_chunks * max(1, parts), D), dtype=torch.float32)
    if not parts:
        return _row_sums(x, lengths, sums, size, sizes=sizes, gelu=gelu)
    _row_sums(x, lengths, sums, size, part=cdiv(size, parts), parts=parts, gelu=gelu)
    return chunk_sums(sums, None, parts, None, num_chunks)


def parts_of_chunk(x: Tensor, size: int, num_chunks: int) -> int:
    """Number of parts that each chunk is cut into; 0 where whole chunks make programs enough."""
    if size <= 4 * 16 or x.shape[0] * cdiv(num_chunks, 16) * cdiv(x.shape[2], 64) >= _PROGRAMS:
        return 0
    return cdiv(size, cdiv(size, cdiv(size, 32)))  # parts of 32 frames, as even as can be, none of them empty


def _row_sums(
    x: Tensor,
    lengths: Tensor | None,
    out: Tensor,
    size: int,
    *,
    sizes: Tensor | None = None,
    left: int = 0,
    part: int = 0,
    parts: int = 1,
    counts: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """Sums over windows of chunks (means if `counts` is to be filled) or parts of chunks, into out (B, rows, D)."""
    B, T, D = x.shape
    num_rows = out.shape[1]
    block_n = power_of_2(cdiv(_FRAMES, max(1, part or size or 16)), 16, 64)
    block_d = power_of_2(D, 16, 64)
    block_t = 32 if x.dtype == torch.float32 else 64  # fp32 products are made of many registers
    if out.numel():
        with on_device(x):
            _row_sums_kernel[(cdiv(num_rows, block_n), cdiv(D, block_d), B)](
                x, lengths, sizes, out, counts, T, num_rows, D, size, left, part or size, parts, *x.stride(),
                block_n, block_t, block_d, gelu,
            )  # fmt: skip
    return out


def _spread(
    rows: Tensor, out: Tensor, lengths: Tensor | None, size: int, sizes: Tensor | None, gelu_input: Tensor | None
) -> Tensor:
    """Row n(t) for every valid frame t, zero elsewhere; times the GELU's derivative at `gelu_input` where given."""
    B, T, D = out.shape
    x = rows if gelu_input is None else gelu_input
    block_d = power_of_2(D, 16, 128)
    if out.numel():
        with on_device(out):
            _spread_kernel[(cdiv(T, 32), cdiv(D, block_d), B)](
                rows, x, lengths, sizes, out, T, D, size, *rows.stride(), *x.stride(), 32, block_d,
                gelu_input is not None,
            )  # fmt: skip
    return out


@triton.jit
def gelu(x):
    """x Phi(x) in fp32, exact (not the tanh approximation)."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_derivative(x):
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def row_frames(o_n, i_b, p_lengths, p_sizes, num_frames, size, left, part, parts):
    """First frame and one past the last of rows o_n, int32, cut at the utterance's length.

    A row is a window of chunks (`left` before its own), or one of `parts` parts of a chunk, of `part` frames.
    """
    length = num_frames
    if p_lengths is not None:
        length = tl.load(p_lengths + i_b).to(tl.int32)
    if p_sizes is not None:
        size = tl.load(p_sizes + i_b)
        part = size
    o_chunk = (o_n // parts).to(tl.int64)
    o_end = tl.minimum(o_chunk * size + (o_n % parts + 1) * part, (o_chunk + 1) * size)
    o_begin = tl.maximum((o_chunk - left) * size + (o_n % parts) * part, 0)
    return tl.minimum(o_begin, length).to(tl.int32), tl.minimum(o_end, length).to(tl.int32)


@tuned(
    [config(num_warps=4, num_stages=3), config(num_warps=8, num_stages=3), config(num_warps=4, num_stages=5)],
    key=["D", "BN", "BD", "GELU"],
)
@triton.jit(do_not_specialize=["num_frames", "num_rows", "size", "left", "part", "parts"])
def _row_sums_kernel(
    p_x, p_lengths, p_sizes, p_out, p_counts, num_frames, num_rows, D, size, left, part, parts,
    stride_b, stride_t, stride_d, BN: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    i_n, i_d, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_n, o_d = i_n * BN + tl.arange(0, BN), i_d * BD + tl.arange(0, BD)
    o_begin, o_end = row_frames(o_n, i_b, p_lengths, p_sizes, num_frames, size, left, part, parts)
    b_acc = tl.zeros([BN, BD], dtype=tl.float32)
    last = tl.max(o_end, 0)
    for t in range(tl.min(o_begin, 0), last, BT):
        o_t = t + tl.arange(0, BT)
        p = p_x + i_b * stride_b + o_t[:, None].to(tl.int64) * stride_t + o_d[None, :] * stride_d
        b_x = tl.load(p, mask=(o_t < last)[:, None] & (o_d < D)[None, :], other=0.0)
        if GELU:
            b_x = gelu(b_x.to(tl.float32)).to(b_x.dtype)
        m_in = (o_t[None, :] >= o_begin[:, None]) & (o_t[None, :] < o_end[:, None])
        b_acc = tl.dot(m_in.to(b_x.dtype), b_x, b_acc, input_precision="ieee")
    m_n = o_n < num_rows
    if p_counts is not None:
        b_counts = tl.maximum(o_end - o_begin, 1).to(tl.float32)
        b_acc /= b_counts[:, None]
        if i_d == 0:
            tl.store(p_counts + i_b * num_rows + o_n, b_counts, mask=m_n)
    p = p_out + (i_b * num_rows + o_n[:, None]) * D + o_d[None, :]
    tl.store(p, b_acc.to(p_out.dtype.element_ty), mask=m_n[:, None] & (o_d < D)[None, :])


@tuned([config(num_warps=4), config(num_warps=8), config(num_warps=2)], key=["D", "GELU"])
@triton.jit(do_not_specialize=["num_frames", "size"])
def _spread_kernel(
    p_rows, p_x, p_lengths, p_sizes, p_out, num_frames, D, size,
    row_stride_b, row_stride_n, row_stride_d, x_stride_b, x_stride_t, x_stride_d,
    BT: tl.constexpr, BD: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    i_t, i_d, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_t, o_d = i_t * BT + tl.arange(0, BT), i_d * BD + tl.arange(0, BD)
    length = num_frames
    if p_lengths is not None:
        length = tl.load(p_lengths + i_b).to(tl.int32)
    if p_sizes is not None:
        size = tl.load(p_sizes + i_b).to(tl.int32)
    m = (o_t < length)[:, None] & (o_d < D)[None, :]
    p = p_rows + i_b * row_stride_b + (o_t // size)[:, None].to(tl.int64) * row_stride_n + o_d[None, :] * row_stride_d
    b_rows = tl.load(p, mask=m, other=0.0).to(tl.float32)
    if GELU:
        p = p_x + i_b * x_stride_b + o_t[:, None].to(tl.int64) * x_stride_t + o_d[None, :] * x_stride_d
        b_rows *= gelu_derivative(tl.load(p, mask=m, other=0.0).to(tl.float32))
    p = p_out + (i_b * num_frames + o_t[:, None]) * D + o_d[None, :]
    tl.store(p, b_rows.to(p_out.dtype.element_ty), mask=(o_t < num_frames)[:, None] & (o_d < D)[None, :])
