"""A segment heard again when it ends: under full context, by the same weights, in one chunk of all its frames.

Segments follow each other in one stream, so each is heard with a piece of what lies before it: a word that the seam
cuts is whole in one of the two. Words that were sent already are found among those heard again by an alignment of both,
by text and time, and are not sent twice.

Feature frames are (F, 80), 10 ms each.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sumix_stream.features import NUM_BINS
from sumix_stream.runtime.base import Runtime
from sumix_stream.search.beam import BeamState, NBest, Scored, beam_decode
from sumix_stream.search.greedy import Emissions, greedy_decode
from sumix_stream.search.hypothesis import Hypothesis
from sumix_stream.search.options import SearchOptions
from sumix_stream.search.word_starts import word_starts
from sumix_stream.streaming import open_words

if TYPE_CHECKING:
    from sumix_stream.search.hotwords import Hotwords
    from sumix_stream.timebase import Timebase

LONGEST = 120.0  # seconds of a segment that may be asked for: its features are kept, and it is decoded at once
_NEAR = 0.4  # seconds that a word may move between two hearings
_CHANGED = 0.25  # what another text costs in the alignment, where a word that has no partner costs 1
_REMEMBERED = 64  # tokens sent that are kept for the alignment: more than an overlap holds


@dataclass(frozen=True)
class SecondPass:
    """How segments are heard again.

    max_seconds: of a segment; the text of a longer one stays as it was streamed. Its features, 32 kB a second, are
        what a stream keeps more.
    overlap_seconds: before the segment, which are heard again with it.
    """

    max_seconds: float = 30.0
    overlap_seconds: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.max_seconds <= LONGEST:
            raise ValueError(f"max_seconds must be above 0 and at most {LONGEST:g}, got {self.max_seconds:g}")
        if not 0 <= self.overlap_seconds <= 10:
            raise ValueError(f"overlap_seconds must be 0 to 10, got {self.overlap_seconds:g}")


class Final(NamedTuple):
    """What a segment said.

    hypothesis, emissions: its result, by the second pass where there was one; the same tokens.
    streaming: what was streamed of it.
    alternatives: options.nbest results, the best first, where there is a beam.
    heard_again: whether there was a second pass: not for segments that are too long for it, or without it.
    """

    hypothesis: Hypothesis
    emissions: Emissions
    streaming: Hypothesis
    alternatives: Sequence[Scored] = ()
    heard_again: bool = False


class Heard:
    """Feature frames of the open segment and of the overlap before it.

    Args:
        most, overlap: feature frames.
        step: feature frames of an encoder frame; the first one that is kept begins one.
    """

    def __init__(self, most: int, overlap: int, step: int) -> None:
        self.most, self.overlap, self.step = most, overlap, step
        self.first = 0  # number in the stream of the first frame that is kept
        self.num_frames = 0  # that are kept
        self.begin = 0  # number of the open segment's first frame
        self._parts: deque[np.ndarray] = deque()

    @classmethod
    def of(cls, given: SecondPass, timebase: Timebase) -> Heard:
        """As much as a second pass asks for."""
        frames = timebase.sample_rate / timebase.frame_shift
        sizes = round(given.max_seconds * frames), round(given.overlap_seconds * frames)
        return cls(*sizes, timebase.subsampling)

    @property
    def is_whole(self) -> bool:
        """Whether the open segment is kept from its beginning."""
        return self.first <= self.begin

    @property
    def nbytes(self) -> int:
        return self.num_frames * NUM_BINS * np.dtype(np.float32).itemsize

    def add(self, feats: np.ndarray) -> None:
        """The next frames (n, 80) of the stream."""
        self._parts.append(np.array(feats, np.float32))
        self.num_frames += len(feats)
        end = self.first + self.num_frames
        if end - self.begin > self.most:
            self._keep_from(end - self.overlap)

    def cut(self, begin: int) -> None:
        """The next segment begins at frame number `begin`."""
        self.begin = begin
        self._keep_from(begin - self.overlap)

    def frames(self) -> np.ndarray:
        return np.concatenate(self._parts) if self._parts else np.zeros((0, NUM_BINS), np.float32)

    def copy(self) -> Heard:
        """Another that goes on by itself; what both have is shared."""
        return self.restored(self.most, self.overlap, self.step, self.frames(), self.first, self.begin)

    @classmethod
    def restored(cls, most: int, overlap: int, step: int, frames: np.ndarray, first: int, begin: int) -> Heard:
        """Raises ValueError for frames that are no features, or more than may be kept."""
        heard = cls(most, overlap, step)
        if frames.ndim != 2 or frames.shape[1] != NUM_BINS or frames.dtype != np.float32:
            raise ValueError(f"features heard must be (n, {NUM_BINS}) float32, got {frames.shape} {frames.dtype}")
        if first < 0 or first % step or begin < 0:
            raise ValueError(f"features heard cannot begin at frame {first}, nor a segment at {begin}")
        heard.first, heard.begin = first, begin
        if len(frames):
            heard._parts.append(frames)
            heard.num_frames = len(frames)
        return heard

    def _keep_from(self, number: int) -> None:
        drop = min(number - self.first, self.num_frames) // self.step * self.step
        while drop > 0:
            part = self._parts.popleft()
            gone = min(drop, len(part))
            if gone < len(part):
                self._parts.appendleft(part[gone:].copy())
            self.first, self.num_frames, drop = self.first + gone, self.num_frames - gone, drop - gone


@dataclass
class Sent:
    """The newest tokens of a stream's finished segments, as far as the next one may hear them again."""

    number: int = 0  # of the segment that `newest` is of
    before: Emissions = field(default_factory=lambda: Emissions([], [], []))
    newest: Emissions = field(default_factory=lambda: Emissions([], [], []))

    def until(self, number: int) -> Emissions:
        """Those of the segments before number `number`, which is the one they are wanted for."""
        if number != self.number:
            joined = open_words.joined(self.before, self.newest)
            self.before = Emissions(*(part[-_REMEMBERED:] for part in joined))
            self.newest, self.number = Emissions([], [], []), number
        return self.before


