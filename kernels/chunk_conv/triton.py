"""`chunk_conv1d` on a GPU: every row of x is read, and its GLU computed, once by each program that needs it.

A program owns BD channels of a segment of frames and walks through it with the k rows that its taps see in registers,
the ring, newest first: one row is loaded, k multiply-adds give one row of the output, the oldest row is dropped. The
forward pass walks back in time, so that the chunk rule costs next to nothing: when the walk steps over a chunk's end,
the half of the ring that holds later frames is cleared, and nothing before that end wants them again. The backward
pass is its mirror image. It walks forward with a ring of the output's gradient, clears the half that holds earlier
frames at a chunk's beginning, and from this one ring takes both gradients, of the input and of the taps. Sums over
frames are left by each program in memory of its own and added in a fixed order.

B batch, T frames, C frames of a chunk, D channels, k taps.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from sumix_kernels.arguments import split
from sumix_kernels.launch import TunedKernel, cdiv, config, on_device, tuned

PROGRAMS = 4096  # of one warp each: a few for every one that a large GPU holds at a time
MIN_SEGMENT = 64  # frames; each segment reads k - 1 more


@triton.jit(do_not_specialize=["num_frames", "segment", "chunk_size"])
def _forward_kernel(
    x,
    taps,
    bias,
    lengths,
    chunk_sizes,
    y,
    num_frames,
    segment,
    chunk_size,
    x_stride_b,
    x_stride_t,
    K: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    UNROLL: tl.constexpr,
    GLU: tl.constexpr,
):
    HALF: tl.constexpr = K // 2
    i_d, i_b, begin, end = _place(num_frames, segment, D, BD)
    length, chunk = _limits(lengths, chunk_sizes, chunk_size, i_b)
    o_d = i_d * BD + tl.arange(0, BD)
    m_d = o_d < D
    p_x = x + i_b * x_stride_b + o_d
    p_y = y + i_b * num_frames * D + o_d
    stop = tl.minimum(end, length)
    padding = tl.maximum(begin, stop)
    for i in range(0, end - padding):
        tl.store(p_y + (padding + i).to(tl.int64) * D, tl.zeros([BD], y.dtype.element_ty), mask=m_d)
    if stop <= begin:
        return

    b_bias = tl.zeros([BD], tl.float32)
    if bias is not None:
        b_bias = tl.load(bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_taps = _taps(taps + o_d, m_d, K, D, BD, UNROLL)
    last = stop - 1
    seen = tl.minimum((last // chunk + 1) * chunk, length)  # by the last frame
    held = _zeros(K - 1, BD)
    for i_block in range(0, tl.cdiv(K - 1, UNROLL)):
        for u in tl.static_range(UNROLL):
            t = last + tl.cdiv(K - 1, UNROLL) * UNROLL - HALF - i_block * UNROLL - u
            m_row = m_d & (t >= 0) & (t < seen)
            held = ((_gated(_load(p_x + t.to(tl.int64) * x_stride_t, m_row, D, GLU), GLU),) + held)[: K - 1]
    young, old = held[:HALF], held[HALF:]
    place = last % chunk
    for i_block in range(0, tl.cdiv(stop - begin, UNROLL)):
        newest = last - i_block * UNROLL
        p_row = p_x + (newest - HALF).to(tl.int64) * x_stride_t
        p_out = p_y + newest.to(tl.int64) * D
        rows = ()
        for u in tl.static_range(UNROLL):
            rows = rows + (_load(p_row, m_d & (newest - HALF - u >= 0), D, GLU),)
            p_row -= x_stride_t
        frames = ()
        for u in tl.static_range(UNROLL):
            frames = frames + (_gated(rows[u], GLU),)
        for u in tl.static_range(UNROLL):
            if place == chunk - 1:
                tl.debug_barrier()  # keeps this a branch: selects would cost half as much as the multiply-adds
                old = _zeros(HALF, BD)
            place = tl.where(place == 0, chunk, place) - 1
            ring = (frames[u],) + young + old
            young, old = ring[:HALF], ring[HALF : K - 1]
            total, later = b_bias, tl.zeros([BD], tl.float32)  # two sums: each waits for its last multiply-add
            for j in tl.static_range(K):
                if j <= HALF:
                    total = tl.fma(b_taps[j], ring[j], total)
                else:
                    later = tl.fma(b_taps[j], ring[j], later)
            total += later
            tl.store(p_out - u * D, total.to(y.dtype.element_ty), mask=m_d & (newest - u >= begin))


@triton.jit(do_not_specialize=["num_frames", "segment", "chunk_size"])
def _backward_kernel(
    grad,
    x,
    taps,
    lengths,
    chunk_sizes,
    grad_x,
    grad_taps,
    num_frames,
    segment,
    chunk_size,
    grad_stride_b,
    grad_stride_t,
    x_stride_b,
    x_stride_t,
    K: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    UNROLL: tl.constexpr,
    GLU: tl.constexpr,
):
    HALF: tl.constexpr = K // 2
    WIDTH: tl.constexpr = 2 * D if GLU else D
    i_d, i_b, begin, end = _place(num_frames, segment, D, BD)
    length, chunk = _limits(lengths, chunk_sizes, chunk_size, i_b)
    o_d = i_d * BD + tl.arange(0, BD)
    m_d = o_d < D
    p_g = grad + i_b * grad_stride_b + o_d
    p_x = x + i_b * x_stride_b + o_d
    p_dx = grad_x + i_b * num_frames * WIDTH + o_d
    p_sum = grad_taps + (i_b * tl.cdiv(num_frames, segment) + begin // segment) * (K + 1) * D + o_d
    stop = tl.minimum(end, length)
    padding, zeros = tl.maximum(begin, stop), tl.zeros([BD], x.dtype.element_ty)
    for i in range(0, end - padding):
        p_row = p_dx + (padding + i).to(tl.int64) * WIDTH
        tl.store(p_row, zeros, mask=m_d)
        if GLU:
            tl.store(p_row + D, zeros, mask=m_d)
    if stop <= begin:
        for j in range(0, K + 1):
            tl.store(p_sum + j * D, tl.zeros([BD], tl.float32), mask=m_d)
        return

    b_taps = _taps(taps + o_d, m_d, K, D, BD, UNROLL)
    reached = begin // chunk * chunk  # by the first frame
    held, sums = _zeros(K - 1, BD), _zeros(K + 1, BD)
    for i_block in range(0, tl.cdiv(K - 1, UNROLL)):
        for u in tl.static_range(UNROLL):
            t = begin - tl.cdiv(K - 1, UNROLL) * UNROLL + HALF + i_block * UNROLL + u
            m_row = m_d & (t >= reached) & (t < length)
            row = tl.load(p_g + t.to(tl.int64) * grad_stride_t, mask=m_row, other=0.0).to(tl.float32)
            held = ((row,) + held)[: K - 1]
    young, old = held[:HALF], held[HALF:]
    place = begin % chunk
    for i_block in range(0, tl.cdiv(stop - begin, UNROLL)):
        oldest = begin + i_block * UNROLL
        p_newest = p_g + (oldest + HALF).to(tl.int64) * grad_stride_t
        p_row = p_x + oldest.to(tl.int64) * x_stride_t
        p_out = p_dx + oldest.to(tl.int64) * WIDTH
        rows, grads = (), ()
        for u in tl.static_range(UNROLL):
            grads = grads + (tl.load(p_newest, mask=m_d & (oldest + HALF + u < length), other=0.0),)
            rows = rows + (_load(p_row, m_d & (oldest + u < stop), D, GLU),)
            p_newest += grad_stride_t
            p_row += x_stride_t
        frames, gates = (), ()
        for u in tl.static_range(UNROLL):
            frames = frames + (_gated(rows[u], GLU),)
            if GLU:
                gates = gates + (1 / _gate_inverse(rows[u][1]),)
        for u in tl.static_range(UNROLL):
            if place == 0:
                tl.debug_barrier()  # as in the forward pass
                old = _zeros(HALF, BD)
            place = tl.where(place == chunk - 1, 0, place + 1)
            ring = (grads[u].to(tl.float32),) + young + old
            young, old = ring[:HALF], ring[HALF : K - 1]
            b_grad = tl.zeros([BD], tl.float32)
            updated = ()
            for j in tl.static_range(K):
                b_grad = tl.fma(b_taps[j], ring[j], b_grad)
                updated = updated + (tl.fma(frames[u], ring[j], sums[j]),)
            m_row = m_d & (oldest + u < stop)
            sums = updated + (sums[K] + tl.where(m_row, ring[HALF], 0.0),)
            if GLU:
                share = b_grad * gates[u]
                tl.store(p_out + u * WIDTH + D, (frames[u] * (b_grad - share)).to(x.dtype.element_ty), mask=m_row)
                b_grad = share
            tl.store(p_out + u * WIDTH, b_grad.to(x.dtype.element_ty), mask=m_row)
    for i_block in range(0, tl.cdiv(K + 1, UNROLL)):
        for u in tl.static_range(UNROLL):
            if u < K + 1:
                tl.store(p_sum + (i_block * UNROLL + u) * D, sums[u], mask=m_d & (i_block * UNROLL + u <= K))
        sums = sums[UNROLL:] + sums[:UNROLL]


@triton.jit
def _place(num_frames, segment, D: tl.constexpr, BD: tl.constexpr):
    """Block of channels, utterance (int64), first frame and one past the last."""
    i_d = tl.program_id(0) % tl.cdiv(D, BD)
    i_row = tl.program_id(0) // tl.cdiv(D, BD)
    segments = tl.cdiv(num_frames, segment)
    begin = i_row % segments * segment
    return i_d, (i_row // segments).to(tl.int64), begin, tl.minimum(begin + segment, num_frames)


@triton.jit
def _limits(lengths, chunk_sizes, chunk_size, i_b):
    """Length and chunk size of the utterance."""
    chunk = chunk_size
    if chunk_sizes is not None:
        chunk = tl.load(chunk_sizes + i_b).to(tl.int32)
    return tl.load(lengths + i_b).to(tl.int32), chunk


@triton.jit
def _taps(p_taps, m_d, K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr):
    taps = _zeros(K, BD)
    for i_block in range(0, tl.cdiv(K, UNROLL)):
        for u in tl.static_range(UNROLL):
            j = K - tl.cdiv(K, UNROLL) * UNROLL + i_block * UNROLL + u
            taps = (taps + (tl.load(p_taps + j * D, mask=m_d & (j >= 0), other=0.0),))[1:]
    return taps


@triton.jit
def _load(p_row, mask, D: tl.constexpr, GLU: tl.constexpr):
    """A frame: the values and, with a GLU, what gates them."""
    value = tl.load(p_row, mask=mask, other=0.0)
    gate = value
    if GLU:
        gate = tl.load(p_row + D, mask=mask, other=0.0)
    return value, gate


@triton.jit
def _gated(row, GLU: tl.constexpr):
    value = row[0].to(tl.float32)
    if GLU:
        value = value / _gate_inverse(row[1])
    return value


@triton.jit
def _gate_inverse(gate):
    """1 / sigmoid."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    return 1 + tl.exp2(gate.to(tl.float32) * -LOG2_E)


