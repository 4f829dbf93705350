"""What a chunk sees: itself and `left_context` chunks before it (None = all of them), never a later one.

B batch, T frames, C frames of a chunk, N chunks, L chunks of left context, D channels. Every function takes ints or
integer tensors, which broadcast.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def num_chunks(num_frames: int, chunk_size: int) -> int:
    """Chunks that cover `num_frames` frames; the last may be short."""
    return -(-num_frames // chunk_size)


def visible_chunks(chunk: int | Tensor, left_context: int | Tensor | None) -> tuple[int | Tensor, int | Tensor]:
    """First chunk that `chunk` sees, and one past the last: [lo, hi)."""
    if left_context is None:
        return chunk * 0, chunk + 1
    lo = chunk - left_context
    return (lo.clamp(min=0) if isinstance(lo, Tensor) else max(0, lo)), chunk + 1


def visible_frames(
    chunk: Tensor, chunk_size: int | Tensor, left_context: int | Tensor | None, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """First valid frame that `chunk` sees, and one past the last, [lo, hi): chunk (N,) or (B, N) -> (B, N) each.

    lengths must broadcast against chunk: (B, 1). Where nothing valid is seen, lo = hi = length.
    """
    lo, hi = visible_chunks(chunk, left_context)
    return torch.minimum(lo * chunk_size, lengths), torch.minimum(hi * chunk_size, lengths)


def shift(x: Tensor, num_rows: int) -> Tensor:
    """Row n of x (B, N, D) goes to row n + num_rows (which may be negative); zeros come in."""
    return F.pad(x, (0, 0, num_rows, -num_rows))


def windowed_sums(x: Tensor, left_context: int | Tensor, log_decay: float = 0.0, reverse: bool = False) -> Tensor:
    """Row n = sum over m in n-L..n of exp(log_decay * (n - m)) x_m, for x (B, N, D); L an int or (B, 1).

    `reverse` gives the transpose: the sum over m in n..n+L. Windows of 1, 2, 4, ... rows are doubled and joined: no
    difference of long prefixes, so neither cancellation nor a trace of what is out of the window, in O(N log L).
    """
    N, sign = x.shape[1], -1 if reverse else 1
    per_utterance = isinstance(left_context, Tensor)
    width = (left_context + 1).clamp(max=N) if per_utterance else min(left_context + 1, N)
    largest = N if per_utterance else width
    window, size = x, 1  # window[n] sums rows n-size+1..n
    total, covered = None, width * 0  # total[n] sums rows n-covered+1..n
    while True:
        bit = width & size
        if per_utterance:
            older = _shift_each(window, sign * covered) * torch.exp(log_decay * covered.to(x.dtype))[:, :, None]
            older.masked_fill_((bit == 0)[:, :, None], 0)
            total = older if total is None else total + older
        elif bit:
            older = shift(window, sign * covered)
            total = older if total is None else torch.add(total, older, alpha=math.exp(log_decay * covered))
        covered = covered + bit
        if 2 * size > largest:
            return total
        window = torch.add(window, shift(window, sign * size), alpha=math.exp(log_decay * size))
        size *= 2


def _shift_each(x: Tensor, num_rows: Tensor) -> Tensor:
    """`shift` by num_rows (B, 1)."""
    B, N, D = x.shape
    row = torch.arange(N, device=x.device) - num_rows
    index = row.clamp(0, N - 1) + N * torch.arange(B, device=x.device)[:, None]
    rows = x.reshape(B * N, D).index_select(0, index.flatten()).view(B, N, D)
    return rows.masked_fill_(((row < 0) | (row >= N))[:, :, None], 0)
