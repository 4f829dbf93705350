"""Augmentation of features that depends on nothing but the generator it is given: SpecAugment."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sumix_stream.config import SpecAugmentConfig

MAX_TIME_SHARE = 0.2  # of an utterance that one time mask may cover: short utterances keep their words


class SpecAugment:
    """Time warp, time and frequency masks on a padded batch of log-mel features (Park and others, arXiv 1904.08779).

    What is masked becomes the utterance's own mean of each bin: features are not normalised yet, so zero would be loud.
    Padded frames stay zero. B utterances, T feature frames, F bins.
    """

    def __init__(self, config: SpecAugmentConfig):
        self.config = config

    def __call__(self, feats: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
        """feats (B, T, F), lengths (B,) in frames -> (B, T, F); the same generator state gives the same result."""
        config = self.config
        if config.time_warp > 0:
            feats = self._warp(feats, lengths, generator)
        frames = torch.minimum(lengths * MAX_TIME_SHARE, torch.full_like(lengths, config.max_time_mask))
        bins = torch.full_like(lengths, feats.shape[2])
        time = _masks(config.num_time_masks, frames, lengths, feats.shape[1], generator)
        freq = _masks(config.num_freq_masks, bins.clamp(max=config.max_freq_mask), bins, feats.shape[2], generator)
        valid = torch.arange(feats.shape[1]) < lengths[:, None]
        masked = (time[:, :, None] | freq[:, None, :]) & valid[:, :, None]
        mean = feats.sum(1, keepdim=True) / lengths.clamp(min=1)[:, None, None]
        return torch.where(masked, mean, feats)

    def _warp(self, feats: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
        """Move a random frame of each utterance by up to `time_warp` frames; linear interpolation on both sides."""
        limit, feats = self.config.time_warp, feats.clone()
        draws = torch.rand(len(lengths), 2, generator=generator).tolist()
        for b, (length, (where, shift)) in enumerate(zip(lengths.tolist(), draws, strict=True)):
            if length <= 2 * limit + 1:
                continue
            centre = limit + 1 + int(where * (length - 2 * limit - 1))
            moved = centre - limit + int(shift * (2 * limit + 1))
            halves = feats[b, :length].split([centre, length - centre])
            sizes = (moved, length - moved)
            feats[b, :length] = torch.cat(
                [
                    F.interpolate(half.T[None], size=size, mode="linear", align_corners=False)[0].T
                    for half, size in zip(halves, sizes, strict=True)
                ]
            )
        return feats


def _masks(number: int, max_width: Tensor, extent: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """(B, size), True where masked: `number` masks, width uniform in 0 to max_width (B,), inside extent (B,)."""
    draws = torch.rand(2, len(extent), number, 1, generator=generator)
    width = (draws[0] * (max_width.long()[:, None, None] + 1)).long()
    start = (draws[1] * (extent[:, None, None] - width + 1)).long()
    position = torch.arange(size)
    return ((position >= start) & (position < start + width)).any(1)
