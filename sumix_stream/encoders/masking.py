"""Lengths to masks, where a mask is needed at all."""

import torch
from torch import Tensor

from sumix_kernels.arguments import known_whole


def frame_mask(lengths: Tensor, num_frames: int) -> Tensor:
    """(B, num_frames) bool, True on valid frames."""
    return torch.arange(num_frames, device=lengths.device) < lengths.unsqueeze(1)


def mask_frames(x: Tensor, lengths: Tensor) -> Tensor:
    """Zero the frames of x (B, T, ...) at and past each utterance's length; x itself where it is known to have none."""
    if known_whole(lengths, x.shape[1]):
        return x
    mask = frame_mask(lengths, x.shape[1])
    return x.masked_fill(~mask.view(*mask.shape, *[1] * (x.dim() - 2)), 0.0)
