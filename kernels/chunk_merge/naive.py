"""Reference of `merge_chunks`: fp64, frame by frame; dropout by the generator's definition.

B batch, T frames, C frames of a chunk, N chunks, D channels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def merge_chunks(
    local: Tensor | None, summary: Tensor, lengths: Tensor, chunk_size: int | Tensor, num_frames: int, dropout: float
) -> Tensor:
    """Chunk sizes are an int or (B, 1) -> (B, T, D) in summary's dtype, computed in fp64."""
    B, D = len(summary), summary.shape[2]
    sizes = chunk_size.flatten().tolist() if isinstance(chunk_size, Tensor) else [chunk_size] * B
    rows = torch.stack([row[[t // C for t in range(num_frames)]] for row, C in zip(summary.double(), sizes)])
    frames = F.gelu(rows if local is None else rows + local.double())
    if dropout > 0:
        seed = torch.randint(2**62, (1,), device=summary.device)
        kept = philox(int(seed), B, num_frames, D) >= threshold(dropout)
        frames = frames * kept.to(frames.device) / (1 - dropout)
    valid = torch.arange(num_frames, device=lengths.device) < lengths[:, None]
    return frames.masked_fill(~valid[:, :, None], 0).to(summary.dtype)


def threshold(dropout: float) -> int:
    """An element is dropped where its 32 random bits are below this number."""
    return int(dropout * 2**32)


def philox(seed: int, batch_size: int, num_frames: int, dim: int) -> Tensor:
    """32 random bits for each element, (B, T, D) int64: word d % 4 of Philox 4x32 with seven rounds, key seed, counter
    (d // 4, t, b, 0)."""
    low = 2**32 - 1
    counter = [
        torch.arange(-(-dim // 4)).expand(batch_size, num_frames, -1),
        torch.arange(num_frames)[:, None],
        torch.arange(batch_size)[:, None, None],
        torch.zeros((), dtype=torch.int64),
    ]
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = seed & low, seed >> 32
    for _ in range(7):
        high_2, low_2 = _multiply(0xCD9E8D57, c2)
        high_0, low_0 = _multiply(0xD2511F53, c0)
        c0, c1, c2, c3 = high_2 ^ c1 ^ k0, low_2, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return torch.stack([c0, c1, c2, c3], -1).flatten(2)[:, :, :dim]


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of products of 32-bit numbers, in int64 without overflow."""
    upper, lower = (a >> 16) * b, (a & 0xFFFF) * b
    middle = (lower >> 16) + (upper & 0xFFFFFFFF)
    carried = (upper >> 32 << 16) + (middle >> 16)
    return carried, ((middle & 0xFFFF) << 16) | (lower & 0xFFFF)
