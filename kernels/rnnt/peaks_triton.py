"""What the smoothed loss knows of each row of am and lm before it looks at their sums, in one reading."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sumix_kernels.launch import power_of_2

_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


@triton.jit(do_not_specialize=["num_rows"])
def peak_kernel(x, boundary, peak, best, norm, num_rows, V, ROWS_ARE_FRAMES: tl.constexpr, BV: tl.constexpr):
    """Of each row: its maximum, the first place of it, the logarithm of the sum of exponentials less the maximum."""
    i_row = tl.program_id(0).to(tl.int64)
    i_b = i_row // num_rows
    row = i_row - i_b * num_rows
    begin, end = tl.load(boundary + 4 * i_b), tl.load(boundary + 4 * i_b + 2) + 1
    if ROWS_ARE_FRAMES:
        begin, end = tl.load(boundary + 4 * i_b + 1), tl.load(boundary + 4 * i_b + 3)
    if (row >= begin) & (row < end):
        b_peak = tl.full([BV], _LOWEST, tl.float32)
        b_best = tl.zeros([BV], tl.int32)
        b_sum = tl.zeros([BV], tl.float32)
        for i_v in range(0, V, BV):
            o_v = i_v + tl.arange(0, BV)
            b_x = tl.load(x + i_row * V + o_v, mask=o_v < V, other=float("-inf")).to(tl.float32)
            b_new = tl.maximum(b_peak, b_x)
            b_sum = b_sum * tl.exp(b_peak - b_new) + tl.where(o_v < V, tl.exp(b_x - b_new), 0.0)
            b_best = tl.where(b_x > b_peak, o_v, b_best)
            b_peak = b_new
        highest = tl.max(b_peak, 0)
        tl.store(peak + i_row, highest)
        tl.store(norm + i_row, tl.log(tl.sum(b_sum * tl.exp(b_peak - highest), 0)))
        tl.store(best + i_row, tl.min(tl.where(b_peak == highest, b_best, V), 0))


def find_peaks(x: Tensor, boundary: Tensor, peak: Tensor, best: Tensor, norm: Tensor, *, of_frames: bool) -> None:
    """Of each row of contiguous x (B, rows, V) within the boundary: see `peak_kernel`. Results are (B * rows,)."""
    (_, num_rows, V), grid = x.shape, (peak.numel(),)
    if peak.numel():
        BV = power_of_2(V, least=16, most=2048)
        peak_kernel[grid](x, boundary, peak, best, norm, num_rows, V, ROWS_ARE_FRAMES=of_frames, BV=BV)
