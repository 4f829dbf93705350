"""Reference of `chunk_summary` and `broadcast_chunks`: fp64, every visible (chunk, frame) pair in a mask, O(T^2)."""

import torch
from torch import Tensor


def chunk_summary(
    x: Tensor,
    lengths: Tensor,
    chunk_size: int | Tensor | None,
    left_context: int | Tensor | None,
) -> Tensor:
    """x (B, T, D) -> (B, N, D) fp64."""
    B, T, _ = x.shape
    sizes, lefts = per_utterance(chunk_size, B, T), per_utterance(left_context, B, T)
    N = -(-T // min(sizes))
    weights = torch.zeros(B, N, T, dtype=torch.float64, device=x.device)
    for b, (C, L, length) in enumerate(zip(sizes, lefts, lengths.tolist())):
        for n in range(N):
            visible = [t for t in range(min((n + 1) * C, length)) if t // C >= n - L]
            if visible:
                weights[b, n, visible] = 1 / len(visible)
    valid = torch.arange(T, device=x.device) < lengths.to(x.device)[:, None]
    return weights @ x.double().masked_fill(~valid[:, :, None], 0)


def broadcast_chunks(summary: Tensor, chunk_size: int | Tensor | None, num_frames: int) -> Tensor:
    """summary (B, N, D) -> (B, T, D) fp64."""
    sizes = per_utterance(chunk_size, len(summary), num_frames)
    rows = [torch.stack([row[t // C] for t in range(num_frames)]) for row, C in zip(summary.double(), sizes)]
    return torch.stack(rows)


def per_utterance(value: int | Tensor | None, batch_size: int, num_frames: int) -> list[int]:
    """One int for each utterance; None reaches over every frame."""
    if isinstance(value, Tensor):
        return value.tolist()
    return [num_frames if value is None else value] * batch_size
