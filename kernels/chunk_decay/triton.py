"""`chunk_decay_mean` on a GPU: a chunked scan in linear time. See torch.py for the sums that it is made of.

Frames are cut into tiles of at most 64: some whole chunks, or an even part of one long chunk. Within a tile sums are
products with a matrix of powers; between tiles pass their decayed sums, by `windowed_rows` (parts of a chunk in both
directions, chunks to later ones). x is read twice, once for the sums and once for the result. The backward pass is the
same on mirrored time: who is seen from n - L chunks behind sees to n + L.

B batch, T frames, C frames of a chunk, N chunks, Q parts of a chunk, K frames of a part, L chunks of left context,
D channels, a = decay.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from sumix_kernels.chunk_decay.torch import by_context, visible_weights
from sumix_kernels.launch import cdiv, on_device, power_of_2
from sumix_kernels.window import num_chunks, visible_frames
from sumix_kernels.window_triton import windowed_rows

_TILE = 64


def chunk_decay_mean(
    x: Tensor, lengths: Tensor, chunk_size: int | Tensor, left_context: int | Tensor | None, decay: float
) -> Tensor:
    """Chunk sizes and left contexts are ints or (B, 1); left_context None: each chunk sees all before it."""
    if isinstance(chunk_size, Tensor) or isinstance(left_context, Tensor):
        return by_context(_mean, x, lengths, chunk_size, left_context, math.log(decay))
    return _mean(x, lengths, chunk_size, left_context, math.log(decay))


def _mean(x: Tensor, lengths: Tensor, chunk_size: int, left_context: int | None, log_decay: float) -> Tensor:
    left = num_chunks(x.shape[1], chunk_size) if left_context is None else left_context
    return torch.ops.sumix.chunk_decay_mean(x, lengths, chunk_size, left, log_decay)


@library.custom_op("sumix::chunk_decay_mean", mutates_args=())
def _chunk_decay_mean(x: Tensor, lengths: Tensor, size: int, left: int, log_decay: float) -> Tensor:
    return _decayed(x, lengths, size, left, log_decay, reverse=False)


@_chunk_decay_mean.register_fake
def _(x, lengths, size, left, log_decay):
    return x.new_empty(x.shape)


@library.custom_op("sumix::chunk_decay_mean_backward", mutates_args=())
def _chunk_decay_mean_backward(grad: Tensor, lengths: Tensor, size: int, left: int, log_decay: float) -> Tensor:
    return _decayed(grad, lengths, size, left, log_decay, reverse=True)


@_chunk_decay_mean_backward.register_fake
def _(grad, lengths, size, left, log_decay):
    return grad.new_empty(grad.shape)


def _setup(ctx, inputs, output) -> None:
    _, lengths, *ctx.settings = inputs
    ctx.save_for_backward(lengths)


def _backward(ctx, grad):
    return torch.ops.sumix.chunk_decay_mean_backward(grad, *ctx.saved_tensors, *ctx.settings), *(None,) * 4


_chunk_decay_mean.register_autograd(_backward, setup_context=_setup)


def _decayed(x: Tensor, lengths: Tensor, size: int, left: int, log_decay: float, *, reverse: bool) -> Tensor:
    """Means, or (reverse) the gradient of x from theirs."""
    B, T, D = x.shape
    N = num_chunks(T, size)
    Q = cdiv(size, cdiv(size, cdiv(size, _TILE)))  # parts of at most 64 frames, as even as can be, none of them empty
    K = cdiv(size, Q)
    group = 1 if Q > 1 else max(1, min(N, _TILE // size))  # chunks of a tile
    time = torch.arange(T, device=x.device)
    lo, hi = visible_frames(time // size, size, left, lengths[:, None])
    weights = visible_weights(time - lo, hi - time, log_decay, torch.float32)  # (B, T)

    out = x.new_empty(B, T, D)
    past = before = after = None
    block_d = power_of_2(D, 16, 32)
    grid = (N * Q if Q > 1 else cdiv(N, group), cdiv(D, block_d), B)
    geometry = T, N, D, size, Q, K, group, log_decay
    with on_device(x):
        if (N > 1 and left > 0) or Q > 1:
            ends = x.new_empty((B, N * Q, D), dtype=torch.float32)
            starts = x.new_empty((B, N * Q, D), dtype=torch.float32) if Q > 1 else None
            _ends_kernel[grid](
                x, lengths, weights, ends, starts, *geometry, *x.stride(),
                _TILE, power_of_2(group, 16), block_d, Q > 1, reverse,
            )  # fmt: skip
            if Q > 1:
                before = windowed_rows(ends.view(B * N, Q, D), Q, K * log_decay).view(B, N, Q, D)
                after = windowed_rows(starts.view(B * N, Q, D), Q, K * log_decay, reverse=True)
                ends = before[:, :, -1]
            if N > 1 and left > 0:
                past = windowed_rows(ends, left - 1, size * log_decay)
        _decayed_kernel[grid](
            x, lengths, weights, past, before, after, out, *geometry, *x.stride(),
            _TILE, 16, block_d, Q > 1, reverse,
        )  # fmt: skip
    return out


@triton.jit
def _tile_frames(o, i_tile, num_chunks, size, Q, K, group, CUT: tl.constexpr):
    """In mirrored time or not, of the tile's places o: frame, chunk, frames before it in its part, and which count."""
    if CUT:  # zeros before the chunk fill its first part, so that all parts have K frames
        o_chunk = i_tile // Q + o * 0
        o_frame = i_tile // Q * size + (i_tile % Q) * K - (Q * K - size) + o
        o_place = o
        m = (o < K) & (o_frame >= o_chunk * size)
    else:
        o_of_tile = ((o.to(tl.float32) + 0.5) / size).to(tl.int32)  # o // size, exact for so few, in few registers
        o_chunk = i_tile * group + o_of_tile
        o_frame = i_tile * group * size + o
        o_place = o - o_of_tile * size
        m = (o < group * size) & (o_chunk < num_chunks)
    return o_frame, o_chunk, o_place, m


