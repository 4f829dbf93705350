"""The recursion of lattice.py as one Triton program an utterance: rows in registers, a loop over the steps.

B batch, S symbols, T frames, R rows a frame that arcs are given for: all S+1, or those from ``start[b, t]`` on. Arcs
are addressed by their source node (row, frame), whatever the strides. At one step d the program touches, for regular,
an anti-diagonal; `lattice_strides` lay tensors out so that this is a line of memory.

Scores are summed in fp64, since they reach thousands while only differences count; exponentials and logarithms are of
differences, in fp32. Of each node the way back needs only its lead, score by symbol
less score by frame, kept in fp32; the shares of the two arcs are made to add up to the node's occupation.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from sumix_kernels.launch import config, on_device, power_of_2, tuned

_STRIDES = [f"{name}_stride_{axis}" for name in ("px", "py", "out") for axis in "bst"]
_CONFIGS = [config(num_warps=4), config(num_warps=1), config(num_warps=2), config(num_warps=8)]


@triton.jit
def _source(o_s, i_step, start, s0, t0, s1, t1, num_rows, REGULAR: tl.constexpr, PRUNED: tl.constexpr):
    """Of the nodes o_s of a step: frame, row among the given ones, whether a frame arc leaves it."""
    t = i_step - o_s if REGULAR else i_step + tl.zeros_like(o_s)
    m_source = (o_s >= s0) & (o_s <= s1) & (t >= t0) & (t < t1)
    row = o_s
    if PRUNED:
        row = o_s - tl.load(start + t, mask=m_source, other=0)
        m_source = m_source & (row >= 0) & (row < num_rows)
    return t, row, m_source


@tuned(_CONFIGS, key=["BS"])
@triton.jit(do_not_specialize=["delay_penalty", "num_rows", "num_frames", *_STRIDES])
def lattice_kernel(
    px,
    py,
    start,
    boundary,
    log_prob,
    px_occupation,
    py_occupation,
    leads,
    delay_penalty,
    num_rows,
    num_frames,
    px_stride_b,
    px_stride_s,
    px_stride_t,
    py_stride_b,
    py_stride_s,
    py_stride_t,
    out_stride_b,
    out_stride_s,
    out_stride_t,
    REGULAR: tl.constexpr,
    CONSTRAINED: tl.constexpr,
    PRUNED: tl.constexpr,
    WITH_OCCUPATIONS: tl.constexpr,
    BS: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    s0 = tl.load(boundary + 4 * i_b)
    t0 = tl.load(boundary + 4 * i_b + 1)
    s1 = tl.load(boundary + 4 * i_b + 2)
    t1 = tl.load(boundary + 4 * i_b + 3)
    first, last = t0, t1
    if REGULAR:
        first, last = s0 + t0, s1 + t1
    px += i_b * px_stride_b
    py += i_b * py_stride_b
    if PRUNED:
        start += i_b * num_frames
    o_s = tl.arange(0, BS).to(tl.int64)
    o_below = tl.maximum(tl.arange(0, BS) - 1, 0)
    o_above = tl.minimum(tl.arange(0, BS) + 1, BS - 1)
    middle = (t1.to(tl.float32) - 1.0) * 0.5
    minus_inf = float("-inf")

    t, row, m = _source(o_s, first, start, s0, t0, s1, t1, num_rows, REGULAR, PRUNED)
    b_x = tl.load(px + row * px_stride_s + t * px_stride_t, mask=m & (o_s < s1), other=minus_inf)
    b_y = tl.load(py + row * py_stride_s + t * py_stride_t, mask=m, other=minus_inf)
    b_x += delay_penalty * (middle - t.to(tl.float32))
    b_q = tl.where(o_s == s0, 0.0, minus_inf).to(tl.float64)
    b_lead = tl.zeros([BS], tl.float32)
    for i_step in range(first, last):
        # The next step's arcs are fetched while this one's are added.
        t, row, m = _source(o_s, i_step + 1, start, s0, t0, s1, t1, num_rows, REGULAR, PRUNED)
        b_next_x = tl.load(px + row * px_stride_s + t * px_stride_t, mask=m & (o_s < s1), other=minus_inf)
        b_next_y = tl.load(py + row * py_stride_s + t * py_stride_t, mask=m, other=minus_inf)
        b_next_x += delay_penalty * (middle - t.to(tl.float32))

        b_by_symbol = tl.gather(b_q + b_x.to(tl.float64), o_below, 0)
        b_by_symbol = tl.where(o_s > s0, b_by_symbol, minus_inf)
        if CONSTRAINED:
            b_by_symbol += b_y.to(tl.float64)
        b_by_frame = b_q + b_y.to(tl.float64)
        b_best = tl.maximum(b_by_symbol, b_by_frame)
        b_lead = (b_by_symbol - tl.where(b_best == minus_inf, 0.0, b_by_frame)).to(tl.float32)
        b_q = b_best + tl.log(1.0 + tl.exp(-tl.abs(b_lead))).to(tl.float64)
        if WITH_OCCUPATIONS:
            o_node = i_b * out_stride_b + row * out_stride_s + t * out_stride_t
            tl.store(leads + o_node, b_lead, mask=m)
        b_x = b_next_x
        b_y = b_next_y

    b_score = tl.sum(tl.where(o_s == s1, b_q, 0.0), 0)
    tl.store(log_prob + i_b, b_score.to(tl.float32))
    if WITH_OCCUPATIONS:
        tl.debug_barrier()  # other threads may read a lead than wrote it
        b_occupation = tl.where((o_s == s1) & (b_q > minus_inf), 1.0, 0.0).to(tl.float64)
        for i_back in range(0, last - first):
            t, row, m = _source(o_s, last - 1 - i_back, start, s0, t0, s1, t1, num_rows, REGULAR, PRUNED)
            o_node = i_b * out_stride_b + row * out_stride_s + t * out_stride_t
            b_next_lead = tl.load(leads + o_node, mask=m, other=0.0)

            b_less = tl.exp(-tl.abs(b_lead))
            b_less = (b_less / (1.0 + b_less)).to(tl.float64)
            b_by_symbol = b_occupation * tl.where(b_lead > 0.0, 1.0 - b_less, b_less)
            b_by_frame = b_occupation * tl.where(b_lead > 0.0, b_less, 1.0 - b_less)
            b_by_symbol = tl.where(o_s < BS - 1, tl.gather(b_by_symbol, o_above, 0), 0.0)
            tl.store(px_occupation + o_node, b_by_symbol.to(tl.float32), mask=m & (o_s < s1))
            tl.store(py_occupation + o_node, b_by_frame.to(tl.float32), mask=m)
            b_occupation = b_by_symbol + b_by_frame
            b_lead = b_next_lead


def lattice_strides(num_rows: int, num_frames: int, diagonal: bool) -> tuple[int, int, int]:
    """Strides (batch, row, frame) that make neighbours of a frame's rows or, ``diagonal``, of an anti-diagonal's."""
    if diagonal:
        return (num_frames + num_rows - 1) * num_rows, num_rows + 1, num_rows
    return num_frames * num_rows, 1, num_rows


def lattice_log_prob(
    px: Tensor,
    py: Tensor,
    start: Tensor | None,
    num_symbols: int,
    boundary: Tensor,
    rnnt_type: str,
    delay_penalty: float = 0.0,
    with_occupations: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """`lattice.lattice_log_prob` of fp32 px (B, S, T), py (B, S+1, T).

    Pruned: of px, py (B, R, T), where row r of frame t is lattice row start[b, t] + r; start (B, T) never decreases.
    Without ``with_occupations``, and where no gradient is asked for, the occupations are empty.
    """
    with_occupations |= torch.is_grad_enabled() and (px.requires_grad or py.requires_grad)
    return _lattice(px, py, start, num_symbols, boundary, rnnt_type, float(delay_penalty), with_occupations)


@library.custom_op("sumix::rnnt_lattice", mutates_args=())
def _lattice(
    px: Tensor,
    py: Tensor,
    start: Tensor | None,
    num_symbols: int,
    boundary: Tensor,
    rnnt_type: str,
    delay_penalty: float,
    with_occupations: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    B, num_rows, T = py.shape
    regular = rnnt_type == "regular"
    strides = lattice_strides(num_rows, T, regular and start is None)
    log_prob = py.new_empty(B)
    px_occupation, py_occupation, leads = (py.new_empty(0) for _ in range(3))
    if with_occupations:
        size = B * strides[0]
        px_occupation = py.new_zeros(size).as_strided(px.shape, strides)
        py_occupation = py.new_zeros(size).as_strided(py.shape, strides)
        leads = py.new_empty(size)
    start = start if start is None else start.contiguous()
    with on_device(py):
        lattice_kernel[(B,)](
            px,
            py,
            start,
            boundary.contiguous(),
            log_prob,
            px_occupation,
            py_occupation,
            leads,
            delay_penalty,
            num_rows,
            T,
            *px.stride(),
            *py.stride(),
            *strides,
            REGULAR=regular,
            CONSTRAINED=rnnt_type == "constrained",
            PRUNED=start is not None,
            WITH_OCCUPATIONS=with_occupations,
            BS=power_of_2(num_symbols + 1, least=16),
        )
    return log_prob, px_occupation, py_occupation


@_lattice.register_fake
def _(px, py, start, num_symbols, boundary, rnnt_type, delay_penalty, with_occupations):
    log_prob = py.new_empty(py.shape[0])
    if not with_occupations:
        return log_prob, py.new_empty(0), py.new_empty(0)
    strides = lattice_strides(py.shape[1], py.shape[2], rnnt_type == "regular" and start is None)
    return log_prob, py.new_empty_strided(px.shape, strides), py.new_empty_strided(py.shape, strides)


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.constrained = inputs[5] == "constrained"
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 8
    px_grad, py_grad = (grad[:, None, None] * occupation for occupation in ctx.saved_tensors)
    if ctx.constrained:  # a symbol arc is paid for with the frame arc of the row that it leads to
        py_grad[:, 1:] += px_grad[:, : py_grad.shape[1] - 1]
    return px_grad, py_grad, *(None,) * 6


_lattice.register_autograd(_backward, setup_context=_setup_context)
