"""The encoders of streams (base.StreamEncoder): PyTorch's by rows or in slots, and an exported bundle's.

B streams, W feature frames of a window, S slots.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sumix_stream.context import ChunkContext
from sumix_stream.encoders import states
from sumix_stream.encoders.conformer import ConformerEncoder
from sumix_stream.encoders.states import EncoderState, StateRows
from sumix_stream.features import NUM_BINS
from sumix_stream.runtime.base import AcousticModel, StreamEncoder
from sumix_stream.runtime.compiled_steps import FusedSteps
from sumix_stream.runtime.cuda_graph import EncoderSlots
from sumix_stream.runtime.exported import ExportedModel

DEFAULT = "default"  # a bundle's own; else what the caller of `as_context` says
STREAMING = ("640ms", 4)  # chunk, and chunks of left context


def as_context(
    model: AcousticModel,
    chunk: str | int | ChunkContext = DEFAULT,
    left_context: int | str | None = DEFAULT,
    otherwise: tuple[str, int | None] = STREAMING,
) -> ChunkContext:
    """`full`, `640ms`, `0.64s` or 16 (encoder frames) with `left_context` in chunks (None = unlimited), or as it is.

    Args:
        otherwise: what DEFAULT means for chunk and left context of a model that is no bundle.
    Raises:
        ValueError: for a duration that is no whole number of the model's encoder frames, and for another context than
            a bundle's.
    """
    own = model.context if isinstance(model, ExportedModel) else None
    if not isinstance(chunk, ChunkContext):
        default = otherwise if own is None else (own.chunk_size, own.left_context)
        chunk, left_context = (d if given == DEFAULT else given for given, d in zip((chunk, left_context), default))
        chunk = ChunkContext.parse(chunk, left_context, model.timebase)
    if own is not None and chunk != own:
        raise ValueError(
            f"{model.bundle.folder} was exported for chunks of {own}, got {chunk}: leave chunk and left context out, "
            "or export the checkpoint under the one you want"
        )
    return chunk


def make_encoder(model: AcousticModel, context: ChunkContext, *, slots: bool = False) -> StreamEncoder:
    """The encoder of a model's streams.

    Args:
        slots: keep the states of PyTorch's streams in slots, as one CUDA graph on a GPU, where they do not grow.
    Raises:
        ValueError: for full context, which cannot stream, and for another context than a bundle's own.
    """
    if isinstance(model, ExportedModel):
        return BundleEncoder(model, context)
    if slots and not _grows(model.encoder, context):
        return SlotEncoder(model.encoder, context)
    return RowEncoder(model.encoder, context)


def _grows(encoder: ConformerEncoder, context: ChunkContext) -> bool:
    return encoder.state_grows(context)


@dataclass(eq=False)
class _Kept:
    """The state of one stream: a row of bytes, or an EncoderState where it grows."""

    state: Tensor | EncoderState


class RowEncoder:
    """PyTorch's encoder, each stream with a state of its own: only streams that move are computed."""

    def __init__(self, encoder: ConformerEncoder, context: ChunkContext) -> None:
        self.encoder, self.context, self.window = encoder, context, encoder.window(context)
        with torch.inference_mode():
            self._fresh = encoder.init_state(1, context)
        self._rows = None if _grows(encoder, context) else StateRows(self._fresh)
        self.batch_sizes = encoder.batch_sizes

    @cached_property
    def _fused(self) -> FusedSteps | None:
        """Made when first needed: who serves through other processes needs no compiler."""
        return FusedSteps(self.encoder, self.context, self._rows) if FusedSteps.fits(self.encoder) else None

    def begin(self) -> _Kept:
        return self._keep(self._fresh)

    @contextmanager
    def step(self, feats: Tensor, lengths: Tensor, final: Tensor, streams: Sequence[_Kept]) -> Iterator[Tensor]:
        before = [stream.state for stream in streams]
        step = self._general_step if self._fused is None else self._fused_step
        frames, after = step(feats, lengths, final, before)
        yield frames
        for stream, part in zip(streams, after, strict=True):
            stream.state = part

    def _fused_step(self, feats: Tensor, lengths: Tensor, final: Tensor, before: list) -> tuple[Tensor, list]:
        short = (lengths.numpy() != self.window) & ~final.numpy()
        assert not short.any(), f"a chunk of {lengths.tolist()} frames, {self.window} expected"
        frames, table = self._fused.step(feats, lengths, torch.stack(before).view(torch.float32))
        return frames, [row.clone() for row in table.view(torch.uint8)]

    def _general_step(self, feats: Tensor, lengths: Tensor, final: Tensor, before: list) -> tuple[Tensor, list]:
        count, device = len(before), self._fresh.subsampling.feats.device
        surplus = self._batch_size(count) - count
        if surplus:  # the first again, as often as it takes
            feats, lengths, final = (
                torch.cat([x, x[:1].expand(surplus, *x.shape[1:])]) for x in (feats, lengths, final)
            )
        state = self._join([*before, *before[:1] * surplus])
        frames, _, state = self.encoder.step(feats.to(device), lengths.to(device), state, final=final.to(device))
        return frames[:count], self._split(state)[:count]

    def end(self, stream: _Kept) -> None:
        """Its state is its own: it ends with the stream."""

    def nbytes(self, stream: _Kept) -> int:
        return sum(tensor.nbytes for tensor in states.tensors(stream.state))

    def save(self, stream: _Kept) -> dict[str, Tensor]:
        return dict(states.named_tensors(self._join([stream.state])))

    def restore(self, arrays: dict[str, Tensor]) -> _Kept:
        return self._keep(states.fill(self._fresh, arrays))

    @torch.inference_mode()
    def _keep(self, state: EncoderState) -> _Kept:
        return _Kept(self._split(state)[0])

    def _batch_size(self, count: int) -> int:
        """The next size from `count` on that the encoder is quick at; beyond the largest, multiples of 8."""
        sizes = self.batch_sizes
        return next((size for size in sizes if size >= count), -(-count // 8) * 8) if sizes else count

    def _join(self, parts: list) -> EncoderState:
        return EncoderState.stack(parts) if self._rows is None else self._rows.join(parts)

    def _split(self, state: EncoderState) -> list:
        return state.unstack() if self._rows is None else self._rows.split(state)


class _Places:
    """Numbers of places in a table, lent to streams; a place comes back when its stream is dropped or has ended."""

    def __init__(self) -> None:
        self.capacity = 0
        self.free: list[int] = []

    def enlarge(self, capacity: int) -> None:
        self.free += range(self.capacity, capacity)
        self.capacity = capacity

    def lend(self) -> _Place:
        return _Place(self)


class _Place:
    """One stream's place; `index` is None once the stream has ended."""

    def __init__(self, places: _Places) -> None:
        self.index: int | None = places.free.pop()
        # A list's append is whole even where the collector runs in another thread.
        self._give_back = weakref.finalize(self, places.free.append, self.index)
        self._give_back.atexit = False

    def end(self) -> None:
        self.index = None
        self._give_back()


class SlotEncoder:
    """PyTorch's encoder over `EncoderSlots`: on a GPU a step of all slots is one CUDA graph. Slots double when they run
    out.

    Args:
        num_slots: to begin with.
        cuda_graph: as of EncoderSlots.
    """

    batch_sizes = ()

    def __init__(
        self, encoder: ConformerEncoder, context: ChunkContext, num_slots: int = 8, *, cuda_graph: bool | None = None
    ) -> None:
        self.encoder, self.context, self.window = encoder, context, encoder.window(context)
        self._cuda_graph, self._num_slots = cuda_graph, num_slots
        with torch.inference_mode():
            self._fresh = encoder.init_state(1, context)
        self._places = _Places()
        self._slots: EncoderSlots | None = None

    def begin(self) -> _Place:
        return self._place(self._fresh)

    @contextmanager
    def step(self, feats: Tensor, lengths: Tensor, final: Tensor, streams: Sequence[_Place]) -> Iterator[Tensor]:
        rows = torch.tensor([stream.index for stream in streams])
        table = torch.zeros(self._slots.num_slots, self.window, NUM_BINS)
        table[rows, : feats.shape[1]] = feats
        sizes = lengths.new_zeros(self._slots.num_slots).index_copy(0, rows, lengths)
        ends = final.new_zeros(self._slots.num_slots).index_copy(0, rows, final)
        frames, _ = self._slots.step(table, sizes, ends)
        try:
            yield frames[rows.to(frames.device)]
        except BaseException:
            self._slots.undo()
            raise

    def end(self, stream: _Place) -> None:
        stream.end()

    def nbytes(self, stream: _Place) -> int:
        return self._fresh.nbytes

    def save(self, stream: _Place) -> dict[str, Tensor]:
        state = self._fresh if stream.index is None else self._slots.state(stream.index)
        return dict(states.named_tensors(state))

    def restore(self, arrays: dict[str, Tensor]) -> _Place:
        return self._place(states.fill(self._fresh, arrays))

    def _place(self, state: EncoderState) -> _Place:
        if not self._places.free:
            slots = EncoderSlots(
                self.encoder,
                self.context,
                2 * self._places.capacity or self._num_slots,
                cuda_graph=self._cuda_graph,
                can_undo=True,
            )
            if self._slots is not None:
                slots.adopt(self._slots)
            self._slots = slots
            self._places.enlarge(slots.num_slots)
        place = self._places.lend()
        self._slots.load(place.index, state)
        return place


class BundleEncoder:
    """An exported bundle's encoder. The states of all streams lie in one table for each of the bundle's caches, so that
    a batch is gathered and put back by one copy each. The tables double when they are full.

    Raises ValueError for another context than the bundle's.
    """

    batch_sizes = ()
    _CAPACITY = 8

    def __init__(self, model: ExportedModel, context: ChunkContext) -> None:
        self.bundle, self.context, self.window = model.bundle, as_context(model, context), model.bundle.window
        self._fresh = self.bundle.encoder_state(1)
        self._tables = self.bundle.encoder_state(0)
        self._places = _Places()

    def begin(self) -> _Place:
        return self._place(self._fresh)

    @contextmanager
    def step(self, feats: Tensor, lengths: Tensor, final: Tensor, streams: Sequence[_Place]) -> Iterator[Tensor]:
        short = (lengths != self.window) & ~final
        assert not short.any(), f"a chunk of {lengths.tolist()} frames, {self.window} expected"
        rows = np.array([stream.index for stream in streams])
        window = torch.zeros(len(feats), self.window, NUM_BINS)
        window[:, : feats.shape[1]] = feats
        before = [table[rows] for table in self._tables]
        frames, _, after = self.bundle.encode(window.numpy(), lengths.numpy(), before)
        yield torch.from_numpy(np.ascontiguousarray(frames))
        for table, part in zip(self._tables, after, strict=True):
            table[rows] = part

    def end(self, stream: _Place) -> None:
        stream.end()

    def nbytes(self, stream: _Place) -> int:
        return sum(part.nbytes for part in self._fresh)

    def save(self, stream: _Place) -> dict[str, Tensor]:
        parts = self._fresh if stream.index is None else [table[[stream.index]] for table in self._tables]
        return {str(i): torch.from_numpy(part) for i, part in enumerate(parts)}

    def restore(self, arrays: dict[str, Tensor]) -> _Place:
        like = tuple(torch.from_numpy(part) for part in self._fresh)
        return self._place([part.numpy() for part in states.fill(like, arrays)])

    def _place(self, state: list[np.ndarray]) -> _Place:
        if not self._places.free:
            more = self.bundle.encoder_state(max(self._places.capacity, self._CAPACITY))
            self._tables = [np.concatenate(pair) for pair in zip(self._tables, more, strict=True)]
            self._places.enlarge(len(self._tables[0]))
        place = self._places.lend()
        for table, part in zip(self._tables, state, strict=True):
            table[place.index] = part[0]
        return place
