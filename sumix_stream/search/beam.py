"""Modified beam search: the most probable token sequences, every stream and hypothesis in one batch.

"Modified" as in icefall and sherpa: a frame gives one token or blank, and either moves on to the next frame. That is
the lattice of `rnnt_type: modified`, and with a beam that nothing falls out of a score is exactly that lattice's
log-probability of the sequence; a model trained as `regular` is searched in it as well, without the blank that would
follow each token. With one hypothesis it is greedy search with max_symbols = 1.

Alignments of one sequence are one hypothesis, their probabilities added. Within a frame this can only meet a
hypothesis that stays with another that grows into it by its last token, so the two are added before the best are
chosen (not after, as usual), found by hashes of the sequences. Times and confidences are the likelier alignment's.

B streams, A of them with frames left, T encoder frames, K hypotheses of a stream (the beam), J joiner channels,
V tokens, U tokens of the longest hypothesis so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sumix_stream.runtime.base import Frames, GreedyState, Runtime, plain
from sumix_stream.search import fusion
from sumix_stream.search.fusion import Fusion, FusionState
from sumix_stream.search.greedy import emit, fresh_state, put
from sumix_stream.search.history import Alignments, History
from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions
from sumix_stream.trees import leaves, map_leaves

_MULTIPLIER = 0x5851F42D4C957F2D  # of the hash: Knuth's MMIX generator


class Scored(NamedTuple):
    """One of a stream's results."""

    tokens: list[int]
    frames: list[int]  # encoder frame of each token, counted from the start of the stream
    confidence: list[float]  # probability the model gave each token at its frame
    score: float  # natural log-probability, language model and complete hotwords included


NBest = list[Scored]  # best first, no two with equal tokens


class Beams(NamedTuple):
    """Hypotheses, best first: everything has K of them for each stream in dimension 0."""

    scores: np.ndarray  # (B K,) relative to the stream's best; -inf = none
    hashes: np.ndarray  # (B K,) of the token sequence
    parents: np.ndarray  # (B K,) of the sequence without its last token
    last: np.ndarray  # (B K,) last token; blank = none yet
    predicted: GreedyState
    fused: FusionState


class BeamState(NamedTuple):
    """What the search keeps of a batch of streams: constant in size, but for the tokens themselves."""

    beam: int
    beams: Beams
    best: np.ndarray  # (B,) float64: log-probability of each stream's best hypothesis, kept apart for long streams
    num_frames: np.ndarray  # (B,) searched so far
    history: History
    hotwords: tuple[Hotwords | None, ...]  # of each stream

    @classmethod
    def init(
        cls,
        runtime: Runtime,
        batch_size: int,
        options: SearchOptions,
        hotwords: Sequence[Hotwords | None] | None = None,
    ) -> BeamState:
        """State of streams that have heard nothing.

        Args:
            hotwords: of each stream; None = those of the options for all. Raises ValueError if there are not
                batch_size of them, or if they or the language model were made for another vocabulary.
        """
        if hotwords is None:
            hotwords = (options.hotwords,) * batch_size
        if len(hotwords) != batch_size:
            raise ValueError(
                f"hotwords must be one for each of {batch_size} streams (None = none), got {len(hotwords)}"
            )
        for name, part in (("lm", options.lm), *(("hotwords", words) for words in hotwords)):
            if part is not None and part.vocab_size != runtime.vocab_size:
                raise ValueError(
                    f"{name} is over {part.vocab_size} tokens but the model has {runtime.vocab_size}: "
                    "make it with the model's own tokenizer"
                )
        num = batch_size * options.beam
        scores = np.full((batch_size, options.beam), -np.inf, np.float32)
        scores[:, 0] = 0.0
        beams = Beams(
            scores.ravel(),
            np.zeros(num, np.int64),
            np.zeros(num, np.int64),
            np.full(num, runtime.blank_id),
            fresh_state(runtime, num),
            fusion.start(options, num),
        )
        history = History.init(batch_size, options.beam)
        return cls(options.beam, beams, np.zeros(batch_size), np.zeros(batch_size, np.int64), history, tuple(hotwords))

    @property
    def nbytes(self) -> int:
        """Bytes of all but the tokens: constant over a stream's life. Hotwords belong to whoever made them."""
        return sum(array.nbytes for array in leaves((self.beams, self.best, self.num_frames)))

    @staticmethod
    def stack(parts: Sequence[BeamState]) -> BeamState:
        """Join streams of any age. Raises ValueError if their beams differ."""
        if len({part.beam for part in parts}) != 1:
            raise ValueError(f"streams of a batch share one beam, got {sorted({part.beam for part in parts})}")
        columns = ((part.beams, part.best, part.num_frames) for part in parts)
        beams, best, num_frames = map_leaves(lambda *arrays: np.concatenate(arrays), *columns)
        history = History.stack([part.history for part in parts])
        hotwords = tuple(words for part in parts for words in part.hotwords)
        return BeamState(parts[0].beam, beams, best, num_frames, history, hotwords)

    def unstack(self) -> list[BeamState]:
        """One state for each stream; the parts own their memory."""
        k = self.beam
        return [
            BeamState(
                k,
                map_leaves(lambda part, b=b: part[b * k : (b + 1) * k].copy(), self.beams),
                self.best[b : b + 1].copy(),
                self.num_frames[b : b + 1].copy(),
                history,
                (words,),
            )
            for b, (history, words) in enumerate(zip(self.history.unstack(), self.hotwords, strict=True))
        ]

    def _select(self, streams: np.ndarray) -> BeamState:
        """The streams in this order, in memory of their own."""
        rows = (streams[:, None] * self.beam + np.arange(self.beam)).ravel()
        return BeamState(
            self.beam,
            map_leaves(lambda part: part[rows], self.beams),
            self.best[streams],
            self.num_frames[streams],
            self.history.select(streams),
            tuple(self.hotwords[n] for n in streams.tolist()),
        )


