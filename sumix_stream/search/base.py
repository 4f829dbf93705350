"""What a recogniser of streams asks of a search, and greedy search that answers.

B streams, T encoder frames, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from sumix_stream.encoders import states
from sumix_stream.encoders.states import StateRows
from sumix_stream.runtime.base import AcousticModel
from sumix_stream.search.compiled_greedy import CompiledGreedy, can_compile
from sumix_stream.search.greedy import Emissions, GreedyState, greedy_decode
from sumix_stream.search.options import GREEDY, SearchOptions


class Search(Protocol):
    """A search over streams of any age. What it keeps of one stream is its own business: an opaque object."""

    def begin(self) -> Any:
        """The state of a stream that has heard nothing."""

    def advance(self, enc: Tensor, lengths: Tensor, first_frames: Sequence[int], streams: Sequence[Any]) -> None:
        """Search the next encoder frames of streams, changing their states. If it raises, no state has changed.

        enc (B, T, D), lengths (B,) valid frames; first_frames: number of each stream's first frame in the stream.
        """

    def emissions(self, stream: Any) -> Emissions:
        """Tokens since the last `cut`, their frames counted from the stream's start. To be read, not to be kept."""

    def cut(self, stream: Any, forget: bool) -> None:
        """Begin a new segment: no tokens yet. With `forget` the predictor starts afresh, else it goes on unmoved."""

    def nbytes(self, stream: Any) -> int:
        """Bytes kept of a stream's past, tokens not counted."""

    def save(self, stream: Any) -> tuple[dict[str, Tensor], dict]:
        """A stream's state as tensors and plain values (JSON)."""

    def restore(self, arrays: dict[str, Tensor], values: dict) -> Any:
        """The inverse of `save`. Raises ValueError or KeyError for what `save` does not write."""

    def describe(self) -> dict:
        """Settings that a saved state belongs to, as plain values."""


@dataclass
class _GreedyStream:
    row: Tensor
    found: Emissions = field(default_factory=lambda: Emissions([], [], []))


class GreedySearch:
    """`greedy_decode` for streams.

    Args:
        options: of method greedy.
    """

    def __init__(self, model: AcousticModel, options: SearchOptions = GREEDY) -> None:
        if options.method != "greedy":
            raise ValueError(f"method must be greedy for a greedy search, got {options.method!r}")
        self.model, self.options = model, options
        self._fresh = GreedyState.init(model, 1)
        self._rows = StateRows(self._fresh)

    @cached_property
    def _compiled(self) -> CompiledGreedy | None:
        return CompiledGreedy(self.model, self._rows) if can_compile(self.model) else None

    @torch.inference_mode()
    def begin(self) -> _GreedyStream:
        return _GreedyStream(self._rows.split(self._fresh)[0])

    @torch.inference_mode()
    def advance(
        self, enc: Tensor, lengths: Tensor, first_frames: Sequence[int], streams: Sequence[_GreedyStream]
    ) -> None:
        rows = [stream.row for stream in streams]
        if self._compiled is not None:
            table = torch.stack(rows)
            found = self._compiled.search(enc, lengths, table, self.options)
            rows = [row.clone() for row in table]
        else:
            found, state = greedy_decode(self.model, enc, lengths, self._rows.join(rows), options=self.options)
            rows = self._rows.split(state)
        for stream, row, first, (tokens, frames, confidence) in zip(streams, rows, first_frames, found, strict=True):
            stream.row = row
            stream.found.tokens.extend(tokens)
            stream.found.frames.extend(first + frame for frame in frames)
            stream.found.confidence.extend(confidence)

    def emissions(self, stream: _GreedyStream) -> Emissions:
        return stream.found

    def cut(self, stream: _GreedyStream, forget: bool) -> None:
        stream.found = Emissions([], [], [])
        if forget:
            stream.row = self.begin().row

    def nbytes(self, stream: _GreedyStream) -> int:
        return stream.row.nbytes

    def save(self, stream: _GreedyStream) -> tuple[dict[str, Tensor], dict]:
        arrays = dict(states.named_tensors(self._rows.join([stream.row])))
        return arrays, stream.found._asdict()

    def restore(self, arrays: dict[str, Tensor], values: dict) -> _GreedyStream:
        state = states.fill(self._fresh, arrays)
        return _GreedyStream(self._rows.split(state)[0], Emissions(**values))

    def describe(self) -> dict:
        return {name: getattr(self.options, name) for name in ("method", "blank_penalty", "temperature", "max_symbols")}
