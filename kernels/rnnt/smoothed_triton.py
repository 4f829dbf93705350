"""The simple transducer's arc log-probabilities (smoothed.py) in Triton, without exponentials in memory.

B batch, S symbols, T frames, V vocabulary. The normaliser's matrix product takes the exponentials of a tile of am and
of lm as they are loaded, and again in the backward pass: nothing of size (B, T, V) is stored but am's gradient.
Products are ``tf32x3``, three tensor core products that are as good as fp32: the losses of a training step are summed
from the logarithms of some hundred of these sums, and plain tf32 would show in their fifth digit.

Frames and symbols outside an utterance's boundary are not read, and get zero gradients.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from sumix_kernels.launch import cdiv, config, on_device, tuned
from sumix_kernels.rnnt.lattice_triton import lattice_strides
from sumix_kernels.rnnt.peaks_triton import find_peaks

# The sum over the vocabulary has the smallest normal number added, and all of it is scaled by _UP: see smoothed.py.
_UP = tl.constexpr(2.0**60)
_UP_TINY = tl.constexpr(2.0**60 * 2.0**-126)
_DOWN = tl.constexpr(2.0**-60)

# Three products for one need many registers: larger tiles, or more rows at once, spill them.
_ARCS = [
    config(BS=64, BT=64, BV=16, num_warps=8),
    config(BS=32, BT=64, BV=32, num_warps=4),
]
_AM_GRAD = [
    config(BS=16, BT=64, BV=64, num_warps=8, num_stages=1),
    config(BS=16, BT=32, BV=64, num_warps=4, num_stages=1),
    config(BS=16, BT=32, BV=32, num_warps=4),
]
_LM_GRAD = [
    config(BS=64, BT=16, BV=64, num_warps=8),
    config(BS=32, BT=16, BV=64, num_warps=4),
]


@triton.jit
def _tile(i_pid, num_rows, num_columns, BROWS: tl.constexpr, BCOLUMNS: tl.constexpr):
    """Batch member, row block and column block of a program, columns varying fastest."""
    columns = tl.cdiv(num_columns, BCOLUMNS)
    rows = tl.cdiv(num_rows, BROWS)
    return i_pid // (rows * columns), i_pid // columns % rows, i_pid % columns


@triton.jit
def _extent(boundary, i_b):
    """Begin and end of an utterance's frames, and of its rows."""
    boundary += 4 * i_b
    return tl.load(boundary + 1), tl.load(boundary + 3), tl.load(boundary), tl.load(boundary + 2) + 1


@triton.jit
def _within(i, i_tile):
    """A position seen from a tile's begin, in 32 bits."""
    return tl.maximum(tl.minimum(i - i_tile, 1 << 20), -(1 << 20)).to(tl.int32)


