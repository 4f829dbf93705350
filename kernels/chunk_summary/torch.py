"""`chunk_summary` and `broadcast_chunks` in linear time: sums of chunks, then sums over windows of chunks.

B batch, T frames, C frames of a chunk, N chunks, L chunks of left context, D channels. Sums are fp32 (fp64 for fp64
inputs); the only (B, T, D) tensors made are the results and, where chunks are long or differ in the batch, one copy.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sumix_kernels.window import visible_frames, windowed_sums


def chunk_summary(
    x: Tensor, lengths: Tensor, chunk_size: int | Tensor, left_context: int | Tensor | None, num_chunks: int
) -> Tensor:
    """Chunk sizes and left contexts are ints or (B, 1); left_context None: each chunk sees all before it."""
    return _ChunkSummary.apply(x, lengths, chunk_size, left_context, num_chunks)


def broadcast_chunks(summary: Tensor, chunk_size: int | Tensor, num_frames: int) -> Tensor:
    return _BroadcastChunks.apply(summary, chunk_size, num_frames)


class _ChunkSummary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, lengths, chunk_size, left_context, num_chunks: int):
        chunks = torch.arange(num_chunks, device=x.device)
        lo, hi = visible_frames(chunks, chunk_size, left_context, lengths[:, None])
        counts = (hi - lo).clamp_(min=1)[:, :, None]  # (B, N, 1)
        sums = _visible_sums(_chunk_sums(x, lengths, chunk_size, num_chunks), left_context)
        ctx.save_for_backward(lengths, counts)
        ctx.geometry = chunk_size, left_context, x.shape[1]
        # torch.compile (2.11) loses the gradient of a result that was changed in place and converted to its own type.
        return sums.div_(counts).to(x.dtype, copy=torch.compiler.is_compiling())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        lengths, counts = ctx.saved_tensors
        chunk_size, left_context, num_frames = ctx.geometry
        rows = _visible_sums(grad.to(_sum_dtype(grad)) / counts, left_context, reverse=True).to(grad.dtype)
        grad_x = _spread(rows, chunk_size, num_frames)
        grad_x.masked_fill_(padding(lengths, num_frames), 0)
        return grad_x, None, None, None, None


class _BroadcastChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, summary, chunk_size, num_frames: int):
        ctx.geometry = chunk_size, summary.shape[1]
        return _spread(summary, chunk_size, num_frames)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        lengths = torch.full((grad.shape[0],), grad.shape[1], device=grad.device)
        return _chunk_sums(grad, lengths, *ctx.geometry).to(grad.dtype), None, None


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def padding(lengths: Tensor, num_frames: int) -> Tensor:
    return (torch.arange(num_frames, device=lengths.device) >= lengths[:, None])[:, :, None]


def _chunk_sums(x: Tensor, lengths: Tensor, chunk_size: int | Tensor, num_chunks: int) -> Tensor:
    """Sum over the valid frames of each chunk: (B, T, D) -> (B, N, D)."""
    B, T, _ = x.shape
    if isinstance(chunk_size, Tensor):
        return _segment_sums(x, lengths, chunk_size, num_chunks)
    if num_chunks == 1:
        return x.masked_fill(padding(lengths, T), 0).sum(1, keepdim=True, dtype=_sum_dtype(x))

    num_full = T // chunk_size
    sums = x[:, : num_full * chunk_size].unflatten(1, (num_full, chunk_size)).sum(2, dtype=_sum_dtype(x))
    if num_chunks > num_full:
        sums = F.pad(sums, (0, 0, 0, num_chunks - num_full))
    # Only the chunk in which an utterance ends holds both valid frames and padding: it alone is masked.
    last = lengths // chunk_size
    sums.masked_fill_((torch.arange(num_chunks, device=x.device) >= last[:, None])[:, :, None], 0)
    utterances = torch.arange(B, device=x.device)
    frames = last[:, None] * chunk_size + torch.arange(chunk_size, device=x.device)
    ending = x[utterances[:, None], frames.clamp(max=T - 1)]
    ending.masked_fill_((frames >= lengths[:, None])[:, :, None], 0)
    sums[utterances, last.clamp(max=num_chunks - 1)] += ending.sum(1, dtype=sums.dtype)
    return sums


def _segment_sums(x: Tensor, lengths: Tensor, chunk_size: Tensor, num_chunks: int) -> Tensor:
    """`_chunk_sums` for chunk sizes (B, 1). Deterministic on every device, unlike a scatter."""
    B, T, D = x.shape
    borders = torch.arange(num_chunks + 1, device=x.device) * chunk_size
    counts = torch.minimum(borders, lengths[:, None]).diff(dim=1)
    # Padding is a last segment of its own, so that it need not be zeroed.
    counts = torch.cat([counts, (T - lengths)[:, None]], 1)
    frames = x.reshape(B * T, D).to(_sum_dtype(x))
    sums = torch.segment_reduce(frames, "sum", lengths=counts.flatten(), axis=0, unsafe=True, initial=0)
    return sums.view(B, num_chunks + 1, D)[:, :num_chunks]


def _spread(rows: Tensor, chunk_size: int | Tensor, num_frames: int) -> Tensor:
    """Row n(t) for every frame t: (B, N, D) -> (B, T, D), in memory of its own."""
    B, N, D = rows.shape
    if isinstance(chunk_size, Tensor):
        index = torch.arange(num_frames, device=rows.device) // chunk_size
        index = index + N * torch.arange(B, device=rows.device)[:, None]
        return rows.reshape(B * N, D).index_select(0, index.flatten()).view(B, num_frames, D)
    frames = rows.new_empty(B, num_frames, D)
    num_full = num_frames // chunk_size
    end = num_full * chunk_size
    frames[:, :end].unflatten(1, (num_full, chunk_size)).copy_(rows[:, :num_full, None])
    frames[:, end:] = rows[:, num_full : num_full + 1]
    return frames


def _visible_sums(sums: Tensor, left_context: int | Tensor | None, reverse: bool = False) -> Tensor:
    """Sum over the chunks that each chunk sees, or (reverse) by which it is seen: (B, N, D) -> (B, N, D)."""
    if left_context is not None:
        return windowed_sums(sums, left_context, reverse=reverse)
    if sums.shape[1] == 1:
        return sums
    return sums.flip(1).cumsum(1).flip(1) if reverse else sums.cumsum(1)
