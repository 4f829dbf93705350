"""Reference of `chunk_decay_mean`: fp64, the (T, T) matrix of weights, O(T^2)."""

import torch
from torch import Tensor


def chunk_decay_mean(
    x: Tensor,
    lengths: Tensor,
    chunk_size: int | Tensor | None,
    left_context: int | Tensor | None,
    decay: float,
) -> Tensor:
    """x (B, T, D) -> (B, T, D) fp64."""
    B, T, _ = x.shape
    time = torch.arange(T, device=x.device)
    distance = (time[:, None] - time).abs().double()
    means = []
    for b in range(B):
        C, L = (
            T if value is None else int(value[b]) if isinstance(value, Tensor) else value
            for value in (chunk_size, left_context)
        )
        chunk, valid = time // C, time < lengths[b]
        sees = (chunk[:, None] >= chunk) & (chunk[:, None] - L <= chunk) & valid & valid[:, None]
        weights = torch.where(sees, decay**distance, 0.0)
        total = weights.sum(1, keepdim=True)
        means.append(weights / total.where(valid[:, None], 1) @ x[b].double().masked_fill(~valid[:, None], 0))
    return torch.stack(means)
