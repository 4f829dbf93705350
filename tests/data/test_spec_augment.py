"""Augmentation: reproducible, inside its bounds, harmless to padding."""

import pytest
import torch

from sumix_stream.config import SpecAugmentConfig
from sumix_stream.data.augment.spec_augment import SpecAugment
from sumix_stream.encoders.spec_masks import MAX_TIME_SHARE

NONE = SpecAugmentConfig(num_time_masks=0, num_freq_masks=0)


def features():
    """Batch (4, 300, 80) of distinct values, padded with zeros."""
    lengths = torch.tensor([300, 200, 57, 1])
    feats = torch.randn(4, 300, 80, generator=torch.Generator().manual_seed(0)) - 10
    return feats * (torch.arange(300) < lengths[:, None])[:, :, None], lengths


def augmented(config, seed=0):
    feats, lengths = features()
    return SpecAugment(config)(feats, lengths, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("time_warp", [0, 20])
def test_the_generator_decides(time_warp):
    config = SpecAugmentConfig(time_warp=time_warp)
    assert torch.equal(augmented(config), augmented(config))
    assert not torch.equal(augmented(config), augmented(config, seed=1))


@pytest.mark.parametrize("time_warp", [0, 20])
def test_padding_stays_zero(time_warp):
    _, lengths = features()
    padding = torch.arange(300) >= lengths[:, None]
    assert (augmented(SpecAugmentConfig(time_warp=time_warp))[padding] == 0).all()


def test_without_masks_nothing_changes():
    assert torch.equal(augmented(NONE), features()[0])


def test_masks_are_bands_within_their_widths_filled_with_the_mean():
    feats, lengths = features()
    mean = feats.sum(1) / lengths[:, None]
    widths = {"time": set(), "freq": set()}
    for seed in range(40):
        for kind in widths:
            config = SpecAugmentConfig(1, 20, 0, 0) if kind == "time" else SpecAugmentConfig(0, 0, 1, 12)
            out = augmented(config, seed)
            for b, length in enumerate(lengths.tolist()):
                changed = (out[b] != feats[b])[:length]
                where = changed.any(1 if kind == "time" else 0).nonzero()[:, 0]
                if len(where) == 0:
                    continue
                assert where[-1] - where[0] + 1 == len(where)  # one band
                torch.testing.assert_close(out[b][:length][changed], mean[b].expand(length, 80)[changed])
                limit = min(20, int(length * MAX_TIME_SHARE)) if kind == "time" else 12
                assert len(where) <= limit
                widths[kind].add(len(where))
    assert max(widths["time"]) == 20 and max(widths["freq"]) == 12


def test_time_warp_moves_frames_and_keeps_short_utterances():
    feats, lengths = features()
    ramp = torch.arange(300.0)[None, :, None].expand(4, -1, 80) * (feats != 0)
    out = SpecAugment(SpecAugmentConfig(0, 0, 0, 0, time_warp=30))(ramp, lengths, torch.Generator().manual_seed(3))
    assert torch.equal(out[2:], ramp[2:])
    for b in (0, 1):
        warped = out[b, : lengths[b], 0]
        assert (warped.diff() > -1e-3).all() and 1 < (warped - ramp[b, : lengths[b], 0]).abs().max() <= 31
