"""`chunk_decay_mean` one chunk at a time. B streams of any age, C' frames of this chunk, D channels, a = decay."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sumix_kernels.arguments import check_frames, check_lengths
from sumix_kernels.chunk_decay.op import check_decay
from sumix_kernels.chunk_decay.torch import own_sums, powers, visible_weights


class DecayState(NamedTuple):
    """Past of B streams, fp32. Of an unlimited left context: one sum over all frames, decayed to the last of them,
    past_sum (B, 1, D), and the same sum of the weights, past_weight (B, 1); of L chunks: those of each, decayed to its
    own last frame, oldest first, ring_sums (B, L, D) and ring_weights (B, L). What is not used is empty (0 for 1 or L).
    """

    past_sum: Tensor
    past_weight: Tensor
    ring_sums: Tensor
    ring_weights: Tensor

    @classmethod
    def init(
        cls, batch_size: int, dim: int, left_context: int | None, device: torch.device | str | None = None
    ) -> DecayState:
        """State of streams that have not begun. left_context: chunks, None = unlimited."""
        if left_context is not None and left_context < 0:
            raise ValueError(f"left_context must be an integer >= 0 (chunks) or None, got {left_context!r}")
        past, ring = (1, 0) if left_context is None else (0, left_context)
        return cls(
            torch.zeros(batch_size, past, dim, device=device),
            torch.zeros(batch_size, past, device=device),
            torch.zeros(batch_size, ring, dim, device=device),
            torch.zeros(batch_size, ring, device=device),
        )


def chunk_decay_step(
    x: Tensor, lengths: Tensor, state: DecayState, chunk_size: int | None, decay: float
) -> tuple[Tensor, DecayState]:
    """Decayed means of one chunk, and the state after it.

    x (B, C', D), lengths (B,) valid frames of this chunk -> (B, C', D) in x's dtype, padded frames zero. Every chunk
    but a stream's last has chunk_size frames (None: there is only one). Equal to the frames of `chunk_decay_mean`.

    Raises ValueError where shapes do not fit, or decay is not between 0 and 1.
    """
    B, num_frames, D = check_frames(x)
    lengths = check_lengths(lengths, x)
    log_decay = math.log(check_decay(decay))
    size = num_frames if chunk_size is None else chunk_size
    if num_frames > size:
        raise ValueError(f"x {tuple(x.shape)} must have at most chunk_size = {chunk_size} frames")
    if state.past_sum.shape[0] != B or state.past_sum.shape[2] != D:
        raise ValueError(f"state of {tuple(state.past_sum.shape)} does not fit x {tuple(x.shape)}")

    with torch.autocast(x.device.type, enabled=False):
        time = torch.arange(num_frames, device=x.device)
        valid = time < lengths[:, None]
        frames = x.float().masked_fill(~valid[:, :, None], 0)
        own, end = own_sums(frames[:, None], log_decay)  # (B, 1, C', D), (B, 1, D)
        # The chunks of a ring, newest last, decayed to the frame before this chunk.
        age = powers(size * log_decay, 0, state.ring_weights.shape[1], frames).flip(0)
        past = (state.ring_sums * age[:, None]).sum(1, keepdim=True) + state.past_sum.sum(1, keepdim=True)
        past_weight = (state.ring_weights * age).sum(1, keepdim=True) + state.past_weight.sum(1, keepdim=True)

        reach = powers(log_decay, 1, num_frames + 1, frames)
        weights = visible_weights(time.expand(B, -1), lengths[:, None] - time, log_decay, frames.dtype)
        mean = (own.squeeze(1) + reach[:, None] * past) / (weights + reach * past_weight)[:, :, None]
        mean = mean.masked_fill(~valid[:, :, None], 0).to(x.dtype)

        end_weight = (powers(log_decay, 0, num_frames, frames).flip(0) * valid).sum(1, keepdim=True)
        over = math.exp(num_frames * log_decay)
        return mean, DecayState(
            over * state.past_sum + end[:, : state.past_sum.shape[1]],
            over * state.past_weight + end_weight[:, : state.past_weight.shape[1]],
            torch.cat([state.ring_sums, end], 1)[:, 1:] if len(age) else state.ring_sums,
            torch.cat([state.ring_weights, end_weight], 1)[:, 1:] if len(age) else state.ring_weights,
        )