def beam_decode(
    runtime: Runtime,
    frames: Frames,
    lengths: np.ndarray,
    state: BeamState | None = None,
    options: SearchOptions | None = None,
) -> tuple[list[NBest], BeamState]:
    """The best token sequences of each stream, of all it has heard: a beam may still change what came before.

    Searching an utterance in pieces, handing the state on, gives the result of one search over the whole, and a
    stream's result does not depend on the others.

    Args:
        frames: (B, T, D) of the runtime's `encode`; T may be 0.
        lengths: (B,) valid frames.
        state: of the same B streams after the frames before; None = start of the utterance.
        options: of method modified_beam, with the beam of the state; None = the defaults of that method.
    Returns:
        options.nbest results of each stream (fewer if there are not so many sequences), and the state after them.
    """
    options = options or SearchOptions(method="modified_beam")
    if options.method != "modified_beam":
        raise ValueError(f"method must be modified_beam for a beam search, got {options.method!r}")
    batch_size = len(frames)
    assert lengths.shape == (batch_size,), (lengths.shape, frames.shape)
    if state is None:
        state = BeamState.init(runtime, batch_size, options)
    if state.beam != options.beam:
        raise ValueError(f"beam must be that of the state, {state.beam}, got {options.beam}: open a new stream")
    order = np.argsort(-lengths, kind="stable")  # so that those with frames left come first
    state = _search(runtime, frames[order], lengths[order], state._select(order), options)._select(np.argsort(order))
    return results(runtime, state, options), state


def cut(runtime: Runtime, state: BeamState, options: SearchOptions, forget: bool) -> BeamState:
    """Begin a new segment: no tokens yet, frames counted on.

    Each stream commits to its best hypothesis, so that no token of the old segment can change; the next words still
    depend on it, unless `forget` starts predictor, language model and hotwords afresh.
    """
    fresh = BeamState.init(runtime, len(state.best), options, state.hotwords)._replace(num_frames=state.num_frames)
    if forget:
        return fresh
    _, order = _ranked(runtime, state, options)
    rows = order[:, 0] + np.arange(0, order.size, state.beam)
    beams = map_leaves(lambda part: part[np.repeat(rows, state.beam)], state.beams)
    return fresh._replace(beams=beams._replace(scores=fresh.beams.scores))


