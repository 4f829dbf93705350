"""`merge_chunks` on a GPU: one pass over the frames forward, one backward, which makes GELU and dropout again.

B batch, T frames, C frames of a chunk, N chunks, D channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from sumix_kernels.arguments import split
from sumix_kernels.chunk_summary.triton import chunk_sums, gelu, gelu_derivative, parts_of_chunk, row_frames
from sumix_kernels.launch import cdiv, config, on_device, power_of_2, tuned


def merge_chunks(
    local: Tensor | None, summary: Tensor, lengths: Tensor, chunk_size: int | Tensor, num_frames: int, dropout: float
) -> Tensor:
    """Chunk sizes are an int or (B, 1)."""
    size, sizes = split(chunk_size)
    # On the device, so that a CUDA graph draws another one each time it is played.
    seed = torch.randint(2**62, (1,), device=summary.device) if dropout > 0 else None
    return torch.ops.sumix.merge_chunks(local, summary, lengths, size, sizes, num_frames, dropout, seed)


@library.custom_op("sumix::merge_chunks", mutates_args=())
def _merge_chunks(
    local: Tensor | None,
    summary: Tensor,
    lengths: Tensor,
    size: int,
    sizes: Tensor | None,
    num_frames: int,
    dropout: float,
    seed: Tensor | None,
) -> Tensor:
    B, _, D = summary.shape
    out = summary.new_empty(B, num_frames, D)
    block_d = power_of_2(D, 16, 128)
    if out.numel():
        with on_device(out):
            _merge_kernel[(cdiv(num_frames, 16), cdiv(D, block_d), B)](
                local, summary, lengths, sizes, seed, out, num_frames, D, size, *_dropout(dropout),
                *_strides(local), *summary.stride(), 16, block_d,
            )  # fmt: skip
    return out


@_merge_chunks.register_fake
def _(local, summary, lengths, size, sizes, num_frames, dropout, seed):
    return summary.new_empty(summary.shape[0], num_frames, summary.shape[2])


@library.custom_op("sumix::merge_chunks_backward", mutates_args=())
def _merge_chunks_backward(
    grad: Tensor,
    local: Tensor | None,
    summary: Tensor,
    lengths: Tensor,
    size: int,
    sizes: Tensor | None,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of local (empty where there is none) and summary."""
    (B, T, D), N = grad.shape, summary.shape[1]
    parts = 0 if sizes is not None else parts_of_chunk(grad, size, N)
    grad_local = grad.new_empty(0) if local is None else grad.new_empty(B, T, D)
    rows = grad.new_empty((B, N * max(1, parts), D), dtype=torch.float32)
    part = cdiv(size, parts) if parts else size
    block_n, block_d = power_of_2(cdiv(256, max(1, part or 16)), 16, 64), power_of_2(D, 16, 64)
    if grad.numel():
        with on_device(grad):
            _merge_backward_kernel[(cdiv(rows.shape[1], block_n), cdiv(D, block_d), B)](
                grad, local, summary, lengths, sizes, seed, grad_local, rows, T, rows.shape[1], D, size, part,
                max(1, parts), *_dropout(dropout),
                *grad.stride(), *_strides(local), *summary.stride(), block_n, 32, block_d,
            )  # fmt: skip
    if parts:
        rows = chunk_sums(rows, None, parts, None, N)
    return grad_local, rows.to(summary.dtype)


@_merge_chunks_backward.register_fake
def _(grad, local, summary, lengths, size, sizes, dropout, seed):
    grad_local = grad.new_empty(0) if local is None else grad.new_empty(grad.shape)
    return grad_local, summary.new_empty(summary.shape)


def _setup(ctx, inputs, output) -> None:
    local, summary, lengths, size, sizes, _, dropout, seed = inputs
    ctx.save_for_backward(local, summary, lengths, sizes, seed)
    ctx.settings = size, dropout


def _backward(ctx, grad):
    local, summary, lengths, sizes, seed = ctx.saved_tensors
    size, dropout = ctx.settings
    grad_local, grad_summary = torch.ops.sumix.merge_chunks_backward(
        grad, local, summary, lengths, size, sizes, dropout, seed
    )
    return None if local is None else grad_local, grad_summary, *(None,) * 6


_merge_chunks.register_autograd(_backward, setup_context=_setup)


