"""`chunk_decay_mean` in linear time: blocks of frames meet through their decayed sums.

B batch, T frames, C frames of a chunk, N chunks, L chunks of left context, D channels, a = decay. A frame's sum is

    within_t = sum over u of its own chunk of a^|t-u| x_u          (future frames too)
    ends_n   = sum over u of chunk n of a^(last frame of n - u) x_u
    past_n   = sum over m in n-L..n-1 of a^(C (n-1-m)) ends_m
    y_t      = within_t + a^(t - first frame of n + 1) past_n

Inside blocks of at most 64 frames these are small matrix products; across blocks, and across all chunks of an
unlimited past, the same scan is applied to the blocks' ends, 64 times fewer each time. Only powers with exponents >= 0
are taken (as exp(exponent * log a)), so nothing overflows however long the utterance.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sumix_kernels.window import num_chunks, shift, visible_frames, windowed_sums

_BLOCK = 64  # frames, or rows of a scan


def chunk_decay_mean(
    x: Tensor, lengths: Tensor, chunk_size: int | Tensor, left_context: int | Tensor | None, decay: float
) -> Tensor:
    """Chunk sizes and left contexts are ints or (B, 1); left_context None: each chunk sees all before it."""
    with torch.autocast(x.device.type, enabled=False):
        if isinstance(chunk_size, Tensor) or isinstance(left_context, Tensor):
            return by_context(_decay_mean, x, lengths, chunk_size, left_context, math.log(decay))
        return _decay_mean(x, lengths, chunk_size, left_context, math.log(decay))


def by_context(mean: Callable[..., Tensor], x, lengths, chunk_size, left_context, log_decay: float) -> Tensor:
    """`mean` of the utterances of one context together, then all in their old order."""
    B, T, _ = x.shape
    sizes, lefts = (v.flatten().tolist() if isinstance(v, Tensor) else [v] * B for v in (chunk_size, left_context))
    rows: dict[tuple[int, int | None], list[int]] = {}
    for row, (C, L) in enumerate(zip(sizes, lefts)):
        rows.setdefault((C, None if L is None or L >= num_chunks(T, C) - 1 else L), []).append(row)
    order = torch.tensor([row for group in rows.values() for row in group], device=x.device)
    counts = [len(group) for group in rows.values()]
    parts = zip(x.index_select(0, order).split(counts), lengths[order].split(counts), rows)
    means = torch.cat([mean(part, ends, C, L, log_decay) for part, ends, (C, L) in parts])
    return means.index_select(0, order.argsort())


def _decay_mean(x: Tensor, lengths: Tensor, chunk_size: int, left_context: int | None, log_decay: float) -> Tensor:
    T, C, N = x.shape[1], chunk_size, num_chunks(x.shape[1], chunk_size)
    time = torch.arange(T, device=x.device)
    valid = time < lengths[:, None]
    frames = x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(~valid[:, :, None], 0)
    if N * C > T:
        frames = F.pad(frames, (0, 0, 0, N * C - T))
    sums, ends = own_sums(frames.unflatten(1, (N, C)), log_decay)
    if N > 1 and left_context != 0:
        past = shift(_chunk_scan(ends, C * log_decay, left_context), 1)
        sums = torch.addcmul(sums, powers(log_decay, 1, C + 1, sums)[:, None], past[:, :, None])
    lo, hi = visible_frames(time // C, C, left_context, lengths[:, None])
    weights = visible_weights(time - lo, hi - time, log_decay, sums.dtype)
    return (sums.flatten(1, 2)[:, :T] * (valid / weights)[:, :, None]).to(x.dtype)


def _chunk_scan(ends: Tensor, log_decay: float, left_context: int | None) -> Tensor:
    """Decayed sum of the `left_context` chunks up to and with each chunk."""
    return _scan(ends, log_decay) if left_context is None else windowed_sums(ends, left_context - 1, log_decay)


def own_sums(x: Tensor, log_decay: float) -> tuple[Tensor, Tensor]:
    """Of chunks (B, N, C, D): sum over the own chunk of a^|t-u| x_u (B, N, C, D), and the chunks' ends (B, N, D)."""
    B, N, C, D = x.shape
    if C == 1:
        return x, x.squeeze(2)
    # Blocks of K frames, as even as can be; zeros before the chunk fill the first one, so that ends stay at the end.
    R = num_chunks(C, _BLOCK)
    K = num_chunks(C, R)
    R = num_chunks(C, K)
    missing = R * K - C
    if missing:
        x = F.pad(x, (0, 0, missing, 0))
    x = x.reshape(B * N * R, K, D)
    time = torch.arange(K, device=x.device)
    sums = _product(_exp(log_decay, (time[:, None] - time).abs(), x), x)
    to_end = powers(log_decay, 0, K, x).flip(0)
    edges = _product(torch.stack([to_end, to_end.flip(0)]), x).view(B * N, R, 2, D)
    if R > 1:
        before = _scan(edges[:, :, 0], K * log_decay)
        after = _scan(edges[:, :, 1].flip(1), K * log_decay).flip(1)
        ends = before[:, -1]
        outside = torch.stack([shift(before, 1), shift(after, -1)], 2).view(B * N * R, 2, D)
        reach = torch.stack([powers(log_decay, 1, K + 1, x), powers(log_decay, 1, K + 1, x).flip(0)], 1)  # (K, 2)
        sums = torch.baddbmm(sums, reach.expand(sums.shape[0], K, 2), outside)
    else:
        ends = edges[:, 0, 0]
    return sums.view(B, N, R * K, D)[:, :, missing:], ends.view(B, N, D)


def _scan(x: Tensor, log_decay: float) -> Tensor:
    """Row n = sum over m <= n of exp(log_decay * (n - m)) x_m, for x (B, N, D)."""
    B, N, D = x.shape
    K = min(N, _BLOCK)
    time = torch.arange(K, device=x.device)
    weights = _exp(log_decay, (time[:, None] - time).clamp(min=0), x).tril()
    if N == K:
        return _product(weights, x)
    R = num_chunks(N, K)
    sums = _product(weights, F.pad(x, (0, 0, 0, R * K - N)).reshape(B * R, K, D)).view(B, R, K, D)
    before = shift(_scan(sums[:, :, -1], K * log_decay), 1)
    sums = torch.addcmul(sums, powers(log_decay, 1, K + 1, x)[:, None], before[:, :, None])
    return sums.flatten(1, 2)[:, :N]


def visible_weights(num_past: Tensor, num_future: Tensor, log_decay: float, dtype: torch.dtype) -> Tensor:
    """Sum of a^|t-u| over `num_past` frames before t and `num_future` from t on (t itself counts); at least 1."""

    def geometric(num_terms: Tensor) -> Tensor:  # 1 + a + a^2 + ...
        return torch.expm1(log_decay * num_terms.clamp(min=0).to(dtype)) / math.expm1(log_decay)

    return (geometric(num_past + 1) + math.exp(log_decay) * geometric(num_future - 1)).clamp(min=1)


def powers(log_decay: float, begin: int, end: int, like: Tensor) -> Tensor:
    """a^begin, ..., a^(end - 1), in the dtype and on the device of `like`."""
    return _exp(log_decay, torch.arange(begin, end, device=like.device), like)


def _exp(log_decay: float, exponents: Tensor, like: Tensor) -> Tensor:
    return torch.exp(log_decay * exponents.to(like.dtype))


def _product(weights: Tensor, x: Tensor) -> Tensor:
    """weights (M, K) times each of x (n, K, D), without copies of the weights."""
    return torch.bmm(weights.expand(x.shape[0], *weights.shape), x)
