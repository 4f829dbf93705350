"""Checkpoints from their files, ready for a runtime."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from sumix_stream.runtime.weights import Weights
from sumix_stream.tasks.averaging import load_averaged
from sumix_stream.tasks.checkpoint import (  # noqa: F401
    CONFIG,
    WEIGHTS,
    CheckpointError,
    load_model,
    load_tensors,
    load_yaml,
)
from sumix_stream.tokenizer import Tokenizer


def load_weights(
    path: str | os.PathLike, average: int | str | None = None, *, device: str = "cpu", precision: str = "fp32"
) -> tuple[Weights, Tokenizer]:
    model, tokenizer = load_model(path) if average is None else load_averaged(path, average)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    weights = Weights(model.config, model.vocab_size, arrays, source=str(path), device=device, precision=precision)
    return weights, tokenizer


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in load_tensors(path).items()}