@triton.jit
def _zeros(SIZE: tl.constexpr, BD: tl.constexpr):
    rows = ()
    for _ in tl.static_range(SIZE):
        rows = rows + (tl.zeros([BD], tl.float32),)
    return rows


def chunk_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor, chunk_size: int | Tensor, glu: bool
) -> Tensor:
    """Chunk sizes are an int or (B, 1)."""
    size, sizes = split(chunk_size)
    return torch.ops.sumix.chunk_conv1d(x, weight, bias, lengths, size, sizes, glu)


@library.custom_op("sumix::chunk_conv1d", mutates_args=())
def _chunk_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor, size: int, sizes: Tensor | None, glu: bool
) -> Tensor:
    x = _dense_channels(x)
    (B, T, _), (D, k) = x.shape, weight.shape
    y = x.new_empty(B, T, D)
    segment = _segment(B, T, D, _channels(k, 2))
    if y.numel():
        with on_device(x):
            _forward(k)[lambda meta: (cdiv(D, meta["BD"]) * cdiv(T, segment) * B,)](
                x, _columns(weight), None if bias is None else bias.contiguous(), lengths.contiguous(),
                None if sizes is None else sizes.contiguous(), y, T, segment, size, x.stride(0), x.stride(1),
                K=k, D=D, GLU=glu,
            )  # fmt: skip
    return y


