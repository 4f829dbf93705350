"""What every encoder and every mixer provides.

B batch, T0 feature frames, T encoder frames, C frames of a chunk, D channels.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from sumix_stream.config import EncoderConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.states import EncoderState
from sumix_stream.registry import ENCODERS
from sumix_stream.timebase import Timebase


class Mixer(Protocol):
    """What lets frames of a layer see each other; an nn.Module made as `Mixer(config)`."""

    peak_rate: float  # learning rate that it bears at 144 channels
    residual_outputs: list[nn.Linear]  # its last products before the residual sum

    def forward(self, x: Tensor, lengths: Tensor, context: ChunkContext) -> Tensor:
        """x (B, T, D), lengths (B,) -> (B, T, D): under the context, padded frames zero."""

    def init_state(self, batch_size: int, context: ChunkContext) -> Any:
        """A named tuple of tensors whose first dimension is the batch."""

    def step(self, x: Tensor, lengths: Tensor, state: Any, context: ChunkContext) -> tuple[Tensor, Any]:
        """One chunk x (B, <= C, D) with lengths (B,) valid frames -> (B, <= C, D), next state; equals `forward`."""

    def state_grows(self, context: ChunkContext) -> bool:
        """Whether its state becomes larger with every chunk."""

    def describe(self) -> str:
        """Its name for people."""


@runtime_checkable
class FusedMixer(Protocol):
    """A mixer that, where `fuses`, adds itself to what it is of in one compiled function, for training on a CPU."""

    fuses: bool

    def add_to(
        self, x: Tensor, norm: nn.LayerNorm, lengths: Tensor, context: ChunkContext, branches: ModuleType
    ) -> Tensor:
        """x + forward(norm(x), lengths, context) by `sumix_kernels.training.branches`."""


class Encoder(Protocol):
    """Features to encoder frames; an nn.Module made as `Encoder(config, timebase)`."""

    config: EncoderConfig
    timebase: Timebase
    subsampling: nn.Module  # its front end, with the buffers feature_mean and feature_std
    peak_rate: float  # learning rate that it bears at 144 channels

    def forward(self, feats: Tensor, lengths: Tensor, context: ChunkContext) -> tuple[Tensor, Tensor]:
        """Whole utterances: feats (B, T0, 80), lengths (B,) in feature frames -> (B, T, D), (B,) encoder frames."""

    def window(self, context: ChunkContext) -> int:
        """Feature frames of a chunk. Raises ValueError for full context, which cannot stream."""

    def init_state(self, batch_size: int, context: ChunkContext) -> EncoderState:
        """Before the first chunk."""

    def step(
        self, feats: Tensor, lengths: Tensor, state: EncoderState, final: bool | Tensor = False
    ) -> tuple[Tensor, Tensor, EncoderState]:
        """One chunk: feats (B, <= window, 80) -> (B, C, D), (B,), next state; equals `forward`."""

    def state_grows(self, context: ChunkContext) -> bool:
        """Whether a stream's state becomes larger with every chunk."""

    def describe(self) -> str:
        """Its name for people, such as `conformer with SummaryMixing (fast)`."""


def make_encoder(config: EncoderConfig, timebase: Timebase | None = None) -> Encoder:
    """The encoder that `config.kind` names. Raises ValueError with the names that there are."""
    return ENCODERS.get(config.kind)(config, timebase)
