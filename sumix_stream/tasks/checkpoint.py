"""Checkpoints: a directory of safetensors, YAML and the tokenizer. Nothing is pickled, and nothing is half written.

An experiment directory holds::

    checkpoints/step-00001000/model.safetensors   weights and feature normalisation
                              average.safetensors running average of the weights, where training keeps one
                              config.yaml         model configuration, vocabulary size
                              tokenizer.model     sentencepiece
                              SHA256SUMS          of all these, checked whenever one is read
                              ...                 what the trainer needs to go on (sumix_stream.train.resume)
    best.txt, last.txt                            each names a step directory
"""

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from safetensors import SafetensorError
from torch import Tensor, nn

from sumix_stream.checksums import SUMS, fault, read_sums, write_sums
from sumix_stream.config import ConfigError, ModelConfig
from sumix_stream.config.reader import from_dict, to_dict
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
AVERAGE = "average.safetensors"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer.model"
FORMAT = 1
LOGGER = logging.getLogger("sumix_stream")

_STEP_DIRECTORY = re.compile(r"step-(\d{8,})")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, of another model or not to be written; names the file and the remedy."""


class DamagedCheckpoint(CheckpointError):
    """A file of a checkpoint is missing or not what was saved; another checkpoint may be good."""


def save_model(directory: Path, model: Transducer, tokenizer: Tokenizer, extra: dict[str, Any] | None = None) -> None:
    """Write a model that `load_model` reads into an existing directory.

    For a checkpoint that appears whole or not at all, call it inside `write_checkpoint`.

    Args:
        extra: plain values for people to read (steps, error rate); kept under the key `extra` of config.yaml.
    """
    directory = Path(directory)
    save_tensors(directory / WEIGHTS, model.state_dict())
    description = {"vocab_size": model.vocab_size, "model": to_dict(model.config), "extra": extra or {}}
    save_yaml(directory / CONFIG, description)
    (directory / TOKENIZER).write_bytes(tokenizer.to_bytes())


def load_model(path: str | Path, *, averaged: bool = True) -> tuple[Transducer, Tokenizer]:
    """The model (on the CPU, in evaluation mode) and tokenizer of a checkpoint or experiment directory.

    Args:
        averaged: use the running average of the weights where the checkpoint has one.
    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the others.
    """
    directory = resolve_checkpoint(path)
    note_missing_sums(directory)
    description = load_yaml(directory / CONFIG)
    try:
        vocab_size, config = int(description["vocab_size"]), from_dict(ModelConfig, description["model"])
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"{directory / CONFIG} does not describe a model ({error}): {_other_copy(directory)}"
        ) from error
    model = build_model(config, vocab_size)
    load_weights(model, directory, averaged=averaged)
    return model, _load_tokenizer(directory, vocab_size)


def model_tensors(directory: Path, *, averaged: bool = True) -> dict[str, Tensor]:
    """Weights and buffers of a checkpoint by name, on the CPU; the running average of weights where there is one.

    Raises CheckpointError when a file is missing or damaged.
    """
    tensors, average = load_tensors(Path(directory) / WEIGHTS), Path(directory) / AVERAGE
    return tensors | load_tensors(average) if averaged and belongs(average) else tensors


def load_weights(model: nn.Module, directory: Path, *, averaged: bool = False) -> None:
    """Copy the weights of a checkpoint directory into `model`, in place: those of its last step, or their average.

    Raises:
        CheckpointError: the file is missing or damaged, or holds other names or shapes than the model.
    """
    path = Path(directory) / WEIGHTS
    saved, expected = model_tensors(directory, averaged=averaged), model.state_dict()
    faults = [f"{name} is missing" for name in expected if name not in saved]
    faults += [f"{name} is not in the model" for name in saved if name not in expected]
    faults += [
        f"{name} is {tuple(saved[name].shape)}, the model's is {tuple(value.shape)}"
        for name, value in expected.items()
        if name in saved and saved[name].shape != value.shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(
            f"{path} holds another model than the configured one ({'; '.join(faults[:3])}{more}): "
            "use the configuration and tokenizer it was trained with, or another directory"
        )
    model.load_state_dict(saved)


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors as safetensors. Raises OSError, as any write does (the library's own writer does not)."""
    data = safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    Path(path).write_bytes(data)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file, on the CPU. Raises CheckpointError when it is missing or damaged."""
    path = Path(path)
    require(path)
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedCheckpoint(f"{path} is damaged or truncated ({error}): {_other_copy(path.parent)}") from error


def save_yaml(path: Path, data: dict[str, Any]) -> None:
    """Write a mapping of plain values. The format comes last: a file cut short, which is often YAML too, lacks it."""
    path.write_text(yaml.safe_dump({**data, "format": FORMAT}, sort_keys=False, allow_unicode=True), encoding="utf-8")


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping that `save_yaml` wrote. Raises CheckpointError when it is missing, damaged or of another format."""
    require(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise DamagedCheckpoint(f"{path} is damaged ({error}): {_other_copy(path.parent)}") from error
    if not isinstance(data, dict) or "format" not in data:
        raise DamagedCheckpoint(f"{path} is truncated: {_other_copy(path.parent)}")
    if data["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {data['format']}, this version reads {FORMAT}: use the sumix-stream that wrote it"
        )
    return data


def belongs(path: Path) -> bool:
    """Whether a file that not every checkpoint has is there, or ought to be."""
    return path.is_file() or path.name in (read_sums(path.parent) or ())


def note_missing_sums(directory: Path) -> None:
    """Tell the log of a checkpoint that cannot be verified."""
    if directory.is_dir() and read_sums(directory) is None:
        LOGGER.info(f"{directory} has no {SUMS} (it was saved by an earlier version): loaded without verifying it")


def write_checkpoint(path: Path, writer: Callable[[Path], None]) -> None:
    """`write_directory_atomically`, with the checksums of what `writer` wrote."""

    def write(directory: Path) -> None:
        writer(directory)
        write_sums(directory)

    write_directory_atomically(path, write)


def remove_checkpoint(path: Path) -> None:
    """Remove a directory at once: killed half way, it leaves none that looks complete."""
    aside = path.with_name(f".{path.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    shutil.rmtree(aside)


def remove_remnants(exp_dir: Path) -> None:
    """Clear away what a killed process had not finished writing or removing."""
    for pattern in (".step-*.partial", ".step-*.removed"):
        for path in (Path(exp_dir) / "checkpoints").glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def write_directory_atomically(path: Path, writer: Callable[[Path], None]) -> None:
    """Let `writer` fill a directory that appears at `path` whole, on disk, or not at all.

    It is written aside in the same parent, synchronised and renamed. Whatever fails, the partial copy is removed and
    what stood beside it is untouched.

    Raises:
        CheckpointError: `path` exists already, or the disk refuses (full, read-only...).
    """
    path = Path(path)
    if path.exists():
        raise CheckpointError(f"{path} exists already: remove it, or write elsewhere")
    aside = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        writer(aside)
        for file in aside.rglob("*"):
            _sync(file)
        _sync(aside)
        aside.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot save {path}: {_write_fault(path.parent, error)}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a small text file: readers see the old text or the new, never a part. Raises CheckpointError."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_text(text, encoding="utf-8")
        _sync(aside)
        aside.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot save {path}: {_write_fault(path.parent, error)}") from error
    finally:
        aside.unlink(missing_ok=True)


def step_directory(exp_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` training steps lives."""
    return Path(exp_dir) / "checkpoints" / f"step-{step:08d}"


def step_directories(exp_dir: Path) -> dict[int, Path]:
    """The complete checkpoints of an experiment by training step, ascending."""
    found = {}
    for path in (Path(exp_dir) / "checkpoints").glob("step-*"):
        match = _STEP_DIRECTORY.fullmatch(path.name)
        if match and path.is_dir():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def point(exp_dir: Path, name: str, step: int) -> None:
    """Let `best` or `last` name the checkpoint after `step` training steps."""
    write_text_atomically(Path(exp_dir) / f"{name}.txt", f"checkpoints/{step_directory(exp_dir, step).name}\n")


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint directory meant by `path`: itself, or its best or else last one if it is an experiment.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if path.name == WEIGHTS:
        path = path.parent
    if (path / WEIGHTS).is_file() or (path / CONFIG).is_file():
        return path
    for pointer in (path / "best.txt", path / "last.txt"):
        if pointer.is_file():
            named = path / pointer.read_text(encoding="utf-8").strip()
            if named.is_dir():
                return named
            steps = _names(step_directories(path).values())
            raise CheckpointError(f"{pointer} names {named}, which is gone: give a checkpoint directory ({steps})")
    if not path.exists():
        raise CheckpointError(
            f"no checkpoint at {path}: no such directory; train one with bin/train, or check the path"
        )
    raise CheckpointError(
        f"no checkpoint at {path}: neither {WEIGHTS} nor best.txt nor last.txt is in it; "
        "give an experiment directory or one of its checkpoints"
    )


def _load_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    path = directory / TOKENIZER
    require(path)
    try:
        tokenizer = Tokenizer.from_bytes(path.read_bytes())
    except (ValueError, RuntimeError, OSError) as error:
        raise DamagedCheckpoint(f"{path} is damaged ({error}): {_other_copy(directory)}") from error
    if tokenizer.vocab_size != vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.vocab_size} tokens, the model {vocab_size}: "
            "put back the tokenizer it was trained with"
        )
    return tokenizer


def require(path: Path) -> None:
    """Raise DamagedCheckpoint unless the file is there and, where its directory has checksums, is what was saved."""
    if not path.is_file():
        raise DamagedCheckpoint(f"{path} is missing: {_other_copy(path.parent)}")
    if (wrong := fault(path)) is not None:
        raise DamagedCheckpoint(
            f"{path} is damaged or was changed ({wrong}): {_other_copy(path.parent)}; if you changed it on purpose, "
            f"remove {SUMS}"
        )


def _other_copy(directory: Path) -> str:
    """The remedy for a checkpoint that cannot be used, naming those beside it."""
    others = _names(path for path in step_directories(directory.parent.parent).values() if path != directory)
    return f"use another checkpoint ({others}) or copy it again from its source"


def _names(directories: Iterable[Path]) -> str:
    return ", ".join(map(str, directories)) or "none is beside it"


def _write_fault(folder: Path, error: OSError) -> str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return str(error)
    try:
        free = f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB are free"
    except OSError:
        free = "free space unknown"
    return f"the disk is full ({free} at {folder}); earlier checkpoints are intact. Free some space and resume"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
