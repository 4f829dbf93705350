"""One model from several checkpoints of a run: the mean of their weights.

`average` says which: 5 (or "5") the last five, counted back from the checkpoint given; "best5" the five of lowest
validation error rate; "none" one checkpoint's own weights, without the running average that training may have kept.
LayerNorm is the only normalisation here, so nothing has to be computed again on data afterwards.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from sumix_stream.tasks import checkpoint
from sumix_stream.tasks.checkpoint import CheckpointError
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.tokenizer import Tokenizer

_FORM = re.compile(r"(best)?0*([1-9]\d*)")


def load_averaged(path: str | Path, average: int | str) -> tuple[Transducer, Tokenizer]:
    """The model (on the CPU, in evaluation mode) whose weights are the mean of checkpoints, and its tokenizer.

    Args:
        path: an experiment directory or, but for "best5", one of its checkpoints.
        average: see the module's docstring.
    Raises:
        ValueError: for another form of `average`.
        CheckpointError: too few checkpoints are there, or they do not belong to one model.
    """
    if average == "none":
        return checkpoint.load_model(path, averaged=False)
    directories = checkpoints_meant(path, average)
    model, tokenizer = checkpoint.load_model(directories[-1])
    for directory in directories[:-1]:
        for name in (checkpoint.TOKENIZER, checkpoint.CONFIG):
            if _fixed(directory, name) != _fixed(directories[-1], name):
                raise CheckpointError(
                    f"{directory} and {directories[-1]} differ in {name}, so their weights have no mean: average "
                    "checkpoints of one run"
                )
    model.load_state_dict(mean_weights(directories))
    return model, tokenizer


def save_alone(
    out: str | Path, model: Transducer, tokenizer: Tokenizer, source: str | Path, average: int | str | None = None
) -> str:
    """Write a model as a checkpoint directory `out` that can be loaded, without what training needs; a line about it.

    Raises ValueError for a bundle, CheckpointError when `out` exists or cannot be written.
    """
    if not isinstance(model, Transducer):
        raise ValueError(f"{source} is a bundle: a checkpoint is made from a checkpoint")
    about = {"made_from": Path(source).resolve().name, "average": None if average is None else str(average)}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_checkpoint(Path(out), lambda folder: checkpoint.save_model(folder, model, tokenizer, extra=about))
    mean = "" if average is None else f", average {average}"
    return f"{out}: {model.num_parameters:,} parameters of {source}{mean}"


def checkpoints_meant(path: str | Path, average: int | str) -> list[Path]:
    """The checkpoint directories that `average` means, by training step. Raises as `load_averaged`."""
    match = _FORM.fullmatch(str(average))
    if match is None:
        raise ValueError(f"average must be a number of checkpoints (5), best5 or none, got {average!r}")
    path, by_score, number = Path(path), bool(match[1]), int(match[2])
    if path.name == checkpoint.WEIGHTS:
        path = path.parent
    if (path / checkpoint.WEIGHTS).is_file():
        end, experiment = path.resolve(), path.resolve().parent.parent
        if by_score:
            raise ValueError(f"{average} chooses among all checkpoints: give the experiment directory, not {path}")
    else:
        end, experiment = None, path
    found = checkpoint.step_directories(experiment)
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


def mean_weights(directories: Sequence[Path]) -> dict[str, Tensor]:
    """Mean of the weights of checkpoint directories, summed in fp64; each is its running average where it has one.

    Raises:
        CheckpointError: a file is missing or damaged, or names or shapes differ.
    """
    total: dict[str, Tensor] = {}
    kinds = {}
    for directory in directories:
        weights = checkpoint.model_tensors(directory)
        if not total:
            kinds = {name: value.dtype for name, value in weights.items()}
            total = {name: value.double() for name, value in weights.items()}
            continue
        if {n: v.shape for n, v in weights.items()} != {n: v.shape for n, v in total.items()}:
            raise CheckpointError(
                f"{directory} and {directories[0]} hold different models, so their weights have no mean: average "
                "checkpoints of one run"
            )
        for name, value in weights.items():
            total[name] += value
    return {name: (value / len(directories)).to(kinds[name]) for name, value in total.items()}


def _fixed(directory: Path, name: str) -> object:
    """What checkpoints of one run have in common in a file."""
    if name == checkpoint.CONFIG:
        description = checkpoint.load_yaml(directory / name)
        return description.get("vocab_size"), description.get("model")
    checkpoint.require(directory / name)
    return (directory / name).read_bytes()


def _error_rate(directory: Path) -> float | None:
    try:
        extra = checkpoint.load_yaml(directory / checkpoint.CONFIG).get("extra")
    except CheckpointError:
        return None
    extra = extra or {}
    return next(iter((extra.get("metrics") or {}).values()), extra.get("wer"))  # version 0.1 wrote wer alone