@tuned(_ARCS, key=["V"])
@triton.jit(
    do_not_specialize=["sum_scale", "lm_scale", "num_symbols", "num_frames", "stride_b", "stride_s", "stride_t"]
)
def arcs_kernel(
    lm,
    am,
    symbols,
    boundary,
    lm_peak,
    lm_norm,
    am_peak,
    px,
    py,
    total,
    sum_scale,
    lm_scale,
    num_symbols,
    num_frames,
    V,
    stride_b,
    stride_s,
    stride_t,
    BLANK: tl.constexpr,
    BS: tl.constexpr,
    BT: tl.constexpr,
    BV: tl.constexpr,
):
    """px, py and the normalisers' sums `total` (B, S+1, T), a tile of rows and frames a program."""
    i_b, i_t, i_s = _tile(tl.program_id(0).to(tl.int64), num_frames, num_symbols + 1, BT, BS)
    t0, t1, s0, s1 = _extent(boundary, i_b)
    # 64 bits to the tile, 32 within.
    i_frame, i_node = i_b * num_frames + i_t * BT, i_b * (num_symbols + 1) + i_s * BS
    am, lm = am + i_frame * V, lm + i_node * V
    o_t, o_s = tl.arange(0, BT), tl.arange(0, BS)
    t0, t1, s0, s1 = _within(t0, i_t * BT), _within(t1, i_t * BT), _within(s0, i_s * BS), _within(s1, i_s * BS)
    m_t, m_s = (o_t >= t0) & (o_t < t1), (o_s >= s0) & (o_s < s1)
    b_am_peak = tl.load(am_peak + i_frame + o_t, mask=m_t, other=0.0)
    b_lm_peak = tl.load(lm_peak + i_node + o_s, mask=m_s, other=0.0)

    in_use = (t1 > 0) & (t0 < BT) & (s1 > 0) & (s0 < BS)
    b_total = tl.zeros([BS, BT], tl.float32)
    for i_v in range(0, tl.where(in_use, V, 0), BV):
        o_v = i_v + tl.arange(0, BV)
        m_v = o_v < V
        b_lm = tl.load(lm + o_s[:, None] * V + o_v[None], mask=m_s[:, None] & m_v[None], other=-float("inf"))
        b_am = tl.load(am + o_t[:, None] * V + o_v[None], mask=m_t[:, None] & m_v[None], other=-float("inf"))
        b_lm = tl.exp(b_lm.to(tl.float32) - b_lm_peak[:, None]) * _UP
        b_am = tl.exp(b_am.to(tl.float32) - b_am_peak[:, None])
        b_total = tl.dot(b_lm, tl.trans(b_am), b_total, input_precision="tf32x3")
    b_total += _UP_TINY

    m = m_s[:, None] & m_t[None]
    tl.store(total + i_node * num_frames + i_t * BT + o_s[:, None] * num_frames + o_t[None], b_total, mask=m)
    b_log_total = tl.log(b_total * _DOWN)
    # Each part less its own maximum: huge logits keep the digits of their differences.
    b_lm = tl.load(lm + o_s * V + BLANK, mask=m_s, other=0.0).to(tl.float32) - b_lm_peak
    b_am = tl.load(am + o_t * V + BLANK, mask=m_t, other=0.0).to(tl.float32) - b_am_peak
    b_lm_norm = tl.load(lm_norm + i_node + o_s, mask=m_s, other=0.0)
    i_out = i_b * stride_b + i_s * BS * stride_s + i_t * BT * stride_t
    o_out = o_s[:, None] * stride_s + o_t[None] * stride_t
    b_py = sum_scale * (b_lm[:, None] + b_am[None] - b_log_total) + lm_scale * (b_lm - b_lm_norm)[:, None]
    tl.store(py + i_out + o_out, b_py, mask=m)

    m_s = m_s & (o_s < s1 - 1)
    m = m_s[:, None] & m_t[None]
    b_symbol = tl.load(symbols + i_b * num_symbols + i_s * BS + o_s, mask=m_s, other=0).to(tl.int32)
    b_lm = tl.load(lm + o_s * V + b_symbol, mask=m_s, other=0.0).to(tl.float32) - b_lm_peak
    b_am = tl.load(am + o_t[None] * V + b_symbol[:, None], mask=m, other=0.0).to(tl.float32) - b_am_peak[None]
    b_px = sum_scale * (b_lm[:, None] + b_am - b_log_total) + lm_scale * (b_lm - b_lm_norm)[:, None]
    tl.store(px + i_out + o_out, b_px, mask=m)


@triton.jit
def _arc_grads(px_grad, py_grad, total, i_px, i_py, o_s, o_t, m_s, m_t, s1, num_frames):
    """Gradients of a tile's arcs, and (negated) of what their normalisers' logarithms are taken of."""
    m = m_s[:, None] & m_t[None]
    o = o_s[:, None] * num_frames + o_t[None]
    b_py = tl.load(py_grad + i_py + o, mask=m, other=0.0)
    b_total = tl.load(total + i_py + o, mask=m, other=1.0)
    b_px = tl.load(px_grad + i_px + o, mask=m & (o_s < s1 - 1)[:, None], other=0.0)
    return b_px, b_py, (b_px + b_py) / b_total