def _strides(local: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if local is None else local.stride()


def _dropout(dropout: float) -> tuple[int, float]:
    """Elements whose 32 random bits are below the first are dropped, the others multiplied by the second."""
    return int(dropout * 2**32), 1 / (1 - dropout)


@triton.jit
def _load_sum(
    p_local, p_rows, i_b, o_t, o_d, m, size,
    local_stride_b, local_stride_t, local_stride_d, row_stride_b, row_stride_n, row_stride_d,
):  # fmt: skip
    """local + the chunk's row, fp32."""
    p = p_rows + i_b * row_stride_b + (o_t // size)[:, None].to(tl.int64) * row_stride_n + o_d[None, :] * row_stride_d
    b_sum = tl.load(p, mask=m, other=0.0).to(tl.float32)
    if p_local is not None:
        p = p_local + i_b * local_stride_b + o_t[:, None].to(tl.int64) * local_stride_t + o_d[None, :] * local_stride_d
        b_sum += tl.load(p, mask=m, other=0.0).to(tl.float32)
    return b_sum


@triton.jit
def _kept(p_seed, i_b, o_t, i_d, threshold, BT: tl.constexpr, BD: tl.constexpr):
    """Whether dropout keeps the elements (BT, BD); four of a row share a counter, as the generator has four words."""
    o_group = (i_d * (BD // 4) + tl.arange(0, BD // 4))[None, :] + tl.zeros([BT, 1], tl.int32)
    o_time = o_t[:, None] + tl.zeros([1, BD // 4], tl.int32)
    b_0, b_1, b_2, b_3 = tl.philox(
        tl.load(p_seed), o_group, o_time, i_b.to(tl.int32) + o_group * 0, o_group * 0, n_rounds=7
    )  # fmt: skip
    b_bits = tl.join(tl.join(b_0, b_2), tl.join(b_1, b_3)).reshape(BT, BD)
    return b_bits.to(tl.uint32, bitcast=True).to(tl.int64) >= threshold


@tuned([config(num_warps=4), config(num_warps=8), config(num_warps=2)], key=["D"])
@triton.jit(do_not_specialize=["num_frames", "size", "threshold"])
def _merge_kernel(
    p_local, p_rows, p_lengths, p_sizes, p_seed, p_out, num_frames, D, size, threshold, scale,
    local_stride_b, local_stride_t, local_stride_d, row_stride_b, row_stride_n, row_stride_d,
    BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    i_t, i_d, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_t, o_d = i_t * BT + tl.arange(0, BT), i_d * BD + tl.arange(0, BD)
    if p_sizes is not None:
        size = tl.load(p_sizes + i_b).to(tl.int32)
    m = (o_t < tl.load(p_lengths + i_b))[:, None] & (o_d < D)[None, :]
    b_out = _load_sum(
        p_local, p_rows, i_b, o_t, o_d, m, size,
        local_stride_b, local_stride_t, local_stride_d, row_stride_b, row_stride_n, row_stride_d,
    )  # fmt: skip
    b_out = gelu(b_out)
    if p_seed is not None:
        b_out = tl.where(_kept(p_seed, i_b, o_t, i_d, threshold, BT, BD), b_out * scale, 0.0)
    b_out = tl.where(m, b_out, 0.0)
    p = p_out + (i_b * num_frames + o_t[:, None]) * D + o_d[None, :]
    tl.store(p, b_out.to(p_out.dtype.element_ty), mask=(o_t < num_frames)[:, None] & (o_d < D)[None, :])


@tuned([config(num_warps=4), config(num_warps=8), config(num_warps=4, num_stages=2)], key=["D", "BN", "BD"])
@triton.jit(do_not_specialize=["num_frames", "num_rows", "size", "part", "parts", "threshold"])
def _merge_backward_kernel(
    p_grad, p_local, p_rows, p_lengths, p_sizes, p_seed, p_grad_local, p_grad_rows, num_frames, num_rows, D,
    size, part, parts, threshold, scale,
    grad_stride_b, grad_stride_t, grad_stride_d,
    local_stride_b, local_stride_t, local_stride_d, row_stride_b, row_stride_n, row_stride_d,
    BN: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """BN rows of the summary's gradient (whole chunks, or parts of them), and the frames behind them."""
    i_n, i_d, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_n, o_d = i_n * BN + tl.arange(0, BN), i_d * BD + tl.arange(0, BD)
    o_begin, o_end = row_frames(o_n, i_b, None, p_sizes, num_frames, size, 0, part, parts)
    if p_sizes is not None:
        size = tl.load(p_sizes + i_b).to(tl.int32)
    length = tl.load(p_lengths + i_b)
    b_acc = tl.zeros([BN, BD], dtype=tl.float32)
    last = tl.max(o_end, 0)
    for t in range(tl.min(o_begin, 0), last, BT):
        o_t = t + tl.arange(0, BT)
        m = (o_t < tl.minimum(last, length))[:, None] & (o_d < D)[None, :]
        p = p_grad + i_b * grad_stride_b + o_t[:, None].to(tl.int64) * grad_stride_t + o_d[None, :] * grad_stride_d
        b_grad = tl.load(p, mask=m, other=0.0).to(tl.float32)
        if p_seed is not None:
            b_grad = tl.where(_kept(p_seed, i_b, o_t, i_d, threshold, BT, BD), b_grad * scale, 0.0)
        b_sum = _load_sum(
            p_local, p_rows, i_b, o_t, o_d, m, size,
            local_stride_b, local_stride_t, local_stride_d, row_stride_b, row_stride_n, row_stride_d,
        )  # fmt: skip
        b_grad = tl.where(m, b_grad * gelu_derivative(b_sum), 0.0).to(p_rows.dtype.element_ty)
        if p_local is not None:
            p = p_grad_local + (i_b * num_frames + o_t[:, None]) * D + o_d[None, :]
            tl.store(p, b_grad, mask=(o_t < last)[:, None] & (o_d < D)[None, :])
        m_in = (o_t[None, :] >= o_begin[:, None]) & (o_t[None, :] < o_end[:, None])
        b_acc = tl.dot(m_in.to(b_grad.dtype), b_grad, b_acc, input_precision="ieee")
    p = p_grad_rows + (i_b * num_rows + o_n[:, None]) * D + o_d[None, :]
    tl.store(p, b_acc, mask=(o_n < num_rows)[:, None] & (o_d < D)[None, :])
