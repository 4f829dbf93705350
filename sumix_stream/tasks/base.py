"""What every task provides: a model, a loss by named parts, and the measure that validation goes by.

B utterances, T0 feature frames, U targets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from sumix_stream.config import LossConfig, ModelConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.base import Encoder
from sumix_stream.registry import TASKS
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import Tokenizer

Weights = dict[str, float]  # of the parts of a loss


class TaskLoss(NamedTuple):
    """The loss of a batch.

    total: scalar, the weighted sum of the parts a frame.
    parts: by name, of each utterance (B,), in nats; exactly 0 where it is not `usable`.
    usable: (B,) bool; False for an utterance that cannot be learnt from, such as more tokens than frames.
    num_frames: scalar, encoder frames in the batch, by which losses are divided.
    """

    total: Tensor
    parts: dict[str, Tensor]
    usable: Tensor
    num_frames: Tensor

    def detach(self) -> TaskLoss:
        parts = {name: part.detach() for name, part in self.parts.items()}
        return TaskLoss(self.total.detach(), parts, self.usable, self.num_frames)

    def finite(self) -> Tensor:
        """(B,) bool: every part of the utterance's loss is a finite number."""
        return sum(part.detach() for part in self.parts.values()).isfinite()


class TaskModel(Protocol):
    """An nn.Module that computes its own loss."""

    encoder: Encoder
    timebase: Timebase

    def forward(
        self,
        feats: Tensor,
        feat_lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
        context: ChunkContext,
        weights: Weights,
        loss: LossConfig,
    ) -> TaskLoss:
        """feats (B, T0, 80) and targets (B, U), zero-padded, with lengths (B,)."""


class Task(Protocol):
    """One kind of thing that is learnt; made without arguments."""

    unusable: str  # why an utterance is not usable, for the log: `more tokens than frames allow`

    def build(self, config: ModelConfig, num_outputs: int, seed: int) -> nn.Module:
        """An untrained TaskModel on the CPU in evaluation mode; equal arguments give equal weights."""

    def weights(self, step: int, config: LossConfig) -> Weights:
        """Of all parts that a loss of this configuration may have, at a training step counted from 0."""


class Validation(Protocol):
    """What a validation found. Each measure is a fraction, lower is better; the best checkpoint goes by the first."""

    metrics: dict[str, float]

    def summary(self) -> str:
        """A line or a few, for people."""


def make_task(name: str) -> Task:
    """The task of that name. Raises ValueError with the names that there are."""
    return TASKS.get(name)()


def load_outputs(task: Task, path: str | Path) -> Any:
    """What the model's outputs stand for: a tokenizer, or what the task's own `load_outputs` reads in its place."""
    return getattr(task, "load_outputs", Tokenizer.load)(path)


def build_for(task: Task, config: ModelConfig, outputs: Any, seed: int) -> nn.Module:
    """An untrained model for these outputs (`load_outputs`)."""
    model = task.build(config, outputs.vocab_size, seed)
    if hasattr(model, "set_labels"):
        model.set_labels(outputs.sizes)
    return model
