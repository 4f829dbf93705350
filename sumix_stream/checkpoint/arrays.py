"""Named arrays of safetensors files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from sumix_stream.checkpoint.layout import AVERAGE, WEIGHTS, CheckpointError, DamagedCheckpoint, belongs, other_copy
from sumix_stream.checkpoint.layout import require as require_file

Shapes = dict[str, tuple[int, ...]]
_KINDS = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


def array_shapes(path: Path) -> Shapes:
    """Shapes by name, from the header alone. Raises CheckpointError when the file is missing or damaged."""
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Named arrays; bfloat16, which NumPy has not, as float32. Raises CheckpointError: missing or damaged."""
    with _opened(path) as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}
        for name, kind in kinds.items():
            if kind not in _KINDS:
                raise CheckpointError(f"{path}: {name} is {kind}, which cannot be read here: save it as float32")
        halves = {name for name, kind in kinds.items() if kind == "BF16"}
        arrays = {name: file.get_tensor(name) for name in kinds if name not in halves}
        if halves:
            stored = {name: value for name, value in deserialize(Path(path).read_bytes()) if name in halves}
            arrays |= {name: _widened(value["data"]).reshape(value["shape"]) for name, value in stored.items()}
    return arrays


def model_shapes(directory: Path) -> Shapes:
    """Shapes of a checkpoint's weights and buffers."""
    return array_shapes(Path(directory) / WEIGHTS)


def model_arrays(directory: Path, *, averaged: bool = True) -> dict[str, np.ndarray]:
    """Weights and buffers of a checkpoint by name; the running average of weights where there is one.

    Raises CheckpointError when a file is missing or damaged, or the average is not one of these weights.
    """
    arrays, path = load_arrays(Path(directory) / WEIGHTS), Path(directory) / AVERAGE
    if not (averaged and belongs(path)):
        return arrays
    average = load_arrays(path)
    for name, value in average.items():
        if name not in arrays or value.shape != arrays[name].shape:
            raise CheckpointError(
                f"{path} is an average of another model's weights ({name}): {other_copy(path.parent)}, or load "
                "the weights of the last step with average none"
            )
    return arrays | average


def mean_arrays(directories: Sequence[Path]) -> dict[str, np.ndarray]:
    """Mean of the weights of checkpoint directories, summed in fp64; each is its running average where it has one.

    Raises CheckpointError: a file is missing or damaged, or names or shapes differ.
    """
    total: dict[str, np.ndarray] = {}
    kinds: dict[str, np.dtype] = {}
    for directory in directories:
        arrays = model_arrays(directory)
        if not total:
            kinds = {name: value.dtype for name, value in arrays.items()}
            total = {name: value.astype(np.float64) for name, value in arrays.items()}
            continue
        if {n: v.shape for n, v in arrays.items()} != {n: v.shape for n, v in total.items()}:
            raise CheckpointError(
                f"{directory} and {directories[0]} hold different models, so their weights have no mean: average "
                "checkpoints of one run"
            )
        for name, value in arrays.items():
            total[name] = total[name] + value
    return {name: (value / len(directories)).astype(kinds[name]) for name, value in total.items()}


def _widened(halves: bytes) -> np.ndarray:
    """bfloat16 is the upper half of a float32."""
    return (np.frombuffer(halves, np.uint16).astype(np.uint32) << 16).view(np.float32)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    path = Path(path)
    require_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DamagedCheckpoint(f"{path} is damaged or truncated ({error}): {other_copy(path.parent)}") from error
