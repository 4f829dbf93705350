"""Modified beam search as a recogniser of streams asks for it (base.Search)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from sumix_stream.runtime.base import Frames, Runtime
from sumix_stream.search.base import GreedySearch, Search
from sumix_stream.search.beam import BeamState, NBest, beam_decode, cut, results
from sumix_stream.search.greedy import Emissions
from sumix_stream.search.history import History, Settled
from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions
from sumix_stream.trees import fill, named_leaves

_ARRAYS = History._fields[:4]  # all but the settled tokens, which are
_SETTLED = {"tokens": np.int32, "frames": np.int32, "confidence": np.float32}


@dataclass
class _BeamStream:
    state: BeamState
    found: NBest = field(default_factory=list)


class BeamSearch:
    """`beam_decode` for streams. A result may still change what came before, until the segment is `cut`.

    Args:
        options: of method modified_beam. Raises ValueError for another.
    """

    def __init__(self, runtime: Runtime, options: SearchOptions) -> None:
        if options.method != "modified_beam":
            raise ValueError(f"method must be modified_beam for a beam search, got {options.method!r}")
        self.runtime, self.options = runtime, options

    @cached_property
    def _fresh(self) -> BeamState:
        return BeamState.init(self.runtime, 1, self.options)

    def begin(self, hotwords: Hotwords | None = None) -> _BeamStream:
        """The state of a stream that has heard nothing, with hotwords of its own or those of the options."""
        if hotwords is None:
            return _BeamStream(self._fresh)
        return _BeamStream(BeamState.init(self.runtime, 1, self.options, [hotwords]))

    def copy(self, stream: _BeamStream) -> _BeamStream:
        return _BeamStream(stream.state, stream.found)

    def num_stable(self, stream: _BeamStream) -> int:
        """Tokens that all hypotheses share."""
        state = stream.state
        alive = state.beams.scores.reshape(1, -1) > -np.inf
        return state.history.settled[0].count + int(state.history.num_shared(alive)[0])

    def hotwords(self, stream: _BeamStream) -> Hotwords | None:
        """That a stream has of its own."""
        (words,) = stream.state.hotwords
        return None if words == self.options.hotwords else words

    def advance(
        self, frames: Frames, lengths: np.ndarray, first_frames: Sequence[int], streams: Sequence[_BeamStream]
    ) -> None:
        """Search the next encoder frames of streams: frames (B, T, D), lengths (B,)."""
        state = BeamState.stack([stream.state for stream in streams])
        assert state.num_frames.tolist() == list(first_frames), (state.num_frames, first_frames)
        found, state = beam_decode(self.runtime, frames, lengths, state, self.options)
        for stream, part, nbest in zip(streams, state.unstack(), found, strict=True):
            stream.state, stream.found = part, nbest

    def emissions(self, stream: _BeamStream) -> Emissions:
        """The best result since the last `cut`."""
        return Emissions(*stream.found[0][:3]) if stream.found else Emissions([], [], [])

    def nbest(self, stream: _BeamStream) -> NBest:
        """The best results since the last `cut`, best first; none before the first frame."""
        return stream.found

    def cut(self, stream: _BeamStream, forget: bool) -> None:
        """Begin a new segment from the best hypothesis; with `forget` the predictor starts afresh."""
        stream.state, stream.found = cut(self.runtime, stream.state, self.options, forget), []

    def nbytes(self, stream: _BeamStream) -> int:
        return stream.state.nbytes

    def save(self, stream: _BeamStream) -> tuple[dict[str, np.ndarray], dict]:
        state, hotwords = stream.state, self.hotwords(stream)
        arrays = dict(named_leaves(_constant(state)))
        history = state.history
        arrays |= {f"history.{name}": getattr(history, name) for name in _ARRAYS}
        lists = zip(_SETTLED.items(), history.settled[0].lists(), strict=True)
        arrays |= {f"settled.{name}": np.array(values, dtype) for (name, dtype), values in lists}
        own = None if hotwords is None else hotwords.sequences
        return arrays, {"hotwords": own, "decoded": bool(stream.found)}

    def restore(self, arrays: dict[str, np.ndarray], values: dict) -> _BeamStream:
        """The inverse of `save`. Raises ValueError or KeyError for what it does not write."""
        own = values["hotwords"]
        words = None if own is None else Hotwords(tuple((tuple(t), float(s)) for t, s in own), self.runtime.vocab_size)
        stream = self.begin(words)
        parts = {name: arrays[f"history.{name}"] for name in _ARRAYS}
        rest = {name: part for name, part in arrays.items() if not name.startswith(("history.", "settled."))}
        beams, best, num_frames = fill(_constant(stream.state), rest)
        history = _checked(History(**parts, settled=(_settled(arrays),)), self.options.beam, self.runtime.vocab_size)
        state = BeamState(self.options.beam, beams, best, num_frames, history, stream.state.hotwords)
        return _BeamStream(state, results(self.runtime, state, self.options)[0] if values["decoded"] else [])

    def describe(self) -> dict:
        """Settings that a saved state belongs to."""
        return self.options.describe()


def _constant(state: BeamState) -> tuple:
    """All of a state but its tokens, of constant shapes."""
    return (state.beams, state.best, state.num_frames)


def _checked(history: History, beam: int, vocab_size: int) -> History:
    """Refuse a history that was not saved by a search like this one."""
    width = history.tokens.shape[-1]
    like = History.init(1, beam)
    for name, part, expected in zip(_ARRAYS, history[:4], like[:4], strict=True):
        shape = (1, beam) if name == "num_tokens" else (1, beam, width)
        if tuple(part.shape) != shape or part.dtype != expected.dtype:
            raise ValueError(f"history.{name} must be {shape} {expected.dtype}, got {tuple(part.shape)} {part.dtype}")
    if not (0 <= history.num_tokens.min() and history.num_tokens.max() <= width):
        raise ValueError(f"history.num_tokens must be in 0..{width}, got {history.num_tokens.tolist()}")
    if width and not (0 <= history.tokens.min() and history.tokens.max() < vocab_size):
        raise ValueError(f"history.tokens must be in 0..{vocab_size - 1}")
    return history


def _settled(arrays: dict[str, np.ndarray]) -> Settled:
    parts = [arrays[f"settled.{name}"] for name in _SETTLED]
    for (name, dtype), part in zip(_SETTLED.items(), parts, strict=True):
        if part.ndim != 1 or part.shape != parts[0].shape or part.dtype != dtype:
            raise ValueError(f"settled.{name} must be ({len(parts[0])},) {dtype}, got {tuple(part.shape)} {part.dtype}")
    return Settled().grown(*(part.tolist() for part in parts))


def make_search(runtime: Runtime, options: SearchOptions) -> Search:
    """The search over streams that the options name."""
    return GreedySearch(runtime, options) if options.method == "greedy" else BeamSearch(runtime, options)
