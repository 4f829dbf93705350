"""A trained model read from its directory as arrays, for whatever will run it.

`average` says which weights: 5 (or "5") the mean of the last five checkpoints, counted back from the one given; "best5"
that of the five of lowest validation error rate; "none" one checkpoint's own weights, without the running average that
training may have kept. LayerNorm is the only normalisation here, so nothing is computed again on data afterwards.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sumix_stream.checkpoint.arrays import Shapes, mean_arrays, model_arrays, model_shapes
from sumix_stream.checkpoint.layout import (
    CONFIG,
    TOKENIZER,
    TRANSDUCER,
    WEIGHTS,
    CheckpointError,
    DamagedCheckpoint,
    load_yaml,
    note_missing_sums,
    other_copy,
    require,
    resolve_checkpoint,
    step_directories,
)
from sumix_stream.checkpoint.shapes import check_depth, check_shapes, transducer_shapes
from sumix_stream.config import ConfigError, ModelConfig
from sumix_stream.config.reader import model_of_checkpoint
from sumix_stream.tokenizer import Tokenizer

_FORM = re.compile(r"(best)?0*([1-9]\d*)")


@dataclass(frozen=True)
class CheckpointArrays:
    """A model as its files hold it; `arrays` are its weights and buffers by the names of the model's `state_dict`."""

    directory: Path  # the checkpoint; the last of those averaged
    config: ModelConfig
    vocab_size: int
    arrays: dict[str, np.ndarray]
    tokenizer: Tokenizer
    extra: dict[str, Any]  # what training noted for people: steps, error rates


def read_checkpoint(
    path: str | Path,
    average: int | str | None = None,
    *,
    shapes: Callable[[ModelConfig, int], Shapes | None] = transducer_shapes,
) -> CheckpointArrays:
    """Read a checkpoint or experiment directory (its best checkpoint, else its last), or the mean of several.

    Args:
        average: see the module's docstring; None = one checkpoint, the running average of its weights if it has one.
        shapes: of the arrays that a configuration and a vocabulary size ask for, compared with the file's header
            before any array is read; None for a model that it does not know, whose arrays are not compared.
    Raises:
        ValueError: for another form of `average`.
        CheckpointError: a file is missing, damaged or does not fit the others; too few checkpoints are there, or they
            do not belong to one model.
    """
    several = average is not None and average != "none"
    directories = checkpoints_meant(path, average) if several else [resolve_checkpoint(path)]
    directory = directories[-1]
    note_missing_sums(directory)
    description = load_yaml(directory / CONFIG)
    if (task := description.get("task", TRANSDUCER)) != TRANSDUCER:
        raise CheckpointError(f"{directory} is a model of the task {task}, which finds no words: bin/spot runs it")
    try:
        vocab_size, config = int(description["vocab_size"]), model_of_checkpoint(description["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{directory / CONFIG} does not describe a model ({error}): {other_copy(directory)}"
        ) from error
    found = model_shapes(directory)
    check_depth(found, config, directory / WEIGHTS)
    expected = shapes(config, vocab_size)
    if expected is not None:
        check_shapes(found, expected, directory / WEIGHTS)
    tokenizer = load_tokenizer(directory, vocab_size)
    for other in directories[:-1]:
        for name in (TOKENIZER, CONFIG):
            if _fixed(other, name) != _fixed(directory, name):
                raise CheckpointError(
                    f"{other} and {directory} differ in {name}, so their weights have no mean: average "
                    "checkpoints of one run"
                )
    arrays = mean_arrays(directories) if several else model_arrays(directory, averaged=average is None)
    return CheckpointArrays(directory, config, vocab_size, arrays, tokenizer, description.get("extra") or {})


def checkpoints_meant(path: str | Path, average: int | str) -> list[Path]:
    """The checkpoint directories that `average` means, by training step. Raises as `read_checkpoint`."""
    match = _FORM.fullmatch(str(average))
    if match is None:
        raise ValueError(f"average must be a number of checkpoints (5), best5 or none, got {average!r}")
    path, by_score, number = Path(path), bool(match[1]), int(match[2])
    if path.name == WEIGHTS:
        path = path.parent
    if (path / WEIGHTS).is_file():
        end, experiment = path.resolve(), path.resolve().parent.parent
        if by_score:
            raise ValueError(f"{average} chooses among all checkpoints: give the experiment directory, not {path}")
    else:
        end, experiment = None, path
    found = step_directories(experiment)
    if end is not None:
        last = next((step for step, directory in found.items() if directory.resolve() == end), -1)
        found = {step: directory for step, directory in found.items() if step <= last}
    if by_score:
        scores = {step: wer for step in found if (wer := _error_rate(found[step])) is not None}
        found = {step: found[step] for step in sorted(scores, key=lambda step: (scores[step], -step))[:number]}
    chosen = [found[step] for step in sorted(found)][-number:]
    if len(chosen) < number:
        kept = "train.keep_best" if by_score else "train.keep_last"
        validated = " validated" if by_score else ""
        raise CheckpointError(
            f"average {average} asks for {number}{validated} checkpoints, {len(chosen)} are at {path}: ask for fewer, "
            f"or train with {kept} {number} or more"
        )
    return chosen


def _fixed(directory: Path, name: str) -> object:
    """What checkpoints of one run have in common in a file."""
    if name == CONFIG:
        description = load_yaml(directory / name)
        try:  # a run may have gone on under a later release, which knows more keys
            return description.get("vocab_size"), model_of_checkpoint(description.get("model") or {})
        except ConfigError:
            return description.get("vocab_size"), description.get("model")
    require(directory / name)
    return (directory / name).read_bytes()


def _error_rate(directory: Path) -> float | None:
    try:
        extra = load_yaml(directory / CONFIG).get("extra")
    except CheckpointError:
        return None
    extra = extra or {}
    return next(iter((extra.get("metrics") or {}).values()), extra.get("wer"))  # version 0.1 wrote wer alone


def load_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """A checkpoint's tokenizer. Raises CheckpointError: missing, damaged, or of another vocabulary."""
    path = directory / TOKENIZER
    require(path)
    try:
        tokenizer = Tokenizer.from_bytes(path.read_bytes())
    except (ValueError, RuntimeError, OSError) as error:
        raise DamagedCheckpoint(f"{path} is damaged ({error}): {other_copy(directory)}") from error
    if tokenizer.vocab_size != vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.vocab_size} tokens, the model {vocab_size}: "
            "put back the tokenizer it was trained with"
        )
    return tokenizer
