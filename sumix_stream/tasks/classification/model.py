"""An encoder, the mean over its frames, and a linear layer: one score for each label.

B utterances, T0 feature frames, T encoder frames, N chunks, D channels, V labels of all sets, S sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sumix_kernels import SummaryState, chunk_summary, chunk_summary_step
from sumix_stream.config import LossConfig, ModelConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.base import make_encoder
from sumix_stream.encoders.states import EncoderState
from sumix_stream.tasks.base import TaskLoss, Weights


class ClassifierState(NamedTuple):
    """Of B streams: the encoder's, and the sums of the window's chunks."""

    encoder: EncoderState
    window: SummaryState


class Classifier(nn.Module):
    """Labels of an utterance by the mean of its frames; of a stream after each chunk, by that of a window.

    The outputs are those of all sets, one set after the other; `set_labels` says how many each has.
    """

    task = "classification"

    def __init__(self, config: ModelConfig, num_outputs: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.timebase = config, num_outputs, config.encoder.timebase
        self.encoder = make_encoder(config.encoder, self.timebase)
        self.dropout = nn.Dropout(config.encoder.dropout)
        self.head = nn.Linear(config.encoder.dim, num_outputs)
        self.sizes: tuple[int, ...] = (num_outputs,)

    def set_labels(self, sizes: Sequence[int]) -> None:
        """How many labels each set has. Raises ValueError where they are not as many as the outputs."""
        if sum(sizes) != self.vocab_size:
            raise ValueError(f"{sum(sizes)} labels do not fit a model of {self.vocab_size} outputs")
        self.sizes = tuple(sizes)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Store mean and standard deviation of the training set's features, (80,) each. They travel with the model."""
        self.encoder.subsampling.set_normalisation(mean, std)

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
        """The cross-entropy of a label for each set, targets (B, S); feats (B, T0, 80), zero-padded, with lengths."""
        logits, lengths = self.logits(feats, feat_lengths, context)
        usable = (lengths > 0) & (target_lengths == len(self.sizes))
        targets = targets * usable[:, None]
        sets = zip(logits.float().split(self.sizes, 1), targets.unbind(1), strict=False)
        each = sum(F.cross_entropy(part, target, reduction="none") for part, target in sets).masked_fill(~usable, 0.0)
        num_frames = lengths.sum()
        total = weights["labels"] * each.sum() / num_frames.clamp(min=1)
        return TaskLoss(total, {"labels": each}, usable, num_frames)

    def logits(self, feats: Tensor, lengths: Tensor, context: ChunkContext) -> tuple[Tensor, Tensor]:
        """Of whole utterances: (B, V), and their encoder frames (B,)."""
        frames, lengths = self.encoder(feats, lengths, context)
        mean = chunk_summary(frames, lengths, None, None)[:, 0]
        return self.head(self.dropout(mean)), lengths

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of logits (..., V): those of each set sum to 1."""
        return torch.cat([part.softmax(-1) for part in logits.float().split(self.sizes, -1)], -1)

    def chunk_probabilities(self, feats: Tensor, lengths: Tensor, context: ChunkContext, window: int) -> Tensor:
        """After each chunk of whole utterances, by the mean of the last `window` chunks: (B, N, V)."""
        frames, lengths = self.encoder(feats, lengths, context)
        return self.probabilities(self.head(chunk_summary(frames, lengths, context.chunk_size, window - 1)))

    def init_state(self, batch_size: int, context: ChunkContext, window: int) -> ClassifierState:
        """Of streams that have not begun; window: chunks, 1 or more."""
        dim = self.config.encoder.dim
        return ClassifierState(
            self.encoder.init_state(batch_size, context), SummaryState.init(batch_size, dim, window - 1, self.device)
        )

    def step(
        self, feats: Tensor, lengths: Tensor, state: ClassifierState, final: bool | Tensor = False
    ) -> tuple[Tensor, Tensor, ClassifierState]:
        """One chunk, feats (B, <= W, 80): probabilities (B, V), encoder frames (B,), next state.

        Equals `chunk_probabilities`.
        """
        frames, lengths, encoder = self.encoder.step(feats, lengths, state.encoder, final)
        mean, window = chunk_summary_step(frames, lengths, state.window)
        return self.probabilities(self.head(mean)), lengths, ClassifierState(encoder, window)
