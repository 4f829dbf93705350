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

import torch
from torch import Tensor

from sumix_stream.encoders import states
from sumix_stream.runtime.base import AcousticModel
from sumix_stream.search import fusion
from sumix_stream.search.compiled_beam import search_beams
from sumix_stream.search.compiled_greedy import can_compile
from sumix_stream.search.fusion import Fusion, FusionState
from sumix_stream.search.greedy import GreedyState, emit
from sumix_stream.search.history import Alignments, History
from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions

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

    scores: Tensor  # (B K,) relative to the stream's best; -inf = none
    hashes: Tensor  # (B K,) of the token sequence
    parents: Tensor  # (B K,) of the sequence without its last token
    last: Tensor  # (B K,) last token; blank = none yet
    predicted: GreedyState
    fused: FusionState


class BeamState(NamedTuple):
    """What the search keeps of a batch of streams: constant in size, but for the tokens themselves."""

    beam: int
    beams: Beams
    best: Tensor  # (B,) float64: log-probability of each stream's best hypothesis, kept apart for long streams
    num_frames: Tensor  # (B,) searched so far
    history: History
    hotwords: tuple[Hotwords | None, ...]  # of each stream

    @classmethod
    @torch.inference_mode()
    def init(
        cls,
        model: AcousticModel,
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
            if part is not None and part.vocab_size != model.vocab_size:
                raise ValueError(
                    f"{name} is over {part.vocab_size} tokens but the model has {model.vocab_size}: "
                    "make it with the model's own tokenizer"
                )
        device, num = model.device, batch_size * options.beam
        zeros = torch.zeros(num, dtype=torch.int64, device=device)
        scores = torch.full((batch_size, options.beam), -torch.inf, device=device)
        scores[:, 0] = 0.0
        beams = Beams(
            scores.flatten(),
            zeros,
            zeros.clone(),
            torch.full_like(zeros, model.blank_id),
            GreedyState.init(model, num),
            fusion.start(options, num, device),
        )
        return cls(
            options.beam,
            beams,
            torch.zeros(batch_size, dtype=torch.float64, device=device),
            torch.zeros(batch_size, dtype=torch.int64, device=device),
            History.init(batch_size, options.beam, device),
            tuple(hotwords),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all but the tokens: constant over a stream's life. Hotwords belong to whoever made them."""
        return sum(tensor.nbytes for tensor in states.tensors((self.beams, self.best, self.num_frames)))

    @staticmethod
    def stack(parts: Sequence[BeamState]) -> BeamState:
        """Join streams of any age. Raises ValueError if their beams differ."""
        if len({part.beam for part in parts}) != 1:
            raise ValueError(f"streams of a batch share one beam, got {sorted({part.beam for part in parts})}")
        beams, best, num_frames = states.stack([(part.beams, part.best, part.num_frames) for part in parts])
        history = History.stack([part.history for part in parts])
        hotwords = tuple(words for part in parts for words in part.hotwords)
        return BeamState(parts[0].beam, beams, best, num_frames, history, hotwords)

    def unstack(self) -> list[BeamState]:
        """One state for each stream; the parts own their memory."""
        k = self.beam
        return [
            BeamState(
                k,
                states.map_states(lambda part, b=b: part[b * k : (b + 1) * k].clone(), self.beams),
                self.best[b : b + 1].clone(),
                self.num_frames[b : b + 1].clone(),
                history,
                (words,),
            )
            for b, (history, words) in enumerate(zip(self.history.unstack(), self.hotwords, strict=True))
        ]

    def _select(self, streams: Tensor) -> BeamState:
        """The streams in this order."""
        rows = (streams[:, None] * self.beam + torch.arange(self.beam, device=streams.device)).flatten()
        return BeamState(
            self.beam,
            states.map_states(lambda part: part[rows], self.beams),
            self.best[streams],
            self.num_frames[streams],
            self.history.select(streams),
            tuple(self.hotwords[n] for n in streams.tolist()),
        )


@torch.inference_mode()
def beam_decode(
    model: AcousticModel,
    enc: Tensor,
    lengths: Tensor,
    state: BeamState | None = None,
    options: SearchOptions | None = None,
) -> tuple[list[NBest], BeamState]:
    """The best token sequences of each stream, of all it has heard: a beam may still change what came before.

    Searching an utterance in pieces, handing the state on, gives the result of one search over the whole, and a
    stream's result does not depend on the others.

    Args:
        enc: (B, T, D) encoder frames; T may be 0.
        lengths: (B,) valid frames.
        state: of the same B streams after the frames before; None = start of the utterance.
        options: of method modified_beam, with the beam of the state; None = the defaults of that method.
    Returns:
        options.nbest results of each stream (fewer if there are not so many sequences), and the state after them.
    """
    options = options or SearchOptions(method="modified_beam")
    if options.method != "modified_beam":
        raise ValueError(f"method must be modified_beam for a beam search, got {options.method!r}")
    batch_size = enc.shape[0]
    assert lengths.shape == (batch_size,), (lengths.shape, enc.shape)
    if state is None:
        state = BeamState.init(model, batch_size, options)
    if state.beam != options.beam:
        raise ValueError(f"beam must be that of the state, {state.beam}, got {options.beam}: open a new stream")
    order = lengths.argsort(descending=True, stable=True)  # so that those with frames left come first
    state = _search(model, enc[order], lengths[order], state._select(order), options)._select(order.argsort())
    return results(model, state, options), state


def cut(model: AcousticModel, state: BeamState, options: SearchOptions, forget: bool) -> BeamState:
    """Begin a new segment: no tokens yet, frames counted on.

    Each stream commits to its best hypothesis, so that no token of the old segment can change; the next words still
    depend on it, unless `forget` starts predictor, language model and hotwords afresh.
    """
    fresh = BeamState.init(model, len(state.best), options, state.hotwords)._replace(num_frames=state.num_frames)
    if forget:
        return fresh
    _, order = _ranked(model, state, options)
    rows = order[:, :1] + torch.arange(0, order.numel(), state.beam, device=order.device)[:, None]
    rows = rows.expand(-1, state.beam).flatten()
    beams = states.map_states(lambda part: part[rows], state.beams)
    return fresh._replace(beams=beams._replace(scores=fresh.beams.scores))


def _search(model: AcousticModel, enc: Tensor, lengths: Tensor, state: BeamState, options: SearchOptions) -> BeamState:
    """Go on over frames (B, T, D) of streams sorted by falling length; of `state` nothing is kept by others."""
    fused = Fusion(options, state.hotwords, state.beam, model.vocab_size, model.blank_id, enc.device)
    beams = state.beams._replace(fused=fused.enter(state.beams.fused))
    best = state.best.clone()
    alignments = Alignments(enc.shape[0], state.beam, model.blank_id, enc.device)
    k = state.beam
    if not fused and can_compile(model):
        search_beams(model, enc, lengths, beams, best, alignments, options, _MULTIPLIER)
    else:
        beams = _search_frames(model, enc, lengths, beams, best, fused, alignments, options)
    history = alignments.append_to(state.history, state.num_frames)
    history = history.settle(beams.scores.view(-1, k) > -torch.inf)
    beams = beams._replace(fused=fused.leave(beams.fused))
    return BeamState(k, beams, best, state.num_frames + lengths, history, state.hotwords)


def _search_frames(
    model: AcousticModel,
    enc: Tensor,
    lengths: Tensor,
    beams: Beams,
    best: Tensor,
    fused: Fusion,
    alignments: Alignments,
    options: SearchOptions,
) -> Beams:
    """One frame of all streams after the other; `best` is moved in place."""
    frames = model.joiner.project_encoder(enc)  # (B, T, J)
    num_active = (lengths[:, None] > torch.arange(enc.shape[1], device=enc.device)).sum(0).tolist()
    finished: list[Beams] = []
    bonus = fused.bonus(beams.fused) if fused else None
    k = options.beam
    for frame, active in zip(frames.unbind(1), num_active, strict=True):
        if active == 0:
            break
        if active * k < len(beams.scores):
            finished.append(states.map_states(lambda part, n=active * k: part[n:], beams))
            beams = states.map_states(lambda part, n=active * k: part[:n], beams)
            bonus = None if bonus is None else bonus[: active * k]
        beams, bonus = _frame(model, frame[:active], beams, best[:active], fused, bonus, alignments, options)
    return states.map_states(lambda *parts: torch.cat(parts), beams, *reversed(finished)) if finished else beams


def _frame(
    model: AcousticModel,
    frame: Tensor,
    beams: Beams,
    best: Tensor,
    fused: Fusion,
    bonus: Tensor | None,
    alignments: Alignments,
    options: SearchOptions,
) -> tuple[Beams, Tensor | None]:
    """One frame (A, J): blank or one token for every hypothesis, then the best K of each stream."""
    blank, k = model.blank_id, options.beam
    num_streams = len(frame)
    logits = model.joiner.join(frame[:, None], beams.predicted.projection.unflatten(0, (num_streams, k))).float()
    options.penalise(logits, blank)
    log_probs = (logits / options.temperature if options.temperature != 1 else logits).log_softmax(-1)  # (A, K, V)
    scores = log_probs if bonus is None else log_probs + bonus.view_as(log_probs)
    scores = scores + beams.scores.view(num_streams, k, 1)
    grown_from = None
    if k > 1:
        scores, grown_from = _merge(scores, beams, blank)
    values, index = scores.flatten(1).topk(k)
    parent, token = index // scores.shape[2], index % scores.shape[2]
    token = token.where(values > -torch.inf, blank)
    best += values[:, 0]
    rows = (parent + torch.arange(0, num_streams * k, k, device=frame.device)[:, None]).flatten()
    tokens = token.flatten()

    aligned_parent, aligned_token = parent, token
    if grown_from is not None:
        source = grown_from.gather(1, parent).where(token == blank, -1)
        merged = source >= 0
        aligned_parent = source.where(merged, parent)
        aligned_token = beams.last[rows].view_as(token).where(merged, token)
    at = aligned_parent * scores.shape[2] + aligned_token
    alignments.add(aligned_parent, aligned_token, log_probs.flatten(1).gather(1, at))

    emitting = (tokens != blank).nonzero().squeeze(1)
    new = tokens[emitting]
    beams = states.map_states(lambda part: part[rows], beams)._replace(scores=(values - values[:, :1]).flatten())
    bonus = None if bonus is None else bonus[rows]
    if not len(emitting):
        return beams, bonus
    before = beams.hashes[emitting]
    beams.parents[emitting] = before
    beams.hashes[emitting] = _hash(before, new)
    beams.last[emitting] = new
    beams = beams._replace(predicted=emit(model, new, emitting, beams.predicted))
    if bonus is not None:
        after = fused.advance(new, fusion.select(beams.fused, emitting))
        bonus[emitting] = fused.bonus(after)
        beams = beams._replace(
            fused=states.map_states(lambda old, x: old.index_copy(0, emitting, x), beams.fused, after)
        )
    return beams, bonus


def _merge(scores: Tensor, beams: Beams, blank: int) -> tuple[Tensor, Tensor]:
    """Add what grows into the sequence of a hypothesis to that hypothesis staying as it is.

    Returns:
        Scores (A, K, V) in which every sequence occurs once, and for each hypothesis (A, K) the one whose growth is
        the likelier of the two alignments; -1 = staying is.
    """
    num_streams, k, _ = scores.shape
    hashes, parents, last = (x.view(num_streams, k) for x in (beams.hashes, beams.parents, beams.last))
    alive = beams.scores.view(num_streams, k) > -torch.inf
    grows, has_token = alive[:, :, None], (alive & (last != blank))[:, None]
    same = (hashes[:, :, None] == parents[:, None]) & grows & has_token  # (A, i, j)
    into = last[:, None].expand(-1, k, -1)
    grown, source = scores.gather(2, into).masked_fill(~same, -torch.inf).max(1)  # (A, j): at most one i each
    stay = scores[..., blank]
    source = source.where(grown > stay, -1)
    # Added rather than written: another hypothesis may end in the same token without being the same sequence.
    scores = scores.scatter_add(2, into, torch.zeros_like(into, dtype=scores.dtype).masked_fill(same, -torch.inf))
    scores[..., blank] = torch.logaddexp(stay, grown)
    return scores, source


def _hash(hashes: Tensor, tokens: Tensor) -> Tensor:
    """Of sequences that have grown by a token: 64 bits, so that chance never makes two equal."""
    mixed = (hashes + tokens + 1) * _MULTIPLIER
    return mixed ^ (mixed >> 29)


def _ranked(model: AcousticModel, state: BeamState, options: SearchOptions) -> tuple[Tensor, Tensor]:
    """Scores (B, K) relative to state.best, best first, and whose they are: without what hotwords have on approval."""
    fused = Fusion(options, state.hotwords, state.beam, model.vocab_size, model.blank_id, state.best.device)
    scores = state.beams.scores - fused.on_approval(fused.enter(state.beams.fused))
    return scores.view(len(state.best), state.beam).sort(dim=1, descending=True, stable=True)


def results(model: AcousticModel, state: BeamState, options: SearchOptions) -> list[NBest]:
    """The best token sequences so far, options.nbest of each stream."""
    relative, order = _ranked(model, state, options)
    scores = (relative[:, : options.nbest] + state.best[:, None]).tolist()
    found = state.history.of(order[:, : options.nbest])
    return [
        [Scored(*lists, score) for lists, score in zip(*pair, strict=True) if score > -torch.inf]
        for pair in zip(found, scores, strict=True)
    ]
