"""What a recogniser of streams asks of a search, and greedy search that answers.

B streams, T encoder frames, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sumix_stream.runtime.base import Frames, GreedyState, Runtime
from sumix_stream.search.greedy import Emissions, check_emissions, check_finite, fresh_state, greedy_decode
from sumix_stream.search.options import GREEDY, SearchOptions
from sumix_stream.trees import fill, leaves, map_leaves, named_leaves

if TYPE_CHECKING:
    from sumix_stream.search.beam import Scored
    from sumix_stream.search.hotwords import Hotwords


class Search(Protocol):
    """A search over streams of any age. What it keeps of one stream is its own business: an opaque object."""

    options: SearchOptions

    def begin(self, hotwords: Hotwords | None = None) -> Any:
        """The state of a stream that has heard nothing, with hotwords of its own or those of the options."""

    def copy(self, stream: Any) -> Any:
        """The state of another stream that has heard the same and goes on by itself."""

    def advance(self, frames: Frames, lengths: np.ndarray, first_frames: Sequence[int], streams: Sequence[Any]) -> None:
        """Search the next encoder frames of streams, changing their states. If it raises, no state has changed.

        frames (B, T, D), lengths (B,) valid ones; first_frames: number of each stream's first frame in the stream.
        """

    def emissions(self, stream: Any) -> Emissions:
        """Tokens since the last `cut`, their frames counted from the stream's start. To be read, not to be kept."""

    def nbest(self, stream: Any) -> Sequence[Scored]:
        """The best results since the last `cut`, best first; none where there is no beam."""

    def num_stable(self, stream: Any) -> int:
        """Tokens since the last `cut` that stay as they are, whatever follows."""

    def hotwords(self, stream: Any) -> Hotwords | None:
        """That a stream has of its own."""

    def cut(self, stream: Any, forget: bool) -> None:
        """Begin a new segment: no tokens yet. With `forget` the predictor starts afresh, else it goes on unmoved."""

    def nbytes(self, stream: Any) -> int:
        """Bytes kept of a stream's past, tokens not counted."""

    def save(self, stream: Any) -> tuple[dict[str, np.ndarray], dict]:
        """A stream's state as arrays and plain values (JSON)."""

    def restore(self, arrays: Mapping[str, np.ndarray], values: dict) -> Any:
        """The inverse of `save`. Raises ValueError or KeyError for what `save` does not write."""

    def check(self, stream: Any, num_frames: int) -> None:
        """Raise ValueError where a restored state is none after so many encoder frames: nothing of it is believed."""

    def describe(self) -> dict:
        """Settings that a saved state belongs to, as plain values."""


@dataclass
class _GreedyStream:
    state: GreedyState  # of batch size 1
    found: Emissions = field(default_factory=lambda: Emissions([], [], []))


class GreedySearch:
    """`greedy_decode` for streams.

    Args:
        options: of method greedy.
    """

    def __init__(self, runtime: Runtime, options: SearchOptions = GREEDY) -> None:
        if options.method != "greedy":
            raise ValueError(f"method must be greedy for a greedy search, got {options.method!r}")
        self.runtime, self.options = runtime, options

    @cached_property
    def _fresh(self) -> GreedyState:
        return fresh_state(self.runtime, 1)

    def begin(self, hotwords: Hotwords | None = None) -> _GreedyStream:
        if hotwords is not None:
            raise ValueError("hotwords needs a beam, and greedy search has none: set method to modified_beam")
        return _GreedyStream(self._fresh)

    def copy(self, stream: _GreedyStream) -> _GreedyStream:
        return _GreedyStream(stream.state, Emissions(*map(list, stream.found)))

    def advance(
        self, frames: Frames, lengths: np.ndarray, first_frames: Sequence[int], streams: Sequence[_GreedyStream]
    ) -> None:
        before = map_leaves(lambda *parts: np.concatenate(parts), *(stream.state for stream in streams))
        found, after = greedy_decode(self.runtime, frames, lengths, before, self.options)
        for b, (stream, first, new) in enumerate(zip(streams, first_frames, found, strict=True)):
            stream.state = map_leaves(lambda part, b=b: part[b : b + 1].copy(), after)
            stream.found.tokens.extend(new.tokens)
            stream.found.frames.extend(first + frame for frame in new.frames)
            stream.found.confidence.extend(new.confidence)

    def emissions(self, stream: _GreedyStream) -> Emissions:
        return stream.found

    def nbest(self, stream: _GreedyStream) -> Sequence[Scored]:
        return ()

    def num_stable(self, stream: _GreedyStream) -> int:
        return len(stream.found.tokens)

    def hotwords(self, stream: _GreedyStream) -> None:
        return None

    def cut(self, stream: _GreedyStream, forget: bool) -> None:
        stream.found = Emissions([], [], [])
        if forget:
            stream.state = self._fresh

    def nbytes(self, stream: _GreedyStream) -> int:
        return sum(array.nbytes for array in leaves(stream.state))

    def save(self, stream: _GreedyStream) -> tuple[dict[str, np.ndarray], dict]:
        return dict(named_leaves(stream.state)), stream.found._asdict()

    def restore(self, arrays: Mapping[str, np.ndarray], values: dict) -> _GreedyStream:
        return _GreedyStream(fill(self._fresh, arrays), Emissions(**values))

    def check(self, stream: _GreedyStream, num_frames: int) -> None:
        check_finite("the predictor's state", stream.state)
        check_emissions(stream.found, self.runtime.vocab_size, num_frames)

    def describe(self) -> dict:
        return {name: getattr(self.options, name) for name in ("method", "blank_penalty", "temperature", "max_symbols")}