@_chunk_conv1d.register_fake
def _(x, weight, bias, lengths, size, sizes, glu):
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[0])


@library.custom_op("sumix::chunk_conv1d_backward", mutates_args=())
def _chunk_conv1d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, lengths: Tensor, size: int, sizes: Tensor | None, glu: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and in fp32 of the taps, (k + 1, D), where the last row is the bias's."""
    x, grad = _dense_channels(x), _dense_channels(grad)
    (B, T, width), (D, k) = x.shape, weight.shape
    segment = _segment(B, T, D, _channels(k, 3))
    grad_x = x.new_empty(B, T, width)
    sums = x.new_empty((B * cdiv(T, segment), k + 1, D), dtype=torch.float32)
    if grad_x.numel():
        with on_device(x):
            _backward(k)[lambda meta: (cdiv(D, meta["BD"]) * len(sums),)](
                grad, x, _columns(weight), lengths.contiguous(), None if sizes is None else sizes.contiguous(),
                grad_x, sums, T, segment, size, grad.stride(0), grad.stride(1), x.stride(0), x.stride(1),
                K=k, D=D, GLU=glu,
            )  # fmt: skip
    return grad_x, sums.sum(0)


@_chunk_conv1d_backward.register_fake
def _(grad, x, weight, lengths, size, sizes, glu):
    return x.new_empty(x.shape), x.new_empty((weight.shape[1] + 1, weight.shape[0]), dtype=torch.float32)


