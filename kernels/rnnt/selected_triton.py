"""Of each row of logits the two log-probabilities that the lattice needs, in Triton; and the way back.

B batch, T frames, R lattice rows a frame, V vocabulary. Logits come as (rows, V), row (b T + t) R + r. Frames and
symbols outside an utterance's boundary are not read, and get zero gradients. Sums are in fp32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from sumix_kernels.launch import cdiv, on_device, power_of_2
from sumix_kernels.rnnt.lattice_triton import lattice_strides

_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
_PROGRAMS = 1024  # that a gradient's launch is divided into: some for each of a GPU's processors


@triton.jit
def _targets(row, end_row, symbols, start, boundary, num_symbols, num_frames, R: tl.constexpr, BLANK: tl.constexpr):
    """Of each row: batch member, frame, row within the frame, the symbol it emits next, whether the lattice has it.

    Row numbers are of 32 bits, whose divisions are cheap.
    """
    m = row < end_row
    frame = row // R
    r = row - frame * R
    i_b = frame // num_frames
    t = frame - i_b * num_frames
    s = r
    if start is not None:
        s += tl.load(start + frame, mask=m, other=0)
    boundary += 4 * i_b
    s1 = tl.load(boundary + 2, mask=m, other=0)
    m = m & (t >= tl.load(boundary + 1, mask=m, other=0)) & (t < tl.load(boundary + 3, mask=m, other=0))
    m = m & (s >= tl.load(boundary, mask=m, other=0)) & (s <= s1)
    target = tl.load(symbols + i_b * num_symbols + s, mask=m & (s < s1), other=BLANK).to(tl.int32)
    return i_b, t, r, target, m


@triton.jit(do_not_specialize=["first_row", "end_row", "num_symbols", "num_frames", "stride_b", "stride_t", "stride_r"])
def log_probs_kernel(
    logits,
    bias,
    symbols,
    start,
    boundary,
    x,
    y,
    norm,
    first_row,
    end_row,
    num_symbols,
    num_frames,
    V,
    stride,
    stride_b,
    stride_t,
    stride_r,
    R: tl.constexpr,
    BLANK: tl.constexpr,
    BR: tl.constexpr,
    BV: tl.constexpr,
):
    """Log-probabilities x of the symbol and y of blank, and norm, of rows from first_row on: `logits` begins there."""
    i_row = tl.program_id(0) * BR
    o_r = tl.arange(0, BR)
    row = first_row + i_row + o_r
    i_b, t, r, b_target, m_r = _targets(row, end_row, symbols, start, boundary, num_symbols, num_frames, R, BLANK)
    logits += i_row.to(tl.int64) * stride
    o_r *= stride
    b_peak = tl.full([BR], _LOWEST, tl.float32)
    b_sum = tl.zeros([BR], tl.float32)
    for i_v in range(0, V, BV):
        o_v = i_v + tl.arange(0, BV)
        # The mask that can be vectorised is the stride's; what lies between V and it is dropped after.
        m = m_r[:, None] & (o_v < stride)[None]
        b_logits = tl.load(logits + o_r[:, None] + o_v[None], mask=m, other=0.0).to(tl.float32)
        b_logits = tl.where((o_v < V)[None], b_logits, _LOWEST)
        if bias is not None:
            b_logits += tl.load(bias + o_v, mask=o_v < V, other=0.0).to(tl.float32)[None]
        b_new = tl.maximum(b_peak, tl.max(b_logits, 1))
        b_exp = tl.where((o_v < V)[None], tl.exp(b_logits - b_new[:, None]), 0.0)
        b_sum = b_sum * tl.exp(b_peak - b_new) + tl.sum(b_exp, 1)
        b_peak = b_new
    b_x = tl.load(logits + o_r + b_target, mask=m_r, other=0.0).to(tl.float32)
    b_y = tl.load(logits + o_r + BLANK, mask=m_r, other=0.0).to(tl.float32)
    if bias is not None:
        b_x += tl.load(bias + b_target, mask=m_r, other=0.0).to(tl.float32)
        b_y += tl.load(bias + BLANK).to(tl.float32)
    b_log_sum = tl.log(b_sum)
    p_out = i_b.to(tl.int64) * stride_b + t.to(tl.int64) * stride_t + r * stride_r
    tl.store(x + p_out, b_x - b_peak - b_log_sum, mask=m_r)
    tl.store(y + p_out, b_y - b_peak - b_log_sum, mask=m_r)
    tl.store(norm + row, b_peak + b_log_sum, mask=m_r)


@triton.jit(do_not_specialize=["first_row", "end_row", "rows_per_program", "num_symbols", "num_frames"])
def logits_grad_kernel(
    x_grad,
    y_grad,
    scale,
    logits,
    bias,
    symbols,
    start,
    boundary,
    norm,
    grad,
    bias_grad,
    first_row,
    end_row,
    rows_per_program,
    num_symbols,
    num_frames,
    V,
    stride,
    R: tl.constexpr,
    BLANK: tl.constexpr,
    BR: tl.constexpr,
    BV: tl.constexpr,
):
    """Gradients of logits, which `grad` may overwrite, times 1 / scale; their sums are added to a row of bias_grad."""
    i_v = tl.program_id(0)
    i_chunk = tl.program_id(1)
    o_v = i_v * BV + tl.arange(0, BV)
    m_v = o_v < stride
    b_bias = tl.zeros([BV], tl.float32)
    if bias is not None:
        b_bias = tl.load(bias + o_v, mask=o_v < V, other=0.0).to(tl.float32)
    unit = 1.0
    if scale is not None:
        unit = 1.0 / tl.load(scale)
    b_sum = tl.zeros([BV], tl.float32)
    i_chunk_row = i_chunk * rows_per_program
    logits += i_chunk_row.to(tl.int64) * stride
    grad += i_chunk_row.to(tl.int64) * stride
    first_row += i_chunk_row
    for i_row in range(0, tl.minimum(rows_per_program, end_row - first_row), BR):
        o_r = i_row + tl.arange(0, BR)
        row = first_row + o_r
        _, _, _, b_target, m_r = _targets(row, end_row, symbols, start, boundary, num_symbols, num_frames, R, BLANK)
        b_x = tl.load(x_grad + row, mask=m_r, other=0.0) * unit
        b_y = tl.load(y_grad + row, mask=m_r, other=0.0) * unit
        b_norm = tl.load(norm + row, mask=m_r, other=0.0)
        o = (o_r * stride)[:, None] + o_v[None]
        b_logits = tl.load(logits + o, mask=m_r[:, None] & m_v[None], other=0.0).to(tl.float32)
        b_logits = tl.where(m_r[:, None] & (o_v < V)[None], b_logits, _LOWEST) + b_bias[None]
        b_grad = -(b_x + b_y)[:, None] * tl.exp(b_logits - b_norm[:, None])
        b_grad += tl.where(o_v[None] == b_target[:, None], b_x[:, None], 0.0)
        b_grad += tl.where(o_v[None] == BLANK, b_y[:, None], 0.0)
        m = (row < end_row)[:, None] & m_v[None]
        tl.store(grad + o, b_grad.to(grad.dtype.element_ty), mask=m)
        b_sum += tl.sum(b_grad, 0)
    if bias_grad is not None:
        p_sum = bias_grad + i_chunk * V + o_v
        tl.store(p_sum, tl.load(p_sum, mask=o_v < V, other=0.0) + b_sum, mask=o_v < V)


def blocks(V: int) -> dict[str, int]:
    """Rows and vocabulary entries that a program holds."""
    BV = power_of_2(V, least=16, most=1024)
    return {"BR": power_of_2(2048 // BV, most=16), "BV": BV}


def row_chunks(num_rows: int, V: int) -> tuple[int, int]:
    """Programs beside one another for each block of the vocabulary, and rows of each, in `logits_grad_kernel`."""
    tile = blocks(V)
    row_blocks = cdiv(num_rows, tile["BR"])
    rows_per_program = cdiv(row_blocks, max(1, _PROGRAMS // cdiv(V, tile["BV"]))) * tile["BR"]
    return cdiv(num_rows, max(1, rows_per_program)), rows_per_program


@library.custom_op("sumix::rnnt_selected_log_probs", mutates_args=())
def selected_log_probs(
    logits: Tensor, symbols: Tensor, start: Tensor | None, boundary: Tensor, blank: int, diagonal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of symbols and of blank, (B, T, R) fp32, from logits (B, T, R, V); and log-normalisers.

    Row r of frame t is lattice row start[b, t] + r, or r itself. With ``diagonal`` the memory is laid out for the
    regular lattice. Rows outside the boundary are not written.
    """
    logits, symbols, boundary = (x.contiguous() for x in (logits, symbols, boundary))
    start = None if start is None else start.contiguous()
    _, T, R, V = logits.shape
    x, y, norm = _outputs(logits, diagonal)
    assert norm.numel() < 2**31, norm.shape
    tile = blocks(V)
    if norm.numel():
        with on_device(logits):
            log_probs_kernel[(cdiv(norm.numel(), tile["BR"]),)](
                logits, None, symbols, start, boundary, x, y, norm,
                0, norm.numel(), symbols.shape[1], T, V, V, *x.stride(), R=R, BLANK=blank, **tile,
            )  # fmt: skip
    return x, y, norm


