"""Models of PyTorch to and from checkpoints, which `sumix_stream.checkpoint` reads and writes."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from sumix_stream.checkpoint.arrays import Shapes, load_arrays, model_arrays
from sumix_stream.checkpoint.layout import (
    AVERAGE,
    CONFIG,
    TOKENIZER,
    TRANSDUCER,
    WEIGHTS,
    CheckpointError,
    DamagedCheckpoint,
    belongs,
    load_yaml,
    note_missing_sums,
    require,
    resolve_checkpoint,
    step_directories,
    step_directory,
)
from sumix_stream.checkpoint.reading import read_checkpoint
from sumix_stream.checkpoint.shapes import check_shapes
from sumix_stream.checkpoint.writing import (
    point,
    remove_checkpoint,
    remove_remnants,
    save_yaml,
    write_checkpoint,
    write_directory_atomically,
    write_text_atomically,
)
from sumix_stream.config import ModelConfig
from sumix_stream.config.reader import to_dict
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.tokenizer import Tokenizer

__all__ = [
    "AVERAGE",
    "CONFIG",
    "TOKENIZER",
    "WEIGHTS",
    "CheckpointError",
    "DamagedCheckpoint",
    "belongs",
    "load_model",
    "load_tensors",
    "load_weights",
    "load_yaml",
    "note_missing_sums",
    "point",
    "remove_checkpoint",
    "remove_remnants",
    "require",
    "resolve_checkpoint",
    "save_model",
    "save_tensors",
    "save_yaml",
    "step_directories",
    "step_directory",
    "write_checkpoint",
    "write_directory_atomically",
    "write_text_atomically",
]


def save_model(directory: Path, model: Transducer, tokenizer: Tokenizer, extra: dict[str, Any] | None = None) -> None:
    """Write a model that `load_model` reads into an existing directory.

    For a checkpoint that appears whole or not at all, call it inside `write_checkpoint`.

    Args:
        extra: plain values for people to read (steps, error rate); kept under the key `extra` of config.yaml.
    """
    directory = Path(directory)
    save_tensors(directory / WEIGHTS, model.state_dict())
    description = {"vocab_size": model.vocab_size, "model": to_dict(model.config), "extra": extra or {}}
    if (task := getattr(model, "task", TRANSDUCER)) != TRANSDUCER:
        description["task"] = task
    save_yaml(directory / CONFIG, description)
    (directory / TOKENIZER).write_bytes(tokenizer.to_bytes())


def load_model(path: str | Path, average: int | str | None = None) -> tuple[Transducer, Tokenizer]:
    """The model (on the CPU, in evaluation mode) and tokenizer of a checkpoint or experiment directory.

    Args and errors: see `sumix_stream.checkpoint.read_checkpoint`.
    """
    read = read_checkpoint(path, average, shapes=_shapes)
    model = build_model(read.config, read.vocab_size)
    model.load_state_dict(_tensors(read.arrays))
    return model, read.tokenizer


def load_weights(model: nn.Module, directory: Path, *, averaged: bool = False) -> None:
    """Copy the weights of a checkpoint directory into `model`, in place: those of its last step, or their average.

    Raises:
        CheckpointError: the file is missing or damaged, or holds other names or shapes than the model.
    """
    arrays = model_arrays(directory, averaged=averaged)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    check_shapes({name: value.shape for name, value in arrays.items()}, expected, Path(directory) / WEIGHTS)
    model.load_state_dict(_tensors(arrays))


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors as safetensors. Raises OSError, as any write does (the library's own writer does not)."""
    data = safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    Path(path).write_bytes(data)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file, on the CPU. Raises CheckpointError when it is missing or damaged."""
    return _tensors(load_arrays(path))


def _tensors(arrays: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def _shapes(config: ModelConfig, vocab_size: int) -> Shapes:
    """Of any model that can be built, without its memory."""
    with torch.device("meta"):
        model = build_model(config, vocab_size)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
