"""Shallow fusion: what a language model and hotwords add to the transducer's scores, hypothesis by hypothesis.

N hypotheses, V tokens. A language model scores tokens given those before, never blank and never the end of the
sentence: a live stream has none until it is over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sumix_stream.encoders import states
from sumix_stream.search.backoff import BackoffAutomaton
from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions


class LanguageModel(Protocol):
    """What a fused language model offers; a state is a tensor or named tuple of tensors, N first."""

    vocab_size: int
    fingerprint: str  # names its weights: a stream goes on only with the model it began with

    def start(self, batch_size: int, device: torch.device) -> Any:
        """State of sequences without a token."""

    def log_probs(self, state: Any) -> Tensor:
        """Natural log-probabilities (N, V) of the next token; what it says of blank is not used."""

    def advance(self, tokens: Tensor, state: Any) -> Any:
        """State after tokens (N,)."""


class FusionState(NamedTuple):
    """Of N hypotheses: the language model's state (None without one) and the hotword matchers' (N,)."""

    lm: Any
    hotwords: Tensor


class Fusion:
    """The language model and the hotwords of a batch of streams.

    Args:
        hotwords: of each stream, None = none.
        beam: hypotheses of each stream.
    """

    def __init__(
        self,
        options: SearchOptions,
        hotwords: Sequence[Hotwords | None],
        beam: int,
        vocab_size: int,
        blank_id: int,
        device: torch.device,
    ) -> None:
        self.lm = options.lm if options.lm_scale else None
        self.lm_scale = options.lm_scale
        self.blank_id = blank_id
        self.has_hotwords = any(words is not None for words in hotwords)
        if self.has_hotwords:
            none = Hotwords((), vocab_size)
            distinct = {id(words): words for words in (words or none for words in hotwords)}
            self.matcher, offsets = BackoffAutomaton.join([words.matcher.to(device) for words in distinct.values()])
            first = dict(zip(distinct, offsets, strict=True))
            of_streams = torch.tensor([first[id(words or none)] for words in hotwords], device=device)
            self._first = of_streams.repeat_interleave(beam)  # (N,) each hypothesis's matcher within the joined one

    def __bool__(self) -> bool:
        return self.lm is not None or self.has_hotwords

    def enter(self, state: FusionState) -> FusionState:
        """The state in this batch's numbering; `leave` gives it back in each stream's own."""
        return state._replace(hotwords=state.hotwords + self._first) if self.has_hotwords else state

    def leave(self, state: FusionState) -> FusionState:
        return state._replace(hotwords=state.hotwords - self._first) if self.has_hotwords else state

    def bonus(self, state: FusionState) -> Tensor:
        """What is added to the scores of the next token: (N, V), 0 for blank."""
        parts = []
        if self.lm is not None:
            parts.append(self.lm_scale * self.lm.log_probs(state.lm).float())
        if self.has_hotwords:
            parts.append(self.matcher.rows(state.hotwords))
        total = sum(parts)
        total[:, self.blank_id] = 0
        return total

    def advance(self, tokens: Tensor, state: FusionState) -> FusionState:
        """State after tokens (N,), none of them blank."""
        lm = state.lm if self.lm is None else self.lm.advance(tokens, state.lm)
        hotwords = self.matcher.next(state.hotwords, tokens) if self.has_hotwords else state.hotwords
        return FusionState(lm, hotwords)

    def on_approval(self, state: FusionState) -> Tensor:
        """Part of the scores (N,) that unfinished hotwords would lose if nothing followed."""
        if self.has_hotwords:
            return -self.matcher.to_root(state.hotwords)
        return torch.zeros_like(state.hotwords, dtype=torch.float32)


def start(options: SearchOptions, num_hypotheses: int, device: torch.device) -> FusionState:
    """State of hypotheses without a token."""
    lm = options.lm.start(num_hypotheses, device) if options.lm is not None and options.lm_scale else None
    return FusionState(lm, torch.zeros(num_hypotheses, dtype=torch.int64, device=device))


def select(state: FusionState, rows: Tensor) -> FusionState:
    """The hypotheses in `rows`."""
    return states.map_states(lambda part: part[rows], state)


def write(state: FusionState, rows: Tensor, new: FusionState) -> FusionState:
    """The state with new hypotheses in `rows`."""
    return states.map_states(lambda old, part: old.index_copy(0, rows, part.to(old.dtype)), state, new)


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over types, shapes and values."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
