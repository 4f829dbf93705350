"""Modified beam search as a recogniser of streams asks for it (base.Search)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from sumix_stream.runtime.base import Frames, Runtime
from sumix_stream.search import fusion
from sumix_stream.search.base import GreedySearch, Search
from sumix_stream.search.beam import Beams, BeamState, NBest, beam_decode, cut, results
from sumix_stream.search.greedy import Emissions, check_emissions, check_finite
from sumix_stream.search.history import History, Settled
from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions
from sumix_stream.trees import check_count, fill, named_leaves

_ARRAYS = History._fields[:4]  # all but the settled tokens, which are
_MOST_HOTWORDS = 100_000  # tokens of all hotwords of a saved stream
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
        stream = self.begin(None if own is None else _hotwords(own, self.runtime.vocab_size))
        parts = {name: arrays[f"history.{name}"] for name in _ARRAYS}
        rest = {name: part for name, part in arrays.items() if not name.startswith(("history.", "settled."))}
        beams, best, num_frames = fill(_constant(stream.state), rest)
        history = _checked(History(**parts, settled=(_settled(arrays),)), self.options.beam, self.runtime.vocab_size)
        _check_beams(beams, best, self.runtime.vocab_size)
        fusion.check(self.options, stream.state.hotwords[0], beams.fused)
        state = BeamState(self.options.beam, beams, best, num_frames, history, stream.state.hotwords)
        if type(values["decoded"]) is not bool:
            raise ValueError(f"decoded must be true or false, got {values['decoded']!r}")
        return _BeamStream(state, results(self.runtime, state, self.options)[0] if values["decoded"] else [])

    def check(self, stream: _BeamStream, num_frames: int) -> None:
        """Raises ValueError for a state that no stream has after so many encoder frames."""
        if (searched := stream.state.num_frames.tolist()) != [num_frames]:
            raise ValueError(f"the search has seen {searched} frames and the encoder {num_frames}")
        history, vocab_size = stream.state.history, self.runtime.vocab_size
        tokens, frames, confidence = history.settled[0].lists()
        check_emissions(Emissions(tokens, frames, confidence), vocab_size, num_frames)
        own = np.arange(history.tokens.shape[-1]) < history.num_tokens[..., None]
        found = history.frames[own]
        if found.size and not (0 <= found.min() and found.max() < num_frames):
            raise ValueError(f"history.frames must be in 0..{num_frames - 1}")
        if np.isnan(history.log_probs).any() or (history.log_probs > 0.001).any():
            raise ValueError("history.log_probs must be at most 0")

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


def _hotwords(sequences: list, vocab_size: int) -> Hotwords:
    """Those of a stream's own. Raises ValueError for tokens out of the vocabulary and for more than there could be."""
    if sum(len(tokens) for tokens, _ in sequences) > _MOST_HOTWORDS:
        raise ValueError(f"hotwords of a stream may have at most {_MOST_HOTWORDS} tokens")
    for tokens, score in sequences:
        if not tokens or type(score) not in (int, float) or not np.isfinite(score):
            raise ValueError(f"hotwords must be tokens with a finite score, got {len(tokens)} tokens and {score!r}")
        for token in tokens:
            check_count("hotwords' tokens", token, vocab_size - 1)
    return Hotwords(tuple((tuple(tokens), float(score)) for tokens, score in sequences), vocab_size)


def _check_beams(beams: Beams, best: np.ndarray, vocab_size: int) -> None:
    """Refuse hypotheses that no search has: indices out of their tables above all."""
    if not (0 <= beams.last.min() and beams.last.max() < vocab_size):
        raise ValueError(f"beams.last must be in 0..{vocab_size - 1}")
    if np.isnan(beams.scores).any() or not np.isfinite(beams.scores.max()) or not np.isfinite(best).all():
        raise ValueError("beams.scores must be numbers, the best of them finite")
    check_finite("beams.predicted", beams.predicted)


def _settled(arrays: dict[str, np.ndarray]) -> Settled:
    parts = [arrays[f"settled.{name}"] for name in _SETTLED]
    for (name, dtype), part in zip(_SETTLED.items(), parts, strict=True):
        if part.ndim != 1 or part.shape != parts[0].shape or part.dtype != dtype:
            raise ValueError(f"settled.{name} must be ({len(parts[0])},) {dtype}, got {tuple(part.shape)} {part.dtype}")
    return Settled().grown(*(part.tolist() for part in parts))


def make_search(runtime: Runtime, options: SearchOptions) -> Search:
    """The search over streams that the options name."""
    return GreedySearch(runtime, options) if options.method == "greedy" else BeamSearch(runtime, options)