def _outputs(logits: Tensor, diagonal: bool) -> tuple[Tensor, ...]:
    B, T, R, _ = logits.shape
    batch, row, frame = lattice_strides(R, T, diagonal)
    x, y = (logits.new_empty_strided((B, T, R), (batch, frame, row), dtype=torch.float32) for _ in range(2))
    return x, y, logits.new_empty((B, T, R), dtype=torch.float32)


@selected_log_probs.register_fake
def _(logits, symbols, start, boundary, blank, diagonal):
    return _outputs(logits, diagonal)


@library.custom_op("sumix::rnnt_selected_log_probs_backward", mutates_args=())
def _selected_backward(
    x_grad: Tensor,
    y_grad: Tensor,
    norm: Tensor,
    logits: Tensor,
    symbols: Tensor,
    start: Tensor | None,
    boundary: Tensor,
    blank: int,
) -> Tensor:
    x_grad, y_grad, logits, symbols, boundary = (x.contiguous() for x in (x_grad, y_grad, logits, symbols, boundary))
    start = None if start is None else start.contiguous()
    _, T, R, V = logits.shape
    grad = torch.empty_like(logits)
    chunks, rows_per_program = row_chunks(norm.numel(), V)
    tile = blocks(V)
    if norm.numel():
        with on_device(logits):
            logits_grad_kernel[(cdiv(V, tile["BV"]), chunks)](
                x_grad, y_grad, None, logits, None, symbols, start, boundary, norm, grad, None,
                0, norm.numel(), rows_per_program, symbols.shape[1], T, V, V, R=R, BLANK=blank, **tile,
            )  # fmt: skip
    return grad


@_selected_backward.register_fake
def _(x_grad, y_grad, norm, logits, symbols, start, boundary, blank):
    return logits.new_empty(logits.shape)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.blank, _ = inputs
    ctx.save_for_backward(output[2], *tensors)
    ctx.mark_non_differentiable(output[2])


def _backward(ctx, x_grad, y_grad, _):
    return _selected_backward(x_grad, y_grad, *ctx.saved_tensors, ctx.blank), None, None, None, None, None


selected_log_probs.register_autograd(_backward, setup_context=_setup_context)
