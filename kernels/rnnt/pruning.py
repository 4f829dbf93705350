"""Which symbols to keep at each frame, arXiv 2206.13236 section 3.2.

B batch, S symbols, T frames, R symbols kept a frame. A frame keeps R consecutive lattice rows, those that lose least
occupation; their first rows must let a path through: start at 0, never go back, end so that the last symbol is kept,
and leave no gap.
"""

import torch
from torch import Tensor


def prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """Rows to keep, (B, T, R) int64 with R = min(s_range, S+1), from the occupations of the simple lattice.

    px_grad (B, S, T+1) (regular) or (B, S, T), py_grad (B, S+1, T), boundary (B, 4). Kept at frame t are the R rows
    from s on with the largest ``sum(py_grad[s : s+R, t]) - px_grad[s-1, t]``: the paths that leave the frame inside
    them, less those that entered from below in the same frame.
    """
    (_, S, px_frames), T = px_grad.shape, py_grad.shape[2]
    R = min(s_range, S + 1)
    num_starts = S + 2 - R

    # One addition after another: a windowed reduction may round differently with the batch's shape.
    kept = py_grad[:, :num_starts].clone()
    for r in range(1, R):
        kept += py_grad[:, r : r + num_starts]
    kept[:, 1:] -= px_grad[:, : num_starts - 1, :T]
    return admissible(kept.argmax(1), boundary, R, stride=R - 1 if px_frames == T + 1 else 1)


def admissible(start: Tensor, boundary: Tensor, R: int, stride: int) -> Tensor:
    """Rows to keep (B, T, R) from the wished first rows ``start`` (B, T), moved so that they let a path through.

    ``stride`` is the most rows that a frame may move on, as a path can: R-1 (regular), one (otherwise).
    """
    # From its last frame on an utterance keeps its last symbols, so that the end is reached.
    frames = torch.arange(start.shape[1], device=start.device)
    last_start = (boundary[:, 2, None] - R + 1).clamp(min=0)
    start = torch.where(frames < boundary[:, 3, None] - 1, start, last_start)

    start = _lower_monotonic(start)
    start = stride * frames - _lower_monotonic(stride * frames - start).clamp(min=0)
    return start[:, :, None] + torch.arange(R, device=start.device)


def _lower_monotonic(x: Tensor) -> Tensor:
    """Largest non-decreasing sequence (along the last dimension) that nowhere exceeds x."""
    return x.flip(-1).cummin(-1).values.flip(-1)


def prune(am: Tensor, lm: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """am (B, T, J), lm (B, S+1, K), ranges (B, T, R) -> am (B, T, R, J), expanded, and lm (B, T, R, K), gathered."""
    R = ranges.shape[2]
    batch = torch.arange(lm.shape[0], device=lm.device)[:, None, None]
    return am[:, :, None].expand(-1, -1, R, -1), lm[batch, ranges]


def unprune(x: Tensor, ranges: Tensor, num_rows: int) -> Tensor:
    """Back to the whole lattice: x (B, T, R) at rows ``ranges`` -> (B, num_rows, T), -inf where pruned."""
    whole = x.new_full((*x.shape[:2], num_rows), float("-inf"))
    return whole.scatter(2, ranges, x).transpose(1, 2)