def _setup_chunk_conv1d(ctx, inputs, output) -> None:
    x, weight, bias, lengths, ctx.size, sizes, ctx.glu = inputs
    ctx.save_for_backward(x, weight, lengths, sizes)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward_chunk_conv1d(ctx, grad):
    x, weight, lengths, sizes = ctx.saved_tensors
    grad_x, grad_taps = torch.ops.sumix.chunk_conv1d_backward(grad, x, weight, lengths, ctx.size, sizes, ctx.glu)
    grad_bias = None if ctx.bias_dtype is None else grad_taps[-1].to(ctx.bias_dtype)
    return grad_x, grad_taps[:-1].T.to(weight.dtype), grad_bias, None, None, None, None


_chunk_conv1d.register_autograd(_backward_chunk_conv1d, setup_context=_setup_chunk_conv1d)


@functools.cache
def _forward(k: int) -> TunedKernel:
    return tuned(_configs(k, 2), ["K", "D", "GLU"])(_forward_kernel)


@functools.cache
def _backward(k: int) -> TunedKernel:
    return tuned(_configs(k, 3), ["K", "D", "GLU"])(_backward_kernel)


def _configs(k: int, rows_per_tap: int) -> list[triton.Config]:
    """One warp a program, so that few channels do not leave threads without work. All of them sum in the same order."""
    BD, most = _channels(k, rows_per_tap), 8 if k * rows_per_tap <= 144 else 4
    blocks = [(BD, most), (BD, 4), (max(32, BD // 2), most)]
    return [config(num_warps=1, BD=BD, UNROLL=unroll) for BD, unroll in dict.fromkeys(blocks)]


def _channels(k: int, rows_per_tap: int) -> int:
    """Channels of a program: up to 4 a thread, if its taps, the ring (and sums) and the rows to come fit registers."""
    registers = k * rows_per_tap + 16 * (rows_per_tap - 1)
    return next((32 * n for n in (4, 2) if n * registers <= 200), 32)


def _segment(B: int, T: int, D: int, BD: int) -> int:
    """Frames of a program: `PROGRAMS` of them, so that the memory for their sums does not grow with T."""
    segments = cdiv(PROGRAMS, max(1, B * cdiv(D, BD)))
    return max(cdiv(T, segments), MIN_SEGMENT)


def _dense_channels(x: Tensor) -> Tensor:
    """x with channels side by side in memory: a copy where they are not, since a row could not be read in one go."""
    return x if x.stride(2) == 1 else x.contiguous()


def _columns(weight: Tensor) -> Tensor:
    """Taps (k, D) fp32."""
    return weight.new_empty(weight.shape[::-1], dtype=torch.float32).copy_(weight.T)
