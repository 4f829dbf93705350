"""LSTM language model over the transducer's tokens, as it is trained; `search.neural_lm` is the same for fusion.

It is a transducer's predictor with an output of its own. N sequences, U tokens of the longest, V vocabulary with
blank = 0, P channels. A directory holds model.safetensors and config.yaml.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sumix_stream.config import ConfigError, PredictorConfig
from sumix_stream.config.reader import from_dict
from sumix_stream.tasks.checkpoint import (
    CONFIG,
    WEIGHTS,
    CheckpointError,
    load_weights,
    load_yaml,
    save_tensors,
    save_yaml,
)
from sumix_stream.tasks.transducer.predictor import LstmPredictor


class LstmLm(nn.Module):
    """In evaluation mode when made or loaded.

    Args:
        config: sizes of embedding and LSTM.
        vocab_size: tokens, blank included, which is the start symbol and never predicted.
        seed: of the weights. The global random state is left as it was.
    """

    def __init__(self, config: PredictorConfig, vocab_size: int, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.predictor = LstmPredictor(config, vocab_size)
            self.output = nn.Linear(self.predictor.dim, vocab_size)
        self.eval()

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Mean negative log-likelihood in nats of tokens (N, U), zero-padded, with lengths (N,)."""
        logits = self.output(self.predictor(tokens)[:, :-1])
        blank = torch.arange(self.vocab_size, device=logits.device) == self.predictor.blank_id
        logits = logits.masked_fill(blank, -torch.inf)
        valid = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        return cross_entropy(logits[valid], tokens[valid])

    def save(self, directory: str | os.PathLike) -> None:
        """Write into a directory, made if missing."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        save_tensors(directory / WEIGHTS, self.state_dict())
        save_yaml(directory / CONFIG, {"vocab_size": self.vocab_size, "lstm_lm": asdict(self.config)})

    @classmethod
    def load(cls, directory: str | os.PathLike) -> LstmLm:
        """On the CPU. Raises CheckpointError naming the file that is missing, damaged or does not fit the other."""
        directory = Path(directory)
        description = load_yaml(directory / CONFIG)
        try:
            config = from_dict(PredictorConfig, description["lstm_lm"])
            model = cls(config, int(description["vocab_size"]))
        except (KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(
                f"{directory / CONFIG} does not describe an LSTM language model ({error}): give a directory that "
                "LstmLm.save wrote"
            ) from error
        load_weights(model, directory)
        return model