@tuned(_AM_GRAD, key=["V"])
@triton.jit(do_not_specialize=["sum_scale", "num_symbols", "num_frames"])
def am_grad_kernel(
    px_grad,
    py_grad,
    total,
    lm,
    am,
    symbols,
    boundary,
    lm_peak,
    am_peak,
    am_best,
    am_grad,
    sum_scale,
    num_symbols,
    num_frames,
    V,
    BLANK: tl.constexpr,
    BS: tl.constexpr,
    BT: tl.constexpr,
    BV: tl.constexpr,
):
    """A tile of am's gradient (frames by vocabulary) a program, by a sum over rows."""
    i_b, i_t, i_v = _tile(tl.program_id(0).to(tl.int64), num_frames, V, BT, BV)
    t0, t1, s0, s1 = _extent(boundary, i_b)
    o_t, o_v = tl.arange(0, BT), (i_v * BV).to(tl.int32) + tl.arange(0, BV)
    last_frame = num_frames - i_t * BT
    t0, t1 = _within(t0, i_t * BT), _within(t1, i_t * BT)
    m_t, m_v = (o_t >= t0) & (o_t < t1), o_v < V
    i_frame = i_b * num_frames + i_t * BT
    b_exp = tl.zeros([BT, BV], tl.float32)
    b_symbols = tl.zeros([BT, BV], tl.float32)
    b_blank = tl.zeros([BT], tl.float32)
    b_ratios = tl.zeros([BT], tl.float32)
    for i_s in range(s0, tl.where((t1 > 0) & (t0 < BT), s1, 0), BS):
        o_s = tl.arange(0, BS)
        left = _within(s1, i_s)
        m_s = o_s < left
        i_node, i_symbol = i_b * (num_symbols + 1) + i_s, i_b * num_symbols + i_s
        i_py, i_px = i_node * num_frames + i_t * BT, i_symbol * num_frames + i_t * BT
        b_px, b_py, b_ratio = _arc_grads(px_grad, py_grad, total, i_px, i_py, o_s, o_t, m_s, m_t, left, num_frames)
        p_lm = lm + i_node * V + o_s[:, None] * V + o_v[None]
        b_lm = tl.load(p_lm, mask=m_s[:, None] & m_v[None], other=-float("inf"))
        b_lm_peak = tl.load(lm_peak + i_node + o_s, mask=m_s, other=0.0)
        b_lm = tl.exp(b_lm.to(tl.float32) - b_lm_peak[:, None])
        b_exp = tl.dot(tl.trans(b_ratio), b_lm, b_exp, input_precision="tf32x3")
        # The scatter onto the symbols as a product with their one-hot vectors: no atomics.
        b_symbol = tl.load(symbols + i_symbol + o_s, mask=o_s < left - 1, other=-1)
        b_hot = (b_symbol.to(tl.int32)[:, None] == o_v[None]).to(tl.float32)
        b_symbols = tl.dot(tl.trans(b_px), b_hot, b_symbols, input_precision="tf32x3")
        b_blank += tl.sum(b_py, 0)
        b_ratios += tl.sum(b_ratio, 0)

    m = m_t[:, None] & m_v[None]
    o_tile = o_t[:, None] * V + o_v[None]
    b_am = tl.load(am + i_frame * V + o_tile, mask=m, other=-float("inf")).to(tl.float32)
    b_am = tl.exp(b_am - tl.load(am_peak + i_frame + o_t, mask=m_t, other=0.0)[:, None])
    b_best = tl.load(am_best + i_frame + o_t, mask=m_t, other=0)
    b_grad = b_symbols - b_exp * b_am * _UP
    b_grad += tl.where(o_v[None] == BLANK, b_blank[:, None], 0.0)
    b_grad -= tl.where(o_v[None] == b_best[:, None], b_ratios[:, None] * _UP_TINY, 0.0)
    m = (o_t < last_frame)[:, None] & m_v[None]
    tl.store(am_grad + i_frame * V + o_tile, (b_grad * sum_scale).to(am_grad.dtype.element_ty), mask=m)


