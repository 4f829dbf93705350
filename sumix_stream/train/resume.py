"""What a run needs to go on exactly where it stopped, and which checkpoints are kept.

Beside the model (sumix_stream.tasks.checkpoint) a step directory holds `optimizer.safetensors`, whose tensors are named
`exp_avg/encoder...`, and `trainer.yaml`: position in the data, error rate, loss scale of fp16, the recipe.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sumix_stream.config import RecipeConfig
from sumix_stream.config.reader import to_dict
from sumix_stream.tasks import checkpoint
from sumix_stream.tasks.checkpoint import CheckpointError, DamagedCheckpoint
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.tokenizer import Tokenizer

OPTIMIZER = "optimizer.safetensors"
TRAINER = "trainer.yaml"
_STATISTICS = ("feature_mean", "feature_std")  # buffers of the front end
_SAME_STATISTICS = 1e-2  # nats: what other versions of the libraries may make of the same audio
_OUTPUTS = (
    *("checkpoints", "best.txt", "last.txt", "metrics.jsonl", "runs.jsonl", "valid.json", "train.log", "tensorboard"),
    *("pictures", "report.html"),
)


@dataclass
class TrainerState:
    """Where a run stands. Every random draw is a function of these and the seed, so no generator state is kept."""

    step: int = 0  # training steps done
    epoch: int = 0
    batch: int = 0  # of the epoch, done by all processes together
    step_batches: int | None = None  # that all processes together take for a step; the epoch is drawn for it
    plan: str | None = None  # names the batches of the epoch
    bad_steps: int = 0  # consecutive skipped updates up to now
    audio_seconds: float = 0.0  # trained on, over all processes
    rate_from: list[float] | None = None  # step and share of the peak from which the learning rate goes on


def save_checkpoint(
    exp_dir: Path,
    state: TrainerState,
    model: Transducer,
    tokenizer: Tokenizer,
    optimizer: torch.optim.Optimizer,
    recipe: RecipeConfig,
    *,
    metrics: dict[str, float] | None = None,
    precision: dict[str, Any] | None = None,
    average: dict[str, Tensor] | None = None,
) -> Path:
    """Write the checkpoint of `state.step`, point `last` at it and `best` at the best, and remove those not kept.

    Kept are the last `train.keep_last` and the `train.keep_best` whose first of the validation's `metrics` is lowest. A
    step already saved is left as it is. `average` is the running average of the weights, by name.

    Raises:
        CheckpointError: it could not be written; the earlier ones are intact.
    """
    path = checkpoint.step_directory(exp_dir, state.step)

    def write(directory: Path) -> None:
        checkpoint.save_model(directory, model, tokenizer, extra={"step": state.step, "metrics": metrics})
        checkpoint.save_tensors(directory / OPTIMIZER, optimizer_tensors(model, optimizer))
        if average is not None:
            checkpoint.save_tensors(directory / checkpoint.AVERAGE, average)
        description = {
            "state": asdict(state),
            "metrics": metrics,
            "precision": precision or {},
            "recipe": to_dict(recipe),
        }
        checkpoint.save_yaml(directory / TRAINER, description)

    if not path.exists():
        checkpoint.write_checkpoint(path, write)
    best = point_at_best_and_last(exp_dir, state.step)[: recipe.train.keep_best]
    saved = checkpoint.step_directories(exp_dir)
    for step in set(saved) - set(sorted(saved)[-recipe.train.keep_last :]) - {step for _, step in best}:
        checkpoint.remove_checkpoint(saved[step])
    return path


def load_newest(exp_dir: Path, load: Callable[[Path], None]) -> tuple[Path | None, list[str]]:
    """Load the newest checkpoint that is not damaged; which it is, and what is wrong with newer ones.

    None when the experiment has no checkpoint. Damaged ones are moved to `step-N.damaged`, out of the run's way.

    Raises:
        CheckpointError: all are damaged, or the newest sound one does not fit the run.
    """
    checkpoint.remove_remnants(exp_dir)
    damaged: dict[Path, str] = {}
    for step, directory in reversed(checkpoint.step_directories(exp_dir).items()):
        try:
            load(directory)
        except DamagedCheckpoint as error:
            damaged[directory] = str(error)
            continue
        for path in damaged:
            target = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(target, ignore_errors=True)
            path.rename(target)
        if damaged:
            point_at_best_and_last(exp_dir, step)
        return directory, list(damaged.values())
    if damaged:
        raise CheckpointError(
            f"no checkpoint in {exp_dir} can be resumed from ({'; '.join(damaged.values())}). Put back one from a "
            "copy, or start again with --no-resume, which moves them aside"
        )
    return None, []


def point_at_best_and_last(exp_dir: Path, last: int) -> list[tuple[float, int]]:
    """Let `last.txt` and `best.txt` name checkpoints that are there; returns their `ranking`."""
    checkpoint.point(exp_dir, "last", last)
    ranked = ranking(exp_dir)
    if ranked:
        checkpoint.point(exp_dir, "best", ranked[0][1])
    else:
        (Path(exp_dir) / "best.txt").unlink(missing_ok=True)
    return ranked


def load_checkpoint(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[TrainerState, dict[str, Any]]:
    """Put a checkpoint's weights into `model` and its moments into `optimizer`; the state and the rest of trainer.yaml.

    Raises:
        DamagedCheckpoint: a file is missing or damaged.
        CheckpointError: one does not fit the model.
    """
    checkpoint.note_missing_sums(directory)
    for name in (checkpoint.CONFIG, checkpoint.TOKENIZER):  # not read here, but what is saved must be whole
        checkpoint.require(directory / name)
    description = checkpoint.load_yaml(directory / TRAINER)
    try:
        state = TrainerState(**description["state"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{directory / TRAINER} does not describe a run ({error}): remove {directory} to resume from an earlier one"
        ) from error
    checkpoint.load_weights(model, directory)
    path = directory / OPTIMIZER
    load_optimizer_tensors(model, optimizer, checkpoint.load_tensors(path), path)
    return state, description


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a model's feature statistics, by name."""
    return {name: buffer.cpu().clone() for name, buffer in model.named_buffers() if name.endswith(_STATISTICS)}


