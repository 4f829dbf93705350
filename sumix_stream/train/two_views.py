"""Who draws SpecAugment's masks of a recipe: the loader, or for two views of each utterance the model (CR-CTC)."""

from dataclasses import replace

from sumix_stream.config import ConfigError, RecipeConfig

_TIME_MASKS = 2.5  # times as many of each view as of a single one (arXiv 2410.05101, 3.2)


def with_masks_of_views(recipe: RecipeConfig) -> RecipeConfig:
    """With `loss.cr_ctc_scale` the loader leaves the masks of `data.spec_augment` out, but for the time warp that both
    views have, and the model draws `loss.cr_ctc_masks` for each view; where there are none those of the data, 2.5 times
    as many in time. Else the recipe itself.

    Raises ConfigError for views without any masks, which would be equal.
    """
    if recipe.loss.cr_ctc_scale == 0:
        return recipe
    masks, single = recipe.loss.cr_ctc_masks, recipe.data.spec_augment
    if masks is None and single is not None:
        masks = replace(single, num_time_masks=round(_TIME_MASKS * single.num_time_masks), time_warp=0)
    if masks is None or not (masks.num_time_masks or masks.num_freq_masks):
        raise ConfigError("two views need masks to differ by: set loss.cr_ctc_masks, or loss.cr_ctc_scale 0")
    if single is not None:
        single = replace(single, num_time_masks=0, num_freq_masks=0)
    loss, data = replace(recipe.loss, cr_ctc_masks=masks), replace(recipe.data, spec_augment=single)
    return replace(recipe, loss=loss, data=data)
