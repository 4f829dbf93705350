"""Augmentation of features that depends on nothing but the generator it is given: SpecAugment."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sumix_stream.config import SpecAugmentConfig
from sumix_stream.encoders.spec_masks import mask_features


class SpecAugment:
    """Time warp, time and frequency masks on a padded batch of log-mel features (Park and others, arXiv 1904.08779).

    Padded frames stay zero. B utterances, T feature frames, F bins.
    """

    def __init__(self, config: SpecAugmentConfig):
        self.config = config

    def __call__(self, feats: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
        """feats (B, T, F), lengths (B,) in frames -> (B, T, F); the same generator state gives the same result."""
        config = self.config
        if config.time_warp > 0:
            feats = self._warp(feats, lengths, generator)
        return mask_features(feats, lengths, config, generator)

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