def check_unchanged(directory: Path, model: nn.Module, statistics: Mapping[str, Tensor], tokenizer: Tokenizer) -> None:
    """Raises CheckpointError where a run's tokenizer or feature statistics are others than its checkpoint's.

    Other pieces, or the same in another order, would give the model's outputs other meanings; new statistics would not
    be used, whatever the recipe says.

    Args:
        model: with the checkpoint's weights.
        statistics: `statistics_of` the model before it had them.
    """
    path = directory / checkpoint.TOKENIZER
    remedy = "put the old one back, or start anew with --no-resume or another --exp-dir"
    saved = path.read_bytes()
    if saved != tokenizer.to_bytes() and (difference := tokenizer.difference(type(tokenizer).from_bytes(saved))):
        raise CheckpointError(
            f"the tokenizer has been made anew since this run began: {difference}. The run's own is {path}: {remedy}"
        )
    for name, found in statistics_of(model).items():
        apart = (found - statistics[name]).abs().max().item()
        if apart > _SAME_STATISTICS:
            raise CheckpointError(
                f"the feature statistics have been made anew since this run began: {name} differs by up to {apart:.3g} "
                f"from that in {directory / checkpoint.WEIGHTS}, to which its weights belong: {remedy}"
            )


def load_average(directory: Path) -> dict[str, Tensor] | None:
    """The running average of the weights that a checkpoint holds, by name; None when it holds none."""
    path = directory / checkpoint.AVERAGE
    return checkpoint.load_tensors(path) if checkpoint.belongs(path) else None


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by name: `exp_avg/encoder.layers.0...`, `step/...`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{key}/{names[id(parameter)]}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], path: Path
) -> None:
    """Inverse of `optimizer_tensors`, onto the parameters' devices. `path` is named in the CheckpointError."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for name, value in tensors.items():
        key, _, owner = name.partition("/")
        parameter = parameters.get(owner)
        if parameter is None or (value.ndim and value.shape != parameter.shape):
            raise CheckpointError(
                f"{path} does not fit the model at {name}: remove {path.parent} or use another --exp-dir"
            )
        optimizer.state[parameter][key] = value.to(parameter.device)


def latest_checkpoint(exp_dir: Path) -> Path | None:
    """The checkpoint a run resumes from, None when there is none."""
    return next(reversed(checkpoint.step_directories(exp_dir).values()), None)


def ranking(exp_dir: Path) -> list[tuple[float, int]]:
    """(measure, step) of the checkpoints there, best first; of equals the later one.

    The measure is the first of the newest validation: checkpoints without it, of other validation sets, are not ranked.
    """
    measured: dict[int, dict[str, float]] = {}
    for step, path in checkpoint.step_directories(exp_dir).items():
        try:
            metrics = metrics_of(checkpoint.load_yaml(path / TRAINER))
        except CheckpointError:
            continue
        if metrics:
            measured[step] = metrics
    if not measured:
        return []
    by = next(iter(measured[max(measured)]))
    ranked = [(float(metrics[by]), step) for step, metrics in measured.items() if by in metrics]
    return sorted(ranked, key=lambda item: (item[0], -item[1]))


def metrics_of(description: dict[str, Any]) -> dict[str, float] | None:
    """The validation's measures in a trainer.yaml; version 0.1 wrote the word error rate alone."""
    wer = description.get("wer")
    return description.get("metrics") or (None if wer is None else {"wer": wer})


def set_aside(exp_dir: Path) -> Path | None:
    """Move the outputs of an earlier run to `previous-N` in the same directory; None when there are none."""
    outputs = [path for name in _OUTPUTS if (path := Path(exp_dir) / name).exists()]
    if not outputs:
        return None
    number = 1
    while (target := Path(exp_dir) / f"previous-{number}").exists():
        number += 1
    target.mkdir()
    for path in outputs:
        path.rename(target / path.name)
    return target