@triton.jit
def _load_tile(
    p_x, p_lengths, p_weights, i_b, o_frame, o_d, m, num_frames, padded_frames, D, stride_b, stride_t, stride_d,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """Frames of x, as fp32, zero where they do not count; divided by their weights if REVERSE. And which count."""
    o_t = padded_frames - 1 - o_frame if REVERSE else o_frame
    m = m & (o_t < tl.load(p_lengths + i_b))
    p = p_x + i_b * stride_b + o_t[:, None].to(tl.int64) * stride_t + o_d[None, :] * stride_d
    b_x = tl.load(p, mask=m[:, None] & (o_d < D)[None, :], other=0.0).to(tl.float32)
    if REVERSE:
        b_x /= tl.load(p_weights + i_b * num_frames + o_t, mask=m, other=1.0)[:, None]
    return b_x, m


@triton.jit(do_not_specialize=["num_frames", "num_chunks", "size", "Q", "K", "group"])
def _ends_kernel(
    p_x, p_lengths, p_weights, p_ends, p_starts, num_frames, num_chunks, D, size, Q, K, group, log_decay,
    stride_b, stride_t, stride_d,
    BT: tl.constexpr, BG: tl.constexpr, BD: tl.constexpr, CUT: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Decayed sum of each chunk or part, as seen from its last frame and, for parts, from its first."""
    i_tile, i_d, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o, o_d = tl.arange(0, BT), i_d * BD + tl.arange(0, BD)
    o_frame, o_chunk, o_place, m = _tile_frames(o, i_tile, num_chunks, size, Q, K, group, CUT)
    b_x, m = _load_tile(
        p_x, p_lengths, p_weights, i_b, o_frame, o_d, m, num_frames, num_chunks * size, D,
        stride_b, stride_t, stride_d, REVERSE,
    )  # fmt: skip
    o_g = tl.arange(0, BG)
    o_row = o_chunk - i_tile * group if not CUT else o_chunk * 0  # of the tile
    m_row = (o_g[:, None] == o_row[None, :]) & m[None, :]
    p = (i_b * num_chunks * Q + i_tile * group + o_g[:, None]) * D + o_d[None, :]
    m_g = (o_g < group) & (i_tile * group + o_g < num_chunks * Q)
    m_store = m_g[:, None] & (o_d < D)[None, :]
    b_weights = tl.where(m_row, tl.exp(log_decay * tl.maximum(K - 1 - o_place, 0).to(tl.float32))[None, :], 0.0)
    tl.store(p_ends + p, tl.dot(b_weights, b_x, input_precision="ieee"), mask=m_store)
    if p_starts is not None:
        b_weights = tl.where(m_row, tl.exp(log_decay * o_place.to(tl.float32))[None, :], 0.0)
        tl.store(p_starts + p, tl.dot(b_weights, b_x, input_precision="ieee"), mask=m_store)


@triton.jit(do_not_specialize=["num_frames", "num_chunks", "size", "Q", "K", "group"])
def _decayed_kernel(
    p_x, p_lengths, p_weights, p_past, p_before, p_after, p_out, num_frames, num_chunks, D, size, Q, K, group,
    log_decay, stride_b, stride_t, stride_d,
    BT: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, CUT: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    i_tile, i_d, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o, o_d = tl.arange(0, BT), i_d * BD + tl.arange(0, BD)
    o_frame, o_chunk, o_place, m_tile = _tile_frames(o, i_tile, num_chunks, size, Q, K, group, CUT)
    o_t = num_chunks * size - 1 - o_frame if REVERSE else o_frame
    m = m_tile & (o_t < tl.load(p_lengths + i_b))
    b_sum = tl.zeros([BT, BD], dtype=tl.float32)
    for i in range(0, BT, BK):  # a whole tile at once would need more registers than there are
        o_u = i + tl.arange(0, BK)
        o_frame_u, o_chunk_u, _, m_u = _tile_frames(o_u, i_tile, num_chunks, size, Q, K, group, CUT)
        b_x, m_u = _load_tile(
            p_x, p_lengths, p_weights, i_b, o_frame_u, o_d, m_u, num_frames, num_chunks * size, D,
            stride_b, stride_t, stride_d, REVERSE,
        )  # fmt: skip
        b_weights = tl.exp(log_decay * tl.abs(o[:, None] - o_u[None, :]).to(tl.float32))
        b_weights = tl.where((o_chunk[:, None] == o_chunk_u[None, :]) & m_u[None, :], b_weights, 0.0)
        b_sum = tl.dot(b_weights, b_x, b_sum, input_precision="ieee")
    m_d = (o_d < D)[None, :]
    if p_past is not None:
        p = p_past + (i_b * num_chunks + o_chunk[:, None] - 1) * D + o_d[None, :]
        b_past = tl.load(p, mask=(m_tile & (o_chunk > 0))[:, None] & m_d, other=0.0)
        b_sum += tl.exp(log_decay * tl.maximum(o_frame - o_chunk * size + 1, 0).to(tl.float32))[:, None] * b_past
    if p_before is not None:
        i_part = i_tile % Q
        p = (i_b * num_chunks * Q + i_tile) * D + o_d
        b_before = tl.load(p_before + p - D, mask=(o_d < D) & (i_part > 0), other=0.0)
        b_after = tl.load(p_after + p + D, mask=(o_d < D) & (i_part < Q - 1), other=0.0)
        b_sum += tl.exp(log_decay * (o_place + 1).to(tl.float32))[:, None] * b_before[None, :]
        b_sum += tl.exp(log_decay * tl.maximum(K - o_place, 0).to(tl.float32))[:, None] * b_after[None, :]
    if not REVERSE:
        b_sum /= tl.load(p_weights + i_b * num_frames + o_t, mask=m, other=1.0)[:, None]
    b_sum = tl.where(m[:, None], b_sum, 0.0)
    p = p_out + (i_b * num_frames + o_t[:, None]) * D + o_d[None, :]
    tl.store(p, b_sum.to(p_out.dtype.element_ty), mask=(m_tile & (o_t < num_frames))[:, None] & m_d)
