"""Greedy search on PyTorch's device: `search.greedy` step by step, with nothing but counts fetched from there.

Shapes as in search.greedy: B streams, T encoder frames, A streams still searching, W frames of a window, J joiner
channels, V tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sumix_stream.encoders import states
from sumix_stream.runtime.base import Found, GreedyState
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.trees import map_leaves

WINDOW = 8  # frames looked at together; tokens lie about so far apart


class _Searching(NamedTuple):
    """The A streams with frames left, their places in the row of all frames, and their states."""

    row: Tensor  # (A,) of the batch
    place: Tensor  # (A,)
    end: Tensor  # (A,)
    num_here: Tensor  # (A,) tokens that the present frame has emitted
    state: GreedyState


def search_greedily(
    model: Transducer,
    enc: Tensor,
    lengths: Tensor,
    state: GreedyState,
    blank_penalty: float,
    temperature: float,
    max_symbols: int,
) -> tuple[list[Found], GreedyState]:
    """As `Runtime.search_greedily`, of tensors on the model's device: enc (B, T, D), lengths (B,), state of tensors."""
    batch_size, num_frames, _ = enc.shape
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
            searching = map_leaves(lambda part, kept=unfinished: part[kept], searching)
        if not len(searching.row):
            break
        seen = frames[searching.place[:, None] + window]  # (A, W, J)
        logits = model.joiner.join(seen, searching.state.projection[:, None])  # (A, W, V)
        logits[..., model.blank_id] -= blank_penalty
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
            confidence = (logits[here, first[here]].float() / temperature).softmax(-1).amax(-1)
            found.append((searching.row[here], tokens[here], (place - starts[searching.row])[here], confidence))
            num_here += emits
            full = num_here == max_symbols
            place += full
            num_here.masked_fill_(full, 0)
            searching = searching._replace(state=_emit(model, tokens[here], here, searching.state))
        searching = searching._replace(place=place, num_here=num_here)
    return _by_stream(found, batch_size), after


def _emit(model: Transducer, tokens: Tensor, rows: Tensor, state: GreedyState) -> GreedyState:
    """The predictor's step for the streams in `rows`; the others' state stays."""
    past = states.PredictorState(*(part[rows] for part in state.predictor))
    out, predictor = model.predictor.step(tokens, past)
    return _put(state, rows, GreedyState(model.joiner.project_predictor(out), type(state.predictor)(*predictor)))


def _put(state: GreedyState, rows: Tensor, part: GreedyState) -> GreedyState:
    return map_leaves(lambda old, new: old.index_copy(0, rows, new.to(old.dtype)), state, part)


def _by_stream(found: list[tuple[Tensor, ...]], batch_size: int) -> list[Found]:
    """Sort what was found, round after round, into streams; each stream's rounds are in order of time."""
    by_stream: list[Found] = [([], [], []) for _ in range(batch_size)]
    if found:
        for row, *values in zip(*(torch.cat(column).tolist() for column in zip(*found, strict=True)), strict=True):
            for column, value in zip(by_stream[row], values, strict=True):
                column.append(value)
    return by_stream
