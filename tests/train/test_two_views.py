"""Who draws the masks of a recipe."""

from dataclasses import replace

import pytest

from sumix_stream.config import ConfigError, DataConfig, LossConfig, RecipeConfig, SpecAugmentConfig
from sumix_stream.train.two_views import with_masks_of_views

ONE = SpecAugmentConfig(num_time_masks=3, max_time_mask=25, num_freq_masks=2, max_freq_mask=35, time_warp=5)
BARE = replace(ONE, num_time_masks=0, num_freq_masks=0)


def recipe(loss: LossConfig, spec_augment: SpecAugmentConfig | None = ONE) -> RecipeConfig:
    return RecipeConfig(loss=loss, data=DataConfig(spec_augment=spec_augment))


def test_a_single_view_is_masked_by_the_loader():
    plain = recipe(LossConfig())
    assert with_masks_of_views(plain) is plain


def test_two_views_are_masked_by_the_model_and_warped_by_the_loader():
    made = with_masks_of_views(recipe(LossConfig(cr_ctc_scale=0.2)))
    assert made.loss == LossConfig(cr_ctc_scale=0.2, cr_ctc_masks=replace(ONE, num_time_masks=8, time_warp=0))
    assert made.data == DataConfig(spec_augment=BARE)
    assert with_masks_of_views(made) == made


def test_masks_of_their_own():
    own = SpecAugmentConfig(num_time_masks=1, num_freq_masks=0)
    loss = LossConfig(cr_ctc_scale=0.2, cr_ctc_masks=own)
    assert with_masks_of_views(recipe(loss)) == recipe(loss, BARE)
    assert with_masks_of_views(recipe(loss, None)) == recipe(loss, None)


@pytest.mark.parametrize("masks", [None, SpecAugmentConfig(num_time_masks=0, num_freq_masks=0)])
def test_equal_views_are_refused(masks):
    with pytest.raises(ConfigError, match="two views need masks to differ by"):
        with_masks_of_views(recipe(LossConfig(cr_ctc_scale=0.2, cr_ctc_masks=masks), None))
