"""pruning.prune_ranges in two Triton launches: the best rows of each frame, then one walk back over the frames."""

import triton
import triton.language as tl
from torch import Tensor, library

from sumix_kernels.launch import cdiv, on_device, power_of_2

_BT = 128


@triton.jit(
    do_not_specialize=[
        *("num_starts", "num_frames", "px_stride_b", "px_stride_s", "px_stride_t"),
        *("py_stride_b", "py_stride_s", "py_stride_t"),
    ]
)
def start_kernel(
    px_grad,
    py_grad,
    boundary,
    start,
    num_starts,
    num_frames,
    px_stride_b,
    px_stride_s,
    px_stride_t,
    py_stride_b,
    py_stride_s,
    py_stride_t,
    R: tl.constexpr,
    BT: tl.constexpr,
):
    """First of the R rows that lose least occupation, for each frame by itself."""
    i_b = tl.program_id(1).to(tl.int64)
    o_t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    m_t = o_t < num_frames
    p_px = px_grad + i_b * px_stride_b + o_t * px_stride_t
    p_py = py_grad + i_b * py_stride_b + o_t * py_stride_t
    b_best = tl.full([BT], float("-inf"), tl.float32)
    b_start = tl.zeros([BT], tl.int64)
    for s in range(0, num_starts):
        # One addition after another, as in pruning.py: rounding decides between rows that keep all occupation.
        b_kept = tl.load(p_py, mask=m_t, other=0.0).to(tl.float32)
        for r in range(1, R):
            b_kept += tl.load(p_py + r * py_stride_s, mask=m_t, other=0.0).to(tl.float32)
        b_kept -= tl.load(p_px - px_stride_s, mask=m_t & (s > 0), other=0.0).to(tl.float32)
        b_start = tl.where(b_kept > b_best, s, b_start)
        b_best = tl.maximum(b_best, b_kept)
        p_px += px_stride_s
        p_py += py_stride_s
    # From its last frame on an utterance keeps its last symbols, so that the end is reached.
    last_start = tl.maximum(tl.load(boundary + 4 * i_b + 2) - R + 1, 0)
    b_start = tl.where(o_t < tl.load(boundary + 4 * i_b + 3) - 1, b_start, last_start)
    tl.store(start + i_b * num_frames + o_t, b_start, mask=m_t)


@triton.jit
def _lesser(a, b):
    return tl.minimum(a, b)


@triton.jit(do_not_specialize=["num_frames"])
def ranges_kernel(start, ranges, num_frames, R: tl.constexpr, STRIDE: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr):
    """Rows to keep: first rows moved so that they never decrease nor rise by more than STRIDE a frame."""
    i_b = tl.program_id(0).to(tl.int64)
    o_r = tl.arange(0, BR)
    far = 1 << 40
    least_start = tl.full([BT], far, tl.int64)
    least_lag = tl.full([BT], far, tl.int64)
    for i_block in range(0, tl.cdiv(num_frames, BT)):
        o_t = (tl.cdiv(num_frames, BT) - 1 - i_block) * BT + tl.arange(0, BT).to(tl.int64)
        m_t = o_t < num_frames
        b_start = tl.load(start + i_b * num_frames + o_t, mask=m_t, other=far)
        b_start = tl.minimum(tl.associative_scan(b_start, 0, _lesser, reverse=True), least_start)
        least_start = tl.zeros_like(b_start) + tl.min(b_start, 0)
        b_lag = tl.where(m_t, STRIDE * o_t - b_start, far)
        b_lag = tl.minimum(tl.associative_scan(b_lag, 0, _lesser, reverse=True), least_lag)
        least_lag = tl.zeros_like(b_lag) + tl.min(b_lag, 0)
        b_start = STRIDE * o_t - tl.maximum(b_lag, 0)
        p_ranges = ranges + ((i_b * num_frames + o_t) * R)[:, None] + o_r[None]
        tl.store(p_ranges, b_start[:, None] + o_r[None], mask=m_t[:, None] & (o_r < R)[None])


@library.custom_op("sumix::rnnt_prune_ranges", mutates_args=())
def _prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, R: int) -> Tensor:
    """pruning.prune_ranges with R = min(s_range, S+1)."""
    B, S1, T = py_grad.shape
    start, ranges = boundary.new_empty(B, T), boundary.new_empty(B, T, R)
    if ranges.numel():
        stride = R - 1 if px_grad.shape[2] == T + 1 else 1
        with on_device(py_grad):
            start_kernel[(cdiv(T, _BT), B)](
                px_grad, py_grad, boundary.contiguous(), start,
                S1 + 1 - R, T, *px_grad.stride(), *py_grad.stride(), R=R, BT=_BT,
            )  # fmt: skip
            ranges_kernel[(B,)](start, ranges, T, R=R, STRIDE=stride, BT=_BT, BR=power_of_2(R, least=2))
    return ranges


@_prune_ranges.register_fake
def _(px_grad, py_grad, boundary, R):
    return boundary.new_empty(py_grad.shape[0], py_grad.shape[2], R)


def prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """See `pruning.prune_ranges`."""
    return _prune_ranges(px_grad.detach(), py_grad.detach(), boundary, min(s_range, py_grad.shape[1]))
