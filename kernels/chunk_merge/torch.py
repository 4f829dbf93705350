"""`merge_chunks` in PyTorch, on any device."""

from torch import Tensor
from torch.nn import functional as F

from sumix_kernels.chunk_summary.torch import broadcast_chunks, padding


def merge_chunks(
    local: Tensor | None, summary: Tensor, lengths: Tensor, chunk_size: int | Tensor, num_frames: int, dropout: float
) -> Tensor:
    """Chunk sizes are an int or (B, 1)."""
    merged = broadcast_chunks(summary, chunk_size, num_frames)
    frames = F.gelu(merged if local is None else local + merged)
    if dropout > 0:
        frames = F.dropout(frames, dropout)
    return frames.masked_fill(padding(lengths, num_frames), 0)