def _search(
    runtime: Runtime, frames: Frames, lengths: np.ndarray, state: BeamState, options: SearchOptions
) -> BeamState:
    """Go on over frames (B, T, D) of streams sorted by falling length; of `state` nothing is kept by others."""
    fused = Fusion(options, state.hotwords, state.beam, runtime.vocab_size, runtime.blank_id)
    beams = state.beams._replace(fused=fused.enter(state.beams.fused))
    best, k = state.best.copy(), state.beam
    alignments = Alignments(len(lengths), k, runtime.blank_id)
    if fused or runtime.beam_arrays is None:
        beams = _search_frames(runtime, frames, lengths, beams, best, fused, alignments, options)
    else:
        beams = _search_compiled(runtime, plain(frames), lengths, beams, best, alignments, options)
    history = alignments.append_to(state.history, state.num_frames)
    history = history.settle(beams.scores.reshape(-1, k) > -np.inf)
    beams = beams._replace(fused=fused.leave(beams.fused))
    return BeamState(k, beams, best, state.num_frames + lengths, history, state.hotwords)


def _search_compiled(
    runtime: Runtime,
    frames: np.ndarray,
    lengths: np.ndarray,
    beams: Beams,
    best: np.ndarray,
    alignments: Alignments,
    options: SearchOptions,
) -> Beams:
    """Without language model and hotwords, all frames in one call of `sumix_kernels.cpu`; `best` is moved in place."""
    from sumix_kernels import cpu

    (B, T, _), K, fused = frames.shape, options.beam, beams.fused
    moved = map_leaves(np.array, beams._replace(fused=None))
    projection, (hidden, cell) = moved.predicted
    own = (moved.scores, moved.hashes, moved.parents, moved.last, projection, hidden, cell)
    parents, tokens = np.empty((2, T, B, K), np.int64)
    log_probs = np.empty((T, B, K), np.float32)
    numbers = runtime.blank_id, np.float32(options.blank_penalty), np.float32(options.temperature), _MULTIPLIER
    cpu.search_beams(
        np.ascontiguousarray(frames, np.float32),
        lengths,
        *(part.reshape(B, K, *part.shape[1:]) for part in own),
        best,
        *runtime.beam_arrays,
        *numbers,
        parents,
        tokens,
        log_probs,
    )
    for frame in zip(parents, tokens, log_probs, strict=True):
        alignments.add(*frame)
    return moved._replace(fused=fused)


def _search_frames(
    runtime: Runtime,
    frames: Frames,
    lengths: np.ndarray,
    beams: Beams,
    best: np.ndarray,
    fused: Fusion,
    alignments: Alignments,
    options: SearchOptions,
) -> Beams:
    """One frame of all streams after the other; `best` is moved in place."""
    projected = runtime.project(frames)  # (B, T, J)
    num_active = (lengths[:, None] > np.arange(projected.shape[1])).sum(0).tolist()
    finished: list[Beams] = []
    bonus = fused.bonus(beams.fused) if fused else None
    k = options.beam
    for t, active in enumerate(num_active):
        if active == 0:
            break
        if active * k < len(beams.scores):
            finished.append(map_leaves(lambda part, n=active * k: part[n:], beams))
            beams = map_leaves(lambda part, n=active * k: part[:n], beams)
            bonus = None if bonus is None else bonus[: active * k]
        frame = projected[:active, t]
        beams, bonus = _frame(runtime, frame, beams, best[:active], fused, bonus, alignments, options)
    return map_leaves(lambda *parts: np.concatenate(parts), beams, *reversed(finished)) if finished else beams