class Segment:
    """A segment that has ended, with all that is needed to say what it said; `final` may be asked for in any thread,
    but in the order of a stream's segments.

    Args:
        number: of the segment in its stream.
        streamed: what was streamed of it, best first where there is a beam.
        sent: what the segments before it said; this one's is noted there.
        feats: to be heard again (F, 80), beginning at encoder frame `first`; None = what was streamed is the result.
        is_open: whether its last word may go on in the next segment.
        read: a result as text and times.
    """

    def __init__(
        self,
        number: int,
        streamed: NBest,
        sent: Sent,
        feats: np.ndarray | None,
        first: int,
        is_open: bool,
        again: Again | None,
        hotwords: Hotwords | None,
        read: Callable[[Emissions], Hypothesis],
    ) -> None:
        self.number, self.streamed, self.hotwords = number, streamed, hotwords
        self._sent, self._feats, self._first, self._is_open = sent, feats, first, is_open
        self._again, self._read = again, read

    @classmethod
    def empty(cls, number: int) -> Segment:
        """In which nothing was said."""
        nothing = Hypothesis("", [], [], [])
        return cls(number, [Scored([], [], [], 0.0)], Sent(), None, 0, False, None, None, lambda found: nothing)

    @property
    def num_frames(self) -> int:
        """Feature frames that are to be heard again."""
        return 0 if self._feats is None else len(self._feats)

    def final(self, pause: Callable[[], None] | None = None) -> Final:
        """What it said; the work of the second pass is done here. `pause`: called between the pieces of it, where the
        runtime has pieces, and before."""
        streaming, before = Emissions(*self.streamed[0][:3]), self._sent.until(self.number)
        results = self.streamed
        if self._feats is not None:
            found = self._again.decode(self._feats, self._first, self.hotwords, pause)
            if self._is_open:
                end = self._first + -(-len(self._feats) // self._again.step)
                found = [self._again.without_open_word(one, end) for one in found]
            results = distinct(self._again.unsent(one, before) for one in found)
        best = Emissions(*results[0][:3])
        self._sent.newest = best
        return Final(self._read(best), best, self._read(streaming), results, self._feats is not None)


class Again:
    """Full context over the features of a segment.

    Args:
        runtime: under full context.
        options: of the search.
        piece: of a token.
    """

    def __init__(self, runtime: Runtime, options: SearchOptions, piece: Callable[[int], str]) -> None:
        self.runtime, self.options, self._piece = runtime, options, piece
        self.step = runtime.timebase.subsampling
        self._seconds = runtime.timebase.encoder_frame_seconds

    def decode(
        self, feats: np.ndarray, first: int, hotwords: Hotwords | None, pause: Callable[[], None] | None = None
    ) -> NBest:
        """Features (F, 80) that begin at encoder frame `first` of their stream; what was said, best first."""
        if not len(feats):
            return [Scored([], [], [], 0.0)]
        runtime, lengths = self.runtime, np.array([len(feats)])
        if hasattr(runtime, "pause"):
            runtime.pause = pause
        elif pause is not None:
            pause()
        frames, _ = runtime.encode(feats[None], lengths, [runtime.fresh_state()], np.array([True]))
        lengths = runtime.timebase.num_encoder_frames(lengths)
        if self.options.method == "greedy":
            (found,), _ = greedy_decode(runtime, frames, lengths, None, self.options)
            results = [Scored(*found, 0.0)]
        else:
            words = self.options.hotwords if hotwords is None else hotwords
            state = BeamState.init(runtime, 1, self.options, [words])
            (results,), _ = beam_decode(runtime, frames, lengths, state, self.options)
        return [one._replace(frames=[first + frame for frame in one.frames]) for one in results]

    def without_open_word(self, found: Scored, end: int) -> Scored:
        """Without its last word where that may go on after encoder frame `end`."""
        pieces = [self._piece(token) for token in found.tokens]
        times = [frame * self._seconds for frame in found.frames]
        return _part(found, 0, open_words.last_boundary(pieces, times, end * self._seconds))

    def unsent(self, found: Scored, sent: Emissions) -> Scored:
        """The words of `found` that follow those which were sent."""
        old, new = self._words(sent), self._words(found)
        if not new:
            return found
        begins = new[0][1] - _NEAR
        old = old[bisect_left([time for _, time, _ in old], begins) :]
        count = num_repeated([word[:2] for word in old], [word[:2] for word in new])
        return _part(found, new[count][2] if count < len(new) else len(found.tokens), len(found.tokens))

    def _words(self, found: Scored | Emissions) -> list[tuple[tuple[int, ...], float, int]]:
        """(tokens, seconds of the first, its place) of each word."""
        begins = word_starts([self._piece(token) for token in found.tokens])
        starts = [n for n, is_start in enumerate(begins) if is_start]
        ends = [*starts[1:], len(found.tokens)][: len(starts)]
        return [
            (tuple(found.tokens[start:end]), found.frames[start] * self._seconds, start)
            for start, end in zip(starts, ends, strict=True)
        ]


Timed = tuple[tuple[int, ...], float]  # a word's tokens, and seconds


def num_repeated(sent: Sequence[Timed], heard: Sequence[Timed]) -> int:
    """How many of the words heard were sent already: up to the last that has a partner among those sent.

    The cheapest alignment of both in order: partners are at most `_NEAR` seconds apart, and cost the more the further
    apart they are, and for another text; words without a partner cost 1, but for those after the last partner.
    """
    rows = len(sent) + 1
    cost = [float(n) for n in range(rows)]  # of sent[:n] against heard[:0]
    last = [0] * rows  # words of `heard` up to the last partner
    best, count = cost[-1], 0
    for m, (text, time) in enumerate(heard, 1):
        above, above_last = cost, last
        cost, last = [above[0] + 0.5], [0]
        for n in range(1, rows):
            known, at = sent[n - 1]
            apart = abs(time - at) / _NEAR
            pair = above[n - 1] + apart + (0 if known == text else _CHANGED) if apart <= 1 else math.inf
            options = (pair, m), (above[n] + 1, above_last[n]), (cost[n - 1] + 1, last[n - 1])
            chosen = min(options, key=lambda option: option[0])
            cost.append(chosen[0])
            last.append(chosen[1])
        if cost[-1] < best and last[-1] == m:
            best, count = cost[-1], m
    return count


def _part(found: Scored, start: int, end: int) -> Scored:
    return Scored(*(part[start:end] for part in found[:3]), found.score)


def distinct(results: Iterable[Scored]) -> NBest:
    """The first of each sequence: what differs only in words that were sent is the same."""
    seen: dict[tuple[int, ...], Scored] = {}
    for one in results:
        seen.setdefault(tuple(one.tokens), one)
    return list(seen.values())
