"""Where a checkpoint's files are, which are whole, and the errors that name them.

An experiment directory holds::

    checkpoints/step-00001000/model.safetensors   weights and feature normalisation
                              average.safetensors running average of the weights, where training keeps one
                              config.yaml         model configuration, vocabulary size
                              tokenizer.model     sentencepiece
                              SHA256SUMS          of all these, checked whenever one is read
                              ...                 what the trainer needs to go on (sumix_stream.train.resume)
    best.txt, last.txt                            each names a step directory
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from sumix_stream.checksums import SUMS, fault, read_sums
from sumix_stream.config.bounded_yaml import read_bounded

WEIGHTS = "model.safetensors"
AVERAGE = "average.safetensors"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer.model"
TRANSDUCER = "transducer"  # the task of a description that names none
FORMAT = 1
LOGGER = logging.getLogger("sumix_stream")

_STEP_DIRECTORY = re.compile(r"step-(\d{8,})")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, of another model or not to be written; names the file and the remedy."""


class DamagedCheckpoint(CheckpointError):
    """A file of a checkpoint is missing or not what was saved; another checkpoint may be good."""


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping that `save_yaml` wrote. Raises CheckpointError when it is missing, damaged or of another format."""
    require(path)
    try:
        data = read_bounded(path, yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise DamagedCheckpoint(f"{path} is damaged ({error}): {other_copy(path.parent)}") from error
    if not isinstance(data, dict) or "format" not in data:
        raise DamagedCheckpoint(f"{path} is truncated: {other_copy(path.parent)}")
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


def require(path: Path) -> None:
    """Raise DamagedCheckpoint unless the file is there and, where its directory has checksums, is what was saved."""
    if not path.is_file():
        raise DamagedCheckpoint(f"{path} is missing: {other_copy(path.parent)}")
    if (wrong := fault(path)) is not None:
        raise DamagedCheckpoint(
            f"{path} is damaged or was changed ({wrong}): {other_copy(path.parent)}; if you changed it on purpose, "
            f"remove {SUMS}"
        )


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


def other_copy(directory: Path) -> str:
    """The remedy for a checkpoint that cannot be used, naming those beside it."""
    others = _names(path for path in step_directories(directory.parent.parent).values() if path != directory)
    return f"use another checkpoint ({others}) or copy it again from its source"


def _names(directories: Iterable[Path]) -> str:
    return ", ".join(map(str, directories)) or "none is beside it"
