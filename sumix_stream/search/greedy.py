"""Greedy transducer search over batches of streams, looping over emitted labels instead of frames.

The predictor moves only when a label is emitted, so until then the joiner looks at a window of frames at once and
jumps to the first that is not blank (label looping, arXiv 2406.06220). Each stream has its own place in time.

B streams, T encoder frames, D channels, J joiner channels, V tokens, A streams still searching, W frames of a window.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sumix_stream.encoders import states
from sumix_stream.encoders.states import PredictorState, StateRows
from sumix_stream.runtime.base import AcousticModel
from sumix_stream.search.compiled_greedy import CompiledGreedy, can_compile
from sumix_stream.search.options import GREEDY, SearchOptions

WINDOW = 8  # frames looked at together; tokens lie about so far apart


class GreedyState(NamedTuple):
    """What the search remembers of the tokens emitted so far: all it carries from chunk to chunk."""

    projection: Tensor  # (B, J) predictor output in the joiner
    predictor: PredictorState

    @classmethod
    @torch.inference_mode()
    def init(cls, model: AcousticModel, batch_size: int) -> "GreedyState":
        """State of streams that have emitted nothing: the predictor has seen a blank."""
        blanks = torch.full((batch_size,), model.blank_id, device=model.device)
        return cls._advance(model, blanks, model.predictor.init_state(batch_size))

    @classmethod
    def _advance(cls, model: AcousticModel, tokens: Tensor, predictor: PredictorState) -> "GreedyState":
        out, predictor = model.predictor.step(tokens, predictor)
        return cls(model.joiner.project_predictor(out), predictor)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in states.tensors(self))

    @staticmethod
    def stack(parts: list["GreedyState"]) -> "GreedyState":
        return states.stack(parts)

    def unstack(self) -> list["GreedyState"]:
        return states.unstack(self)


class Emissions(NamedTuple):
    """What one stream emitted, token by token."""

    tokens: list[int]
    frames: list[int]  # encoder frame of each token, counted from the first one given to the search
    confidence: list[float]  # probability of each token at its frame


@torch.inference_mode()
def greedy_decode(
    model: AcousticModel,
    enc: Tensor,
    lengths: Tensor,
    state: GreedyState | None = None,
    options: SearchOptions = GREEDY,
) -> tuple[list[Emissions], GreedyState]:
    """Most probable token, frame after frame.

    Searching an utterance in pieces, handing the state on, gives the tokens of one search over the whole.

    Args:
        enc: (B, T, D) encoder frames; T may be 0.
        lengths: (B,) valid frames.
        state: of the same B streams after the frames before; None = start of the utterance.
        options: of method greedy.
    Returns:
        What each stream emitted, and the state after it.
    """
    if options.method != "greedy":
        raise ValueError(f"method must be greedy for a greedy search, got {options.method!r}")
    batch_size, num_frames, _ = enc.shape
    assert lengths.shape == (batch_size,), (lengths.shape, enc.shape)
    state = state or GreedyState.init(model, batch_size)
    if can_compile(model):
        rows = StateRows(state)
        table = torch.stack(rows.split(state))
        found = CompiledGreedy(model, rows).search(enc, lengths, table, options)
        return [Emissions(*columns) for columns in found], rows.join(list(table))
    window = torch.arange(WINDOW, device=enc.device)
    # All streams' frames in a row, with room for windows that reach beyond an end: a place is a row of it.
    frames = functional.pad(model.joiner.project_encoder(enc), (0, 0, 0, WINDOW)).flatten(0, 1)
    starts = torch.arange(batch_size, device=enc.device) * (num_frames + WINDOW)
    ends = starts + lengths
    searching = _Searching(torch.arange(batch_size, device=enc.device), starts, ends, torch.zeros_like(starts), state)
    after = state  # of streams whose frames are all searched
    found: list[tuple[Tensor, ...]] = []
    while True:
        unfinished = searching.place < searching.end
        if not unfinished.all():
            after = _put(after, searching.row, searching.state)
            searching = states.map_states(lambda part, kept=unfinished: part[kept], searching)
        if not len(searching.row):
            break
        seen = frames[searching.place[:, None] + window]  # (A, W, J)
        logits = model.joiner.join(seen, searching.state.projection[:, None])  # (A, W, V)
        options.penalise(logits, model.blank_id)
        best = logits.argmax(-1)
        first = (best != model.blank_id).byte().argmax(1)  # the first that is no blank, or 0
        tokens = best.gather(1, first[:, None]).squeeze(1)
        emits = tokens != model.blank_id
        skipped = torch.where(emits, first, WINDOW)
        place = searching.place + skipped
        emits &= place < searching.end
        num_here = searching.num_here.masked_fill(skipped > 0, 0)
        here = emits.nonzero().squeeze(1)
        if len(here):
            confidence = (logits[here, first[here]].float() / options.temperature).softmax(-1).amax(-1)
            found.append((searching.row[here], tokens[here], (place - starts[searching.row])[here], confidence))
            num_here += emits
            full = num_here == options.max_symbols
            place += full
            num_here.masked_fill_(full, 0)
            searching = searching._replace(state=emit(model, tokens[here], here, searching.state))
        searching = searching._replace(place=place, num_here=num_here)
    return _by_stream(found, batch_size), after


class _Searching(NamedTuple):
    """The A streams with frames left, their places in the row of all frames, and their states."""

    row: Tensor  # (A,) of the batch
    place: Tensor  # (A,)
    end: Tensor  # (A,)
    num_here: Tensor  # (A,) tokens that the present frame has emitted
    state: GreedyState


def emit(model: AcousticModel, tokens: Tensor, rows: Tensor, state: GreedyState) -> GreedyState:
    """The predictor's step for the streams in `rows`; the others' state stays."""
    if len(rows) == len(state.projection):
        return GreedyState._advance(model, tokens, state.predictor)
    before = states.map_states(lambda part: part[rows], state.predictor)
    after = GreedyState._advance(model, tokens, before)
    return _put(state, rows, after)


def _put(state: GreedyState, rows: Tensor, part: GreedyState) -> GreedyState:
    return states.map_states(lambda old, new: old.index_copy(0, rows, new.to(old.dtype)), state, part)


def _by_stream(found: list[tuple[Tensor, ...]], batch_size: int) -> list[Emissions]:
    """Sort what was found, round after round, into streams; each stream's rounds are in order of time."""
    emissions = [Emissions([], [], []) for _ in range(batch_size)]
    if found:
        for row, *values in zip(*(torch.cat(column).tolist() for column in zip(*found, strict=True)), strict=True):
            for column, value in zip(emissions[row], values, strict=True):
                column.append(value)
    return emissions
