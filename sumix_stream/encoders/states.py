"""States of a stream: named tuples of tensors whose first dimension is the batch of streams.

A state is made by `init`, joined with others by `stack` and taken apart by `unstack`, so that streams of any age
share a step. Nobody indexes a state by position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sumix_kernels import DecayState, SummaryState
from sumix_stream.context import ChunkContext


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
    subsampling: SubsamplingState
    layers: tuple[LayerState, ...]

    @property
    def batch_size(self) -> int:
        return self.subsampling.feats.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors: constant over a stream's life (attention with unlimited left context excepted)."""
        return sum(tensor.nbytes for tensor in tensors(self))

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


def tensors(state: Any) -> Iterator[Tensor]:
    """All tensors of a state, depth first."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from tensors(part)


def named_tensors(state: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of a state under names such as `layers.0.conv`, in the order of `tensors`."""
    if isinstance(state, Tensor):
        yield prefix, state
    elif isinstance(state, tuple):
        names = getattr(state, "_fields", range(len(state)))
        for name, part in zip(names, state, strict=True):
            yield from named_tensors(part, f"{prefix}.{name}" if prefix else str(name))


def map_states(function: Callable[..., Tensor], *states: Any) -> Any:
    """Apply a function to the corresponding tensors of equally built states; other leaves come from the first."""
    first = states[0]
    if isinstance(first, Tensor):
        return function(*states)
    if isinstance(first, tuple):
        parts = (map_states(function, *group) for group in zip(*states, strict=True))
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return first


def stack(states: Sequence[Any]) -> Any:
    """Concatenate equally built states along the batch; caches of different length are aligned at their right end."""

    def join(*parts: Tensor) -> Tensor:
        if parts[0].dim() == 3:
            width = max(part.shape[1] for part in parts)
            parts = tuple(torch.nn.functional.pad(part, (0, 0, width - part.shape[1], 0)) for part in parts)
        return torch.cat(parts)

    return map_states(join, *states)


def unstack(state: Any) -> list[Any]:
    """The inverse of `stack` up to the padding of growing caches. The parts own their memory."""
    batch_size = next(tensors(state)).shape[0]
    return [map_states(lambda part, b=b: part[b : b + 1].clone(), state) for b in range(batch_size)]


class StateRows:
    """States of many streams as rows of bytes, one a stream: a batch is joined by one copy and split by another.

    Joining 64 states tensor by tensor (`stack`, `unstack`) takes a fifth of the time of a small encoder's step on a
    CPU, joining their rows a hundredth. Rows own their memory. Not for states that grow.

    Args:
        like: any state, whose shapes beyond the batch and types all others share.

    `starts`: bytes before each tensor of a row, in the order of `tensors`.
    """

    _ALIGNMENT = 8  # bytes: tensors within a row begin where any type may

    def __init__(self, like: Any) -> None:
        self._like = map_states(lambda part: part[:1], like)
        self._shapes = [part.shape[1:] for part in tensors(like)]
        sizes = (part[:1].nbytes for part in tensors(like))
        self.starts = list(accumulate((size + -size % self._ALIGNMENT for size in sizes), initial=0))[:-1]

    def split(self, state: Any) -> list[Tensor]:
        """One row (bytes,) uint8 for each stream. Raises ValueError for a state of other shapes."""
        parts = list(tensors(state))
        if [part.shape[1:] for part in parts] != self._shapes:
            raise ValueError("this state grows or is of another model: its shapes are not those of the rows")
        batch_size, columns = parts[0].shape[0], []
        for part in parts:
            column = part.reshape(batch_size, part.numel() // batch_size).view(torch.uint8)
            columns.append(column)
            if surplus := -column.shape[1] % self._ALIGNMENT:
                columns.append(column.new_zeros(batch_size, surplus))
        return [row.clone() for row in torch.cat(columns, 1)]

    def join(self, rows: Sequence[Tensor]) -> Any:
        """The state of the streams whose rows these are."""
        table, starts = torch.stack(list(rows)), iter(self.starts)

        def column(part: Tensor) -> Tensor:
            start = next(starts)
            return table[:, start : start + part.nbytes].view(part.dtype).view(len(rows), *part.shape[1:])

        return map_states(column, self._like)


def fill(like: Any, arrays: dict[str, Tensor]) -> Any:
    """A state built as `like`, on its devices, of the tensors of `named_tensors`.

    Raises ValueError for missing or superfluous names, other types, or shapes that differ in more than the length (the
    second dimension) of caches.
    """
    expected = dict(named_tensors(like))
    if expected.keys() != arrays.keys():
        raise ValueError(f"tensors missing, or of another state: {sorted(expected.keys() ^ arrays.keys())}")
    for name, part in expected.items():
        given = arrays[name]
        same = given.shape[:1] + given.shape[2:] == part.shape[:1] + part.shape[2:]
        if given.dim() != part.dim() or not same or given.dtype != part.dtype:
            raise ValueError(f"{name} must be {tuple(part.shape)} {part.dtype}, got {tuple(given.shape)} {given.dtype}")
    given = iter(arrays[name] for name in expected)
    return map_states(lambda part: next(given).to(part.device), like)