def _frame(
    runtime: Runtime,
    frame: np.ndarray,
    beams: Beams,
    best: np.ndarray,
    fused: Fusion,
    bonus: np.ndarray | None,
    alignments: Alignments,
    options: SearchOptions,
) -> tuple[Beams, np.ndarray | None]:
    """One frame (A, J): blank or one token for every hypothesis, then the best K of each stream."""
    blank, k, num_streams = runtime.blank_id, options.beam, len(frame)
    projection = beams.predicted.projection
    logits = runtime.join(frame[:, None], projection.reshape(num_streams, k, -1)).astype(np.float32, copy=False)
    logits[..., blank] -= options.blank_penalty
    log_probs = log_softmax(logits / np.float32(options.temperature) if options.temperature != 1 else logits)
    scores = log_probs if bonus is None else log_probs + bonus.reshape(log_probs.shape)  # (A, K, V)
    scores = scores + beams.scores.reshape(num_streams, k, 1)
    grown_from = _merge(scores, beams, blank) if k > 1 else None
    values, index = _top(scores.reshape(num_streams, -1), k)
    parent, token = np.divmod(index, scores.shape[2])
    token = np.where(values > -np.inf, token, blank)
    best += values[:, 0]
    rows = (parent + np.arange(0, num_streams * k, k)[:, None]).ravel()
    tokens = token.ravel()

    aligned_parent, aligned_token = parent, token
    if grown_from is not None:
        source = np.where(token == blank, np.take_along_axis(grown_from, parent, 1), -1)
        merged = source >= 0
        aligned_parent = np.where(merged, source, parent)
        aligned_token = np.where(merged, beams.last[rows].reshape(token.shape), token)
    streams = np.arange(num_streams)[:, None]
    alignments.add(aligned_parent, aligned_token, log_probs[streams, aligned_parent, aligned_token])

    emitting = (tokens != blank).nonzero()[0]
    new = tokens[emitting]
    beams = map_leaves(lambda part: part[rows], beams)._replace(scores=(values - values[:, :1]).ravel())
    bonus = None if bonus is None else bonus[rows]
    if not len(emitting):
        return beams, bonus
    before = beams.hashes[emitting]
    beams.parents[emitting] = before
    beams.hashes[emitting] = _hash(before, new)
    beams.last[emitting] = new
    put(beams.predicted, emitting, emit(runtime, new, map_leaves(lambda part: part[emitting], beams.predicted)))
    if bonus is not None:
        after = fused.advance(new, map_leaves(lambda part: part[emitting], beams.fused))
        bonus[emitting] = fused.bonus(after)
        put(beams.fused, emitting, after)
    return beams, bonus


def _top(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row (A, n), largest first, and their places."""
    places = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(scores, places, 1), axis=1, kind="stable")
    places = np.take_along_axis(places, order, 1)
    return np.take_along_axis(scores, places, 1), places


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities (..., V) of logits, in their type."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _merge(scores: np.ndarray, beams: Beams, blank: int) -> np.ndarray:
    """Add what grows into the sequence of a hypothesis to that hypothesis staying as it is: scores (A, K, V), in which
    every sequence then occurs once, are changed.

    Returns:
        For each hypothesis (A, K) the one whose growth is the likelier of the two alignments; -1 = staying is.
    """
    num_streams, k, _ = scores.shape
    hashes, parents, last = (x.reshape(num_streams, k) for x in (beams.hashes, beams.parents, beams.last))
    alive = beams.scores.reshape(num_streams, k) > -np.inf
    grows, has_token = alive[:, :, None], (alive & (last != blank))[:, None]
    same = (hashes[:, :, None] == parents[:, None]) & grows & has_token  # (A, i, j)
    stream, i, j = same.nonzero()  # at most one i for each j
    grown, source = np.full((num_streams, k), -np.inf, np.float32), np.full((num_streams, k), -1)
    grown[stream, j], source[stream, j] = scores[stream, i, last[stream, j]], i
    stay = scores[..., blank]
    source[~(grown > stay)] = -1
    scores[stream, i, last[stream, j]] = -np.inf
    scores[..., blank] = np.logaddexp(stay, grown)
    return source


def _hash(hashes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Of sequences that have grown by a token: 64 bits, so that chance never makes two equal."""
    mixed = (hashes + tokens + 1) * np.int64(_MULTIPLIER)
    return mixed ^ (mixed >> 29)


def _ranked(runtime: Runtime, state: BeamState, options: SearchOptions) -> tuple[np.ndarray, np.ndarray]:
    """Scores (B, K) relative to state.best, best first, and whose they are: without what hotwords have on approval."""
    fused = Fusion(options, state.hotwords, state.beam, runtime.vocab_size, runtime.blank_id)
    scores = state.beams.scores - fused.on_approval(fused.enter(state.beams.fused))
    scores = scores.reshape(len(state.best), state.beam)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, 1), order


def results(runtime: Runtime, state: BeamState, options: SearchOptions) -> list[NBest]:
    """The best token sequences so far, options.nbest of each stream."""
    relative, order = _ranked(runtime, state, options)
    scores = (relative[:, : options.nbest] + state.best[:, None]).tolist()
    found = state.history.of(order[:, : options.nbest])
    return [
        [Scored(*lists, score) for lists, score in zip(*pair, strict=True) if score > -np.inf]
        for pair in zip(found, scores, strict=True)
    ]