@tuned(_LM_GRAD, key=["V"])
@triton.jit(do_not_specialize=["sum_scale", "lm_scale", "num_symbols", "num_frames"])
def lm_grad_kernel(
    px_grad,
    py_grad,
    total,
    lm,
    am,
    symbols,
    boundary,
    lm_peak,
    lm_best,
    lm_norm,
    am_peak,
    lm_grad,
    sum_scale,
    lm_scale,
    num_symbols,
    num_frames,
    V,
    BLANK: tl.constexpr,
    BS: tl.constexpr,
    BT: tl.constexpr,
    BV: tl.constexpr,
):
    """A tile of lm's gradient (rows by vocabulary) a program, by a sum over frames."""
    i_b, i_s, i_v = _tile(tl.program_id(0).to(tl.int64), num_symbols + 1, V, BS, BV)
    t0, t1, s0, s1 = _extent(boundary, i_b)
    o_s, o_v = tl.arange(0, BS), (i_v * BV).to(tl.int32) + tl.arange(0, BV)
    last_row = num_symbols + 1 - i_s * BS
    s0, s1 = _within(s0, i_s * BS), _within(s1, i_s * BS)
    m_s, m_v = (o_s >= s0) & (o_s < s1), o_v < V
    i_node, i_symbol = i_b * (num_symbols + 1) + i_s * BS, i_b * num_symbols + i_s * BS
    b_exp = tl.zeros([BS, BV], tl.float32)
    b_px_sum = tl.zeros([BS], tl.float32)
    b_py_sum = tl.zeros([BS], tl.float32)
    b_ratios = tl.zeros([BS], tl.float32)
    for i_t in range(t0, tl.where((s1 > 0) & (s0 < BS), t1, 0), BT):
        o_t = tl.arange(0, BT)
        m_t = o_t < _within(t1, i_t)
        i_frame, i_py, i_px = i_b * num_frames + i_t, i_node * num_frames + i_t, i_symbol * num_frames + i_t
        b_px, b_py, b_ratio = _arc_grads(px_grad, py_grad, total, i_px, i_py, o_s, o_t, m_s, m_t, s1, num_frames)
        p_am = am + i_frame * V + o_t[:, None] * V + o_v[None]
        b_am = tl.load(p_am, mask=m_t[:, None] & m_v[None], other=-float("inf"))
        b_am_peak = tl.load(am_peak + i_frame + o_t, mask=m_t, other=0.0)
        b_am = tl.exp(b_am.to(tl.float32) - b_am_peak[:, None])
        b_exp = tl.dot(b_ratio, b_am, b_exp, input_precision="tf32x3")
        b_px_sum += tl.sum(b_px, 1)
        b_py_sum += tl.sum(b_py, 1)
        b_ratios += tl.sum(b_ratio, 1)

    o_tile = o_s[:, None] * V + o_v[None]
    b_lm = tl.load(lm + i_node * V + o_tile, mask=m_s[:, None] & m_v[None], other=-float("inf")).to(tl.float32)
    b_lm -= tl.load(lm_peak + i_node + o_s, mask=m_s, other=0.0)[:, None]
    b_lm_norm = tl.load(lm_norm + i_node + o_s, mask=m_s, other=0.0)
    b_best = tl.load(lm_best + i_node + o_s, mask=m_s, other=0)
    b_symbol = tl.load(symbols + i_symbol + o_s, mask=m_s & (o_s < s1 - 1), other=-1).to(tl.int32)
    b_grad = -sum_scale * b_exp * (tl.exp(b_lm) * _UP)
    b_grad -= tl.where(o_v[None] == b_best[:, None], (sum_scale * b_ratios * _UP_TINY)[:, None], 0.0)
    b_grad -= lm_scale * (b_px_sum + b_py_sum)[:, None] * tl.exp(b_lm - b_lm_norm[:, None])
    scale = sum_scale + lm_scale
    b_grad += tl.where(o_v[None] == b_symbol[:, None], scale * b_px_sum[:, None], 0.0)
    b_grad += tl.where(o_v[None] == BLANK, scale * b_py_sum[:, None], 0.0)
    m = (o_s < last_row)[:, None] & m_v[None]
    tl.store(lm_grad + i_node * V + o_tile, b_grad.to(lm_grad.dtype.element_ty), mask=m)


