"""LSTM language model over the transducer's tokens, for shallow fusion; `tasks.language_model` trains it.

N sequences, V vocabulary with blank = 0, P channels, Y layers. A directory holds model.safetensors and config.yaml.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sumix_kernels.lstm import lstm_arrays, step_lstms
from sumix_stream.checkpoint.arrays import load_arrays
from sumix_stream.checkpoint.layout import CONFIG, WEIGHTS, CheckpointError, load_yaml
from sumix_stream.config import ConfigError, PredictorConfig
from sumix_stream.config.reader import from_dict
from sumix_stream.runtime.base import PredictorState
from sumix_stream.runtime.weights import digest
from sumix_stream.search.beam import log_softmax
from sumix_stream.trees import leaves

_PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of an LSTM's layer


class NeuralLmState(NamedTuple):
    """What the model keeps of N sequences."""

    output: np.ndarray  # (N, P) after the last token
    past: PredictorState


def _fastest_step() -> Callable[..., None]:
    """Compiled, where that can be had."""
    try:
        from sumix_kernels import cpu
    except ImportError:
        return step_lstms
    return cpu.step_lstms


class NeuralLm:
    """As `fusion.LanguageModel`.

    Args:
        vocab_size: tokens, blank included, which is the start symbol and never predicted.
        arrays: by the names of `tasks.language_model.LstmLm`. Raises KeyError for one that is missing.
    """

    blank_id = 0

    def __init__(self, config: PredictorConfig, vocab_size: int, arrays: Mapping[str, np.ndarray]) -> None:
        self._step = _fastest_step()
        self.config, self.vocab_size = config, vocab_size
        layers = [[f"predictor.lstm.{part}_l{y}" for part in _PARTS] for y in range(config.num_layers)]
        names = ["predictor.embedding.weight", *chain(*layers), "output.weight", "output.bias"]
        self._named = [(name, np.ascontiguousarray(arrays[name], np.float32)) for name in names]
        of = dict(self._named)
        self._lstm = lstm_arrays(of[names[0]], [tuple(of[name] for name in layer) for layer in layers])
        self._weight, self._bias = of["output.weight"].T, of["output.bias"].copy()
        self._bias[self.blank_id] = -np.inf

    @classmethod
    def load(cls, directory: str | os.PathLike) -> NeuralLm:
        """Raises CheckpointError naming the file that is missing, damaged or does not fit the other."""
        directory = Path(directory)
        description = load_yaml(directory / CONFIG)
        try:
            config, vocab_size = from_dict(PredictorConfig, description["lstm_lm"]), int(description["vocab_size"])
        except (KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(
                f"{directory / CONFIG} does not describe an LSTM language model ({error}): give a directory that "
                "LstmLm.save wrote"
            ) from error
        arrays = load_arrays(directory / WEIGHTS)
        try:
            lm = cls(config, vocab_size, arrays)
            assert lm._weight.shape == (config.hidden_dim, vocab_size)
            return lm
        except (KeyError, ValueError, AssertionError) as error:
            raise CheckpointError(
                f"{directory / WEIGHTS} holds another model than {CONFIG} describes ({error}): save it again"
            ) from error

    @cached_property
    def fingerprint(self) -> str:
        return digest(("", array) for _, array in self._named)

    def start(self, batch_size: int) -> NeuralLmState:
        zeros = np.zeros((batch_size, self.config.num_layers, self.config.hidden_dim), np.float32)
        return self._after(np.full(batch_size, self.blank_id), PredictorState(zeros, zeros))

    def log_probs(self, state: NeuralLmState) -> np.ndarray:
        return log_softmax(state.output @ self._weight + self._bias)

    def advance(self, tokens: np.ndarray, state: NeuralLmState) -> NeuralLmState:
        return self._after(tokens, state.past)

    def check(self, state: NeuralLmState) -> None:
        if not all(np.isfinite(part).all() for part in leaves(state)):
            raise ValueError("the language model's state is not finite")

    def _after(self, tokens: np.ndarray, past: PredictorState) -> NeuralLmState:
        hidden, cell = (np.array(part, order="C") for part in past)
        self._step(np.ascontiguousarray(tokens), hidden, cell, *self._lstm)
        return NeuralLmState(hidden[:, -1].copy(), PredictorState(hidden, cell))
