"""Greedy transducer search over batches of streams, looping over emitted labels instead of frames.

The predictor moves only when a label is emitted, so until then the joiner looks at a window of frames at once and
jumps to the first that is not blank (label looping, arXiv 2406.06220). Each stream has its own place in time.

B streams, T encoder frames, J joiner channels, V tokens, A streams still searching, W frames of a window.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sumix_stream.runtime.base import Found, Frames, GreedyState, PredictorState, Runtime
from sumix_stream.search.options import GREEDY, SearchOptions
from sumix_stream.trees import check_count, leaves, map_leaves

WINDOW = 8  # frames looked at together; tokens lie about so far apart


class Emissions(NamedTuple):
    """What one stream emitted, token by token."""

    tokens: list[int]
    frames: list[int]  # encoder frame of each token, counted from the first one given to the search
    confidence: list[float]  # probability of each token at its frame


def check_emissions(found: Emissions, vocab_size: int, num_frames: int) -> None:
    """Raise ValueError for what no search emits in so many frames: tokens out of the vocabulary, other frames..."""
    if len({len(column) for column in found}) != 1:
        raise ValueError(f"tokens, frames and confidences must be as many, got {[len(column) for column in found]}")
    for name, values, most in (("token", found.tokens, vocab_size - 1), ("frame", found.frames, num_frames - 1)):
        for value in values:
            check_count(name, value, most)
    if not all(type(value) is float and 0 <= value <= 1.001 for value in found.confidence):
        raise ValueError("confidences must be numbers in 0..1")


def check_finite(name: str, state: GreedyState) -> None:
    """Raise ValueError for a state that is not finite."""
    if not all(np.isfinite(part).all() for part in leaves(state)):
        raise ValueError(f"{name} is not finite")


def fresh_state(runtime: Runtime, batch_size: int) -> GreedyState:
    """State of streams that have emitted nothing: the predictor has seen a blank."""
    blanks = np.full(batch_size, runtime.blank_id)
    return GreedyState(*runtime.predict(blanks, runtime.predictor_state(batch_size)))


def greedy_decode(
    runtime: Runtime,
    frames: Frames,
    lengths: np.ndarray,
    state: GreedyState | None = None,
    options: SearchOptions = GREEDY,
) -> tuple[list[Emissions], GreedyState]:
    """Most probable token, frame after frame, by the runtime's own search if it has one.

    Searching an utterance in pieces, handing the state on, gives the tokens of one search over the whole.

    Args:
        frames: (B, T, D) of the runtime's `encode`; T may be 0.
        lengths: (B,) valid frames.
        state: of the same B streams after the frames before; None = start of the utterance.
        options: of method greedy.
    Returns:
        What each stream emitted, and the state after it.
    """
    if options.method != "greedy":
        raise ValueError(f"method must be greedy for a greedy search, got {options.method!r}")
    assert lengths.shape == (len(frames),), (lengths.shape, frames.shape)
    state = state or fresh_state(runtime, len(frames))
    numbers = options.blank_penalty, options.temperature, options.max_symbols
    own = runtime.search_greedily
    found, state = (
        search_common(runtime, frames, lengths, state, *numbers)
        if own is None
        else own(frames, lengths, state, *numbers)
    )
    return [Emissions(*columns) for columns in found], state


class _Searching(NamedTuple):
    """The A streams with frames left, their places in the row of all frames, and their states."""

    row: np.ndarray  # (A,) of the batch
    place: np.ndarray  # (A,)
    end: np.ndarray  # (A,)
    num_here: np.ndarray  # (A,) tokens that the present frame has emitted
    state: GreedyState


def search_common(
    runtime: Runtime,
    enc: Frames,
    lengths: np.ndarray,
    state: GreedyState,
    blank_penalty: float,
    temperature: float,
    max_symbols: int,
) -> tuple[list[Found], GreedyState]:
    """As `Runtime.search_greedily`, for any runtime, by its predictor's and joiner's steps."""
    projected, blank = runtime.project(enc), runtime.blank_id
    batch_size, num_frames, _ = projected.shape
    window = np.arange(WINDOW)
    # All streams' frames in a row, with room for windows that reach beyond an end: a place is a row of it.
    frames = np.pad(projected, ((0, 0), (0, WINDOW), (0, 0))).reshape(-1, projected.shape[2])
    starts = np.arange(batch_size) * (num_frames + WINDOW)
    rows = np.arange(batch_size)
    searching = _Searching(rows, starts, starts + lengths, np.zeros_like(starts), state)
    after = map_leaves(np.copy, state)  # of streams whose frames are all searched
    found: list[Found] = [([], [], []) for _ in range(batch_size)]
    while True:
        unfinished = searching.place < searching.end
        if not unfinished.all():
            put(after, searching.row, searching.state)
            searching = map_leaves(lambda part, kept=unfinished: part[kept], searching)
        if not len(searching.row):
            return found, after
        logits = runtime.join(frames[searching.place[:, None] + window], searching.state.projection[:, None])
        logits[..., blank] -= blank_penalty
        best = logits.argmax(-1)  # (A, W)
        first = (best != blank).argmax(1)  # the first that is no blank, or 0
        tokens = best[np.arange(len(best)), first]
        emits = tokens != blank
        skipped = np.where(emits, first, WINDOW)
        place = searching.place + skipped
        emits &= place < searching.end
        num_here = np.where(skipped > 0, 0, searching.num_here)
        here = emits.nonzero()[0]
        moved = map_leaves(np.copy, searching.state)
        if len(here):
            own = logits[here, first[here]] / np.float32(temperature)
            confidence = 1 / np.exp(own - own.max(-1, keepdims=True)).sum(-1)
            of = searching.row[here]
            columns = of, tokens[here], (place - starts[searching.row])[here], confidence
            for row, *values in zip(*(column.tolist() for column in columns), strict=True):
                for column, value in zip(found[row], values, strict=True):
                    column.append(value)
            num_here = num_here + emits
            full = num_here == max_symbols
            place, num_here = place + full, np.where(full, 0, num_here)
            put(moved, here, emit(runtime, tokens[here], map_leaves(lambda part, here=here: part[here], moved)))
        searching = searching._replace(place=place, num_here=num_here, state=moved)


def emit(runtime: Runtime, tokens: np.ndarray, state: GreedyState) -> GreedyState:
    """The predictor's step for tokens (N,), all of them emitted."""
    return GreedyState(*runtime.predict(tokens, PredictorState(*state.predictor)))


def put(state: GreedyState, rows: np.ndarray, part: GreedyState) -> None:
    """Write a part into the rows of a state."""

    def write(old: np.ndarray, new: np.ndarray) -> None:
        old[rows] = new

    map_leaves(write, state, part)