@library.custom_op("sumix::rnnt_smoothed_log_probs", mutates_args=())
def smoothed_log_probs(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    boundary: Tensor,
    blank: int,
    sum_scale: float,
    lm_scale: float,
    diagonal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """px (B, S, T), py (B, S+1, T): ``sum_scale`` log softmax(lm + am) + ``lm_scale`` log softmax(lm), in fp32.

    Only nodes within the boundary are computed. Strides are `lattice_strides`. For the backward pass: the normalisers'
    sums (B, S+1, T), and of each row of lm and am maximum and log-normaliser (2, rows), and where the maximum is.
    """
    lm, am, symbols, boundary = (x.contiguous() for x in (lm, am, symbols, boundary))
    (B, T, V), S = am.shape, symbols.shape[1]
    strides = lattice_strides(S + 1, T, diagonal)
    px, py, total, values, places = _outputs(lm, am, S, strides)
    rows = values.shape[1] - B * T
    (lm_peak, am_peak), (lm_norm, am_norm) = (x.split([rows, B * T]) for x in values)
    lm_best, am_best = places.split([rows, B * T])
    with on_device(am):
        find_peaks(lm, boundary, lm_peak, lm_best, lm_norm, of_frames=False)
        find_peaks(am, boundary, am_peak, am_best, am_norm, of_frames=True)
        if am_peak.numel():
            grid = lambda tile: (B * cdiv(T, tile["BT"]) * cdiv(S + 1, tile["BS"]),)  # noqa: E731
            arcs_kernel[grid](
                lm, am, symbols, boundary, lm_peak, lm_norm, am_peak, px, py, total,
                sum_scale, lm_scale, S, T, V, *strides, BLANK=blank,
            )  # fmt: skip
    return px, py, total, values, places


def _outputs(lm: Tensor, am: Tensor, S: int, strides: tuple[int, int, int]) -> tuple[Tensor, ...]:
    (B, T, _), rows = am.shape, am.shape[0] * (am.shape[1] + lm.shape[1])
    px, py = (am.new_empty_strided((B, s, T), strides, dtype=torch.float32) for s in (S, S + 1))
    total = am.new_empty(B, S + 1, T, dtype=torch.float32)
    return px, py, total, total.new_empty(2, rows), total.new_empty(rows, dtype=torch.int32)


@smoothed_log_probs.register_fake
def _(lm, am, symbols, boundary, blank, sum_scale, lm_scale, diagonal):
    S = symbols.shape[1]
    return _outputs(lm, am, S, lattice_strides(S + 1, am.shape[1], diagonal))


@library.custom_op("sumix::rnnt_smoothed_log_probs_backward", mutates_args=())
def _smoothed_backward(
    px_grad: Tensor,
    py_grad: Tensor,
    total: Tensor,
    values: Tensor,
    places: Tensor,
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    boundary: Tensor,
    blank: int,
    sum_scale: float,
    lm_scale: float,
) -> tuple[Tensor, Tensor]:
    px_grad, py_grad, lm, am, symbols, boundary = (
        x.contiguous() for x in (px_grad, py_grad, lm, am, symbols, boundary)
    )
    (B, T, V), S = am.shape, symbols.shape[1]
    lm_grad, am_grad = lm.new_empty(lm.shape), am.new_empty(am.shape)
    rows = lm.shape[0] * lm.shape[1]
    (lm_peak, am_peak), (lm_norm, _) = (x.split([rows, B * T]) for x in values)
    lm_best, am_best = places.split([rows, B * T])
    with on_device(am):
        if am_grad.numel():
            grid = lambda tile: (B * cdiv(T, tile["BT"]) * cdiv(V, tile["BV"]),)  # noqa: E731
            am_grad_kernel[grid](
                px_grad, py_grad, total, lm, am, symbols, boundary, lm_peak, am_peak, am_best, am_grad,
                sum_scale, S, T, V, BLANK=blank,
            )  # fmt: skip
        if lm_grad.numel():
            grid = lambda tile: (B * cdiv(S + 1, tile["BS"]) * cdiv(V, tile["BV"]),)  # noqa: E731
            lm_grad_kernel[grid](
                px_grad, py_grad, total, lm, am, symbols, boundary, lm_peak, lm_best, lm_norm, am_peak, lm_grad,
                sum_scale, lm_scale, S, T, V, BLANK=blank,
            )  # fmt: skip
    return lm_grad, am_grad


@_smoothed_backward.register_fake
def _(px_grad, py_grad, total, values, places, lm, am, symbols, boundary, blank, sum_scale, lm_scale):
    return lm.new_empty(lm.shape), am.new_empty(am.shape)


def _setup_context(ctx, inputs, output):
    ctx.options = inputs[4:7]
    ctx.save_for_backward(*output[2:], *inputs[:4])
    ctx.mark_non_differentiable(*output[2:])


def _backward(ctx, px_grad, py_grad, *_):
    return *_smoothed_backward(px_grad, py_grad, *ctx.saved_tensors, *ctx.options), *(None,) * 6


smoothed_log_probs.register_autograd(_backward, setup_context=_setup_context)
