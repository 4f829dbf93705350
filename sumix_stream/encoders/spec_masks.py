"""Time and frequency masks of SpecAugment (Park and others, arXiv 1904.08779), on any device.

B utterances, T feature frames, F bins.
"""

import torch
from torch import Tensor

from sumix_stream.config import SpecAugmentConfig

MAX_TIME_SHARE = 0.2  # of an utterance that one time mask may cover: short utterances keep their words


def mask_features(
    feats: Tensor, lengths: Tensor, config: SpecAugmentConfig, generator: torch.Generator | None = None
) -> Tensor:
    """feats (B, T, F), lengths (B,) in frames -> (B, T, F), drawn from `generator`, or torch's own for the device.

    What is masked becomes the utterance's own mean of each bin: features are not normalised yet, so zero would be loud.
    Padded frames stay zero.
    """
    frames = torch.minimum(lengths * MAX_TIME_SHARE, torch.full_like(lengths, config.max_time_mask))
    bins = torch.full_like(lengths, feats.shape[2])
    time = _masks(config.num_time_masks, frames, lengths, feats.shape[1], generator)
    freq = _masks(config.num_freq_masks, bins.clamp(max=config.max_freq_mask), bins, feats.shape[2], generator)
    valid = torch.arange(feats.shape[1], device=feats.device) < lengths[:, None]
    masked = (time[:, :, None] | freq[:, None, :]) & valid[:, :, None]
    mean = feats.sum(1, keepdim=True) / lengths.clamp(min=1)[:, None, None]
    return torch.where(masked, mean, feats)


def _masks(number: int, max_width: Tensor, extent: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """(B, size), True where masked: `number` masks, width uniform in 0 to max_width (B,), inside extent (B,)."""
    draws = torch.rand(2, len(extent), number, 1, generator=generator, device=extent.device)
    width = (draws[0] * (max_width.long()[:, None, None] + 1)).long()
    start = (draws[1] * (extent[:, None, None] - width + 1)).long()
    position = torch.arange(size, device=extent.device)
    return ((position >= start) & (position < start + width)).any(1)
