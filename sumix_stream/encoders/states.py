"""States of a stream: named tuples of tensors whose first dimension is the batch of streams.

A state is made by `init`, joined with others by `stack` and taken apart by `unstack`, so that streams of any age
share a step. Nobody indexes a state by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sumix_kernels import DecayState, SummaryState
from sumix_stream.context import ChunkContext
from sumix_stream.trees import leaves, map_leaves


class AttentionState(NamedTuple):
    """Keys and values of the visible past: (B, W, D), right-aligned; the last `num_valid (B,)` of W frames are real."""

    keys: Tensor
    values: Tensor
    num_valid: Tensor

    @classmethod
    def init(cls, batch_size: int, dim: int, num_frames: int, device: torch.device | None = None) -> AttentionState:
        empty = torch.zeros(batch_size, num_frames, dim, device=device)
        return cls(empty, empty.clone(), torch.zeros(batch_size, dtype=torch.int64, device=device))


class SubsamplingState(NamedTuple):
    """Last frame before the chunk at each stage: normalised features (B, 1, F), first convolution (B, H, 1, F/2)."""

    feats: Tensor
    hidden: Tensor


class SeparableSubsamplingState(NamedTuple):
    """The same of three stages: (B, 1, F), (B, H, 1, F/2), (B, H, 1, F/4)."""

    feats: Tensor
    hidden: Tensor
    hidden2: Tensor


class LayerState(NamedTuple):
    """Of one conformer layer: the mixer's past and the convolution's last k//2 inputs (B, k//2, D)."""

    mixer: SummaryState | DecayState | AttentionState
    conv: Tensor


class PredictorState(NamedTuple):
    """LSTM state, (B, layers, H) each."""

    hidden: Tensor
    cell: Tensor

    @classmethod
    def init(cls, batch_size: int, num_layers: int, dim: int, device: torch.device | None = None) -> PredictorState:
        zeros = torch.zeros(batch_size, num_layers, dim, device=device)
        return cls(zeros, zeros.clone())


class EncoderState(NamedTuple):
    """Everything an encoder keeps of a stream's past under a fixed context."""

    context: ChunkContext
    subsampling: SubsamplingState | SeparableSubsamplingState
    layers: tuple[LayerState, ...]

    @property
    def batch_size(self) -> int:
        return self.subsampling.feats.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors: constant over a stream's life (attention with unlimited left context excepted)."""
        return sum(tensor.nbytes for tensor in leaves(self))

    @staticmethod
    def stack(states: Sequence[EncoderState]) -> EncoderState:
        """Join states of streams of any age under one context. Raises ValueError if contexts differ."""
        contexts = {state.context for state in states}
        if len(contexts) != 1:
            raise ValueError(f"streams of a batch share one context, got {sorted(map(str, contexts))}")
        return stack(states)

    def unstack(self) -> list[EncoderState]:
        """One state for each stream, each with batch size 1."""
        return unstack(self)


def stack(states: Sequence[Any]) -> Any:
    """Concatenate equally built states along the batch; caches of different length are aligned at their right end."""

    def join(*parts: Tensor) -> Tensor:
        if parts[0].dim() == 3:
            width = max(part.shape[1] for part in parts)
            parts = tuple(torch.nn.functional.pad(part, (0, 0, width - part.shape[1], 0)) for part in parts)
        return torch.cat(parts)

    return map_leaves(join, *states)


def unstack(state: Any) -> list[Any]:
    """The inverse of `stack` up to the padding of growing caches. The parts own their memory."""
    batch_size = next(leaves(state)).shape[0]
    return [map_leaves(lambda part, b=b: part[b : b + 1].clone(), state) for b in range(batch_size)]
