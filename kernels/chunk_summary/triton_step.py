"""`chunk_summary_step` on a GPU, in one launch. B streams, C' frames of this chunk, L chunks of state, D channels."""

import triton
import triton.language as tl
from torch import Tensor, library

from sumix_kernels.chunk_summary.triton import gelu as gelu_of
from sumix_kernels.launch import cdiv, on_device, power_of_2


@library.custom_op("sumix::chunk_summary_step", mutates_args=())
def chunk_summary_step(
    x: Tensor, lengths: Tensor, sums: Tensor, compensation: Tensor, counts: Tensor, gelu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean (B, D), and the next sums, compensation and counts. See step.SummaryState."""
    B, num_frames, D = x.shape
    mean = x.new_empty(B, D)
    state = [part.new_empty(part.shape) for part in (sums, compensation, counts)]
    block_d = power_of_2(D, 16, 128)
    if mean.numel():
        with on_device(x):
            _step_kernel[(cdiv(D, block_d), B)](
                x, lengths, sums.contiguous(), compensation.contiguous(), counts.contiguous(), mean, *state,
                num_frames, D, sums.shape[1], *x.stride(), 16, block_d, compensation.shape[1] > 0, gelu,
            )  # fmt: skip
    return mean, *state


@chunk_summary_step.register_fake
def _(x, lengths, sums, compensation, counts, gelu):
    return x.new_empty(x.shape[0], x.shape[2]), *(part.new_empty(part.shape) for part in (sums, compensation, counts))


@triton.jit(do_not_specialize=["num_frames", "num_kept"])
def _step_kernel(
    p_x, p_lengths, p_sums, p_compensation, p_counts, p_mean, p_next_sums, p_next_compensation, p_next_counts,
    num_frames, D, num_kept, stride_b, stride_t, stride_d,
    BT: tl.constexpr, BD: tl.constexpr, UNLIMITED: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    i_d, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_d = i_d * BD + tl.arange(0, BD)
    m_d = o_d < D
    length = tl.load(p_lengths + i_b).to(tl.int32)
    b_sum = tl.zeros([BD], dtype=tl.float32)
    for t in range(0, num_frames, BT):
        o_t = t + tl.arange(0, BT)
        p = p_x + i_b * stride_b + o_t[:, None] * stride_t + o_d[None, :] * stride_d
        b_x = tl.load(p, mask=(o_t < length)[:, None] & m_d[None, :], other=0.0).to(tl.float32)
        if GELU:
            b_x = gelu_of(b_x)
        b_sum += tl.sum(b_x, 0)
    count = length.to(tl.float32)
    if UNLIMITED:
        p = i_b * D + o_d
        b_old = tl.load(p_sums + p, mask=m_d, other=0.0)
        b_total = b_old + b_sum
        # What rounding dropped of the sum (Knuth, TAOCP vol. 2, 4.2.2, theorem B).
        b_seen = b_total - b_old
        b_error = (b_old - (b_total - b_seen)) + (b_sum - b_seen)
        b_compensation = tl.load(p_compensation + p, mask=m_d, other=0.0) + b_error
        tl.store(p_next_sums + p, b_total, mask=m_d)
        tl.store(p_next_compensation + p, b_compensation, mask=m_d)
        b_sum = b_total + b_compensation
        count += tl.load(p_counts + i_b)
        if i_d == 0:
            tl.store(p_next_counts + i_b, count)
    else:
        b_own, own_count = b_sum, count
        for j in range(num_kept):  # the oldest goes, the others move up, this chunk comes last
            p = (i_b * num_kept + j) * D + o_d
            b_kept = tl.load(p_sums + p, mask=m_d, other=0.0)
            kept = tl.load(p_counts + i_b * num_kept + j)
            b_sum += b_kept
            count += kept
            if j > 0:
                tl.store(p_next_sums + p - D, b_kept, mask=m_d)
                if i_d == 0:
                    tl.store(p_next_counts + i_b * num_kept + j - 1, kept)
        if num_kept > 0:
            p = (i_b * num_kept + num_kept - 1) * D + o_d
            tl.store(p_next_sums + p, b_own, mask=m_d)
            if i_d == 0:
                tl.store(p_next_counts + (i_b + 1) * num_kept - 1, own_count)
    b_mean = b_sum / tl.maximum(count, 1.0)
    tl.store(p_mean + i_b * D + o_d, b_mean.to(p_mean.dtype.element_ty), mask=m_d)
