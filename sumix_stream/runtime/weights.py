"""A trained transducer as named arrays: what runtimes that hold a checkpoint are made of."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from sumix_stream.checkpoint import read_checkpoint
from sumix_stream.config import ModelConfig
from sumix_stream.config.reader import to_dict
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import Tokenizer

PRECISIONS = ("fp32", "bf16")


class Weights:
    """Configuration and arrays of a model.

    Args:
        arrays: by the names of the model's `state_dict`.
        module: the model in PyTorch, where there is one already; `arrays` are then its own.
        source: what messages call it.
        device: where PyTorch would run it.
        precision: of the factors of the encoder's products, fp32 or bf16.
        cuda_graph: whether PyTorch's steps on a GPU may be one graph each.
    """

    blank_id = 0

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        arrays: Mapping[str, np.ndarray] | None = None,
        *,
        module: Any = None,
        source: str = "this model",
        device: str = "cpu",
        precision: str = "fp32",
        timebase: Timebase | None = None,
        cuda_graph: bool = True,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.config, self.vocab_size, self.timebase = config, vocab_size, timebase or config.encoder.timebase
        self.source, self.device, self.precision, self.cuda_graph = source, device, precision, cuda_graph
        self.module = module
        if arrays is not None:
            self.arrays = arrays

    @classmethod
    def read(
        cls, path: str | os.PathLike, average: int | str | None = None, **options: Any
    ) -> tuple[Weights, Tokenizer]:
        """Of a checkpoint or experiment directory, with its tokenizer; raises as `checkpoint.read_checkpoint`."""
        found = read_checkpoint(path, average)
        return cls(found.config, found.vocab_size, found.arrays, source=str(path), **options), found.tokenizer

    @classmethod
    def of(cls, module: Any, **options: Any) -> Weights:
        """Of a `Transducer`; arrays share the memory of weights on the CPU. Options as of the class."""
        about = {"module": module, "device": str(module.device), "timebase": module.timebase}
        return cls(module.config, module.vocab_size, **(about | options))

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: of a model in PyTorch, its arrays are taken from it again."""
        made = ("arrays", "fingerprint") if self.module is not None else ("fingerprint",)
        return {name: value for name, value in vars(self).items() if name not in made}

    @cached_property
    def arrays(self) -> Mapping[str, np.ndarray]:
        return {name: tensor.detach().cpu().numpy() for name, tensor in self.module.state_dict().items()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over configuration, timebase, vocabulary size, and all weights and buffers."""
        about = json.dumps([to_dict(self.config), vars(self.timebase), self.vocab_size], sort_keys=True)
        return digest(sorted(self.arrays.items()), about.encode())

    def __str__(self) -> str:
        return self.source


def digest(named: Iterable[tuple[str, np.ndarray]], begin: bytes = b"") -> str:
    """SHA-256 over names, types, shapes and values. Types are called as PyTorch calls them, which wrote the first."""
    total = hashlib.sha256(begin)
    for name, array in named:
        total.update(f"{name} torch.{array.dtype} {tuple(array.shape)}".lstrip().encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
