"""What recognisers ask of a model, be it PyTorch's or an exported bundle's: the one seam between search and networks.

B streams, W feature frames of a window, T encoder frames, D encoder, P predictor and J joiner channels, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from sumix_stream.context import ChunkContext
from sumix_stream.encoders.states import PredictorState
from sumix_stream.timebase import Timebase


class Predictor(Protocol):
    """The language side, token by token."""

    def init_state(self, batch_size: int) -> PredictorState:
        """Before the first blank."""

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        """tokens (B,) -> (B, P), next state."""


class Joiner(Protocol):
    """Logits of an encoder frame and a predictor output. Projections are made once a frame and once a token."""

    def project_encoder(self, enc: Tensor) -> Tensor:
        """(..., D) -> (..., J)."""

    def project_predictor(self, pred: Tensor) -> Tensor:
        """(..., P) -> (..., J)."""

    def join(self, enc_proj: Tensor, pred_proj: Tensor) -> Tensor:
        """(..., J) twice, broadcast against each other -> logits (..., V)."""


class AcousticModel(Protocol):
    """What searches see of a model: `tasks.transducer.model.Transducer` or `runtime.exported.ExportedModel`."""

    blank_id: int
    vocab_size: int
    timebase: Timebase
    device: torch.device
    predictor: Predictor
    joiner: Joiner


class StreamEncoder(Protocol):
    """An encoder under one context, for streams of any age. What it keeps of a stream is its own business: an opaque
    object, whose memory ends with it."""

    context: ChunkContext
    window: int  # feature frames of a chunk
    batch_sizes: tuple[int, ...]  # that steps are quick at, in rising order; none = no matter

    def begin(self) -> Any:
        """The state of a stream that has heard nothing."""

    def step(
        self, feats: Tensor, lengths: Tensor, final: Tensor, streams: Sequence[Any]
    ) -> AbstractContextManager[Tensor]:
        """One chunk of every stream: its encoder frames (B, T, D), valid ones first, within a `with`.

        The states move when the block ends; if it raises, no state has changed. Called under inference mode.

        Args:
            feats: (B, <= W, 80) on the CPU; a whole window unless every stream ends.
            lengths: (B,) valid feature frames on the CPU; fewer than a window only where final (B,) is true.
        """

    def end(self, stream: Any) -> None:
        """The stream has heard its last chunk: its state is of no more use, and its place may be given to another."""

    def nbytes(self, stream: Any) -> int:
        """Bytes kept of a stream's past."""

    def save(self, stream: Any) -> dict[str, Tensor]:
        """A stream's state as named tensors."""

    def restore(self, arrays: dict[str, Tensor]) -> Any:
        """The inverse of `save`. Raises ValueError for what `save` does not write."""
