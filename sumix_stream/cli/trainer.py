"""A trainer of a recipe, for bin/train."""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from sumix_stream.config import RecipeConfig
    from sumix_stream.tasks.fine_tuning import Taken
    from sumix_stream.timebase import Timebase
    from sumix_stream.tokenizer import Tokenizer
    from sumix_stream.train.loop import Trainer
    from sumix_stream.train.validation import SetValidator, Validator


def make_trainer(kind: type[Trainer], recipe: RecipeConfig) -> Trainer:
    """With the recipe's data, a fresh model, and a validation by the decoder if there is a set for it."""
    from sumix_stream.corpora.labelled import check_labels
    from sumix_stream.corpora.preparation import read_stats
    from sumix_stream.data import TrainLoader, load_cuts
    from sumix_stream.tasks.base import build_for, load_outputs, make_task
    from sumix_stream.train.division import batches_per_process
    from sumix_stream.train.precision import make_fabric
    from sumix_stream.train.two_views import with_masks_of_views

    recipe = with_masks_of_views(recipe)
    config, data = recipe.train, recipe.data
    task = make_task(recipe.task)
    tokenizer = load_outputs(task, recipe.tokenizer.path)
    train = load_cuts(data.train_paths)
    if recipe.task == "classification":
        if config.init_from:
            raise ValueError(
                f"train.init_from {config.init_from}: a classifier starts from fresh weights; leave it out"
            )
        check_labels([*data.train_paths, *chain.from_iterable(recipe.valid_sets.values())], tokenizer)
    model = build_for(task, recipe.model, tokenizer, config.seed)
    notes = []
    if config.init_from:
        notes.append(str(_start_from(model, tokenizer, config.init_from, Path(config.exp_dir))))
    else:
        model.set_normalisation(*read_stats(Path(recipe.tokenizer.path).with_name("stats.npz")))
    fabric = make_fabric(config)
    rank, world = fabric.global_rank, fabric.world_size
    share = {"rank": rank, "world_size": world, "accumulate": batches_per_process(config, world)}
    loader = TrainLoader(data, train, tokenizer, model.timebase, seed=config.seed, **share)

    if told := loader.describe_sources():
        notes.append(told)
    validate = make_validator(recipe, tokenizer, model.timebase)
    if validate is not None:
        validate.check()
    return kind(recipe, model, tokenizer, loader, validate, fabric, notes)


def make_validator(recipe: RecipeConfig, tokenizer: Tokenizer, timebase: Timebase) -> Validator | SetValidator | None:
    """Error rates and losses of the recipe's validation sets; None where it has none."""
    from sumix_stream.context import ChunkContext
    from sumix_stream.data import load_cuts
    from sumix_stream.evaluate.accuracy import label_errors
    from sumix_stream.evaluate.error_rates import masked_wer, streaming_wer
    from sumix_stream.evaluate.losses import HeldOutLoss
    from sumix_stream.tasks.base import make_task
    from sumix_stream.train.validation import SetValidator, Validator, WithLosses

    config = recipe.train
    context = ChunkContext.parse(config.valid_chunk_size, config.valid_left_context, timebase)
    wer = masked_wer if config.valid_chunk_size == "full" else partial(streaming_wer, realtime=False)
    weights = make_task(recipe.task).weights(recipe.loss.warmup_steps, recipe.loss)  # those of most of the training
    settings = (context, weights, recipe.loss, timebase.num_samples(recipe.data.max_duration))

    def decode(model, utterances):
        loss = HeldOutLoss(model, tokenizer, *settings)
        if recipe.task == "classification":
            found = label_errors(model, tokenizer, loss.watch(utterances), context)
        else:
            found = wer(model, tokenizer, loss.watch(utterances), config.valid_chunk_size, config.valid_left_context)
        return WithLosses(found, loss.means())

    sets = {name: load_cuts(paths) for name, paths in recipe.valid_sets.items()}
    if "" in sets:
        return Validator(sets[""], decode)
    named = {name: Validator(cuts, decode, f"data.valid_cuts.{name}") for name, cuts in sets.items()}
    return SetValidator(named) if named else None


def _start_from(model: nn.Module, tokenizer: Tokenizer, source: str, exp_dir: Path) -> Taken:
    """Of a run that resumes the source may be gone: its own checkpoint, which is loaded next, has the same sizes."""
    from sumix_stream.tasks.checkpoint import CheckpointError
    from sumix_stream.tasks.fine_tuning import init_from
    from sumix_stream.train.resume import latest_checkpoint

    try:
        return init_from(model, tokenizer, source)
    except CheckpointError:
        if (latest := latest_checkpoint(exp_dir)) is None:
            raise
        return init_from(model, tokenizer, latest)
