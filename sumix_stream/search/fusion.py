"""Shallow fusion: what a language model and hotwords add to the transducer's scores, hypothesis by hypothesis.

N hypotheses, V tokens. A language model scores tokens given those before, never blank and never the end of the
sentence: a live stream has none until it is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from sumix_stream.search.backoff import BackoffAutomaton
from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions


class LanguageModel(Protocol):
    """What a fused language model offers; a state is an array or named tuple of arrays, N first."""

    vocab_size: int
    fingerprint: str  # names its weights: a stream goes on only with the model it began with

    def start(self, batch_size: int) -> Any:
        """State of sequences without a token."""

    def log_probs(self, state: Any) -> np.ndarray:
        """Natural log-probabilities (N, V) of the next token; what it says of blank is not used."""

    def advance(self, tokens: np.ndarray, state: Any) -> Any:
        """State after tokens (N,)."""

    def check(self, state: Any) -> None:
        """Raise ValueError for a state of the right types and shapes that this model cannot have."""


class FusionState(NamedTuple):
    """Of N hypotheses: the language model's state (None without one) and the hotword matchers' (N,)."""

    lm: Any
    hotwords: np.ndarray


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
    ) -> None:
        self.lm = options.lm if options.lm_scale else None
        self.lm_scale = options.lm_scale
        self.blank_id = blank_id
        self.has_hotwords = any(words is not None for words in hotwords)
        if self.has_hotwords:
            none = Hotwords((), vocab_size)
            distinct = {id(words): words for words in (words or none for words in hotwords)}
            self.matcher, offsets = BackoffAutomaton.join([words.matcher for words in distinct.values()])
            first = dict(zip(distinct, offsets, strict=True))
            of_streams = [first[id(words or none)] for words in hotwords]
            self._first = np.repeat(of_streams, beam)  # (N,) each hypothesis's matcher within the joined one

    def __bool__(self) -> bool:
        return self.lm is not None or self.has_hotwords

    def enter(self, state: FusionState) -> FusionState:
        """The state in this batch's numbering; `leave` gives it back in each stream's own."""
        return state._replace(hotwords=state.hotwords + self._first) if self.has_hotwords else state

    def leave(self, state: FusionState) -> FusionState:
        return state._replace(hotwords=state.hotwords - self._first) if self.has_hotwords else state

    def bonus(self, state: FusionState) -> np.ndarray:
        """What is added to the scores of the next token: (N, V), 0 for blank."""
        parts = []
        if self.lm is not None:
            parts.append(np.float32(self.lm_scale) * self.lm.log_probs(state.lm))
        if self.has_hotwords:
            parts.append(self.matcher.rows(state.hotwords))
        total = sum(parts)
        total[:, self.blank_id] = 0
        return total

    def advance(self, tokens: np.ndarray, state: FusionState) -> FusionState:
        """State after tokens (N,), none of them blank."""
        lm = state.lm if self.lm is None else self.lm.advance(tokens, state.lm)
        hotwords = self.matcher.next(state.hotwords, tokens) if self.has_hotwords else state.hotwords
        return FusionState(lm, hotwords)

    def on_approval(self, state: FusionState) -> np.ndarray:
        """Part of the scores (N,) that unfinished hotwords would lose if nothing followed."""
        if self.has_hotwords:
            return -self.matcher.to_root(state.hotwords)
        return np.zeros(state.hotwords.shape, np.float32)


def start(options: SearchOptions, num_hypotheses: int) -> FusionState:
    """State of hypotheses without a token."""
    lm = options.lm.start(num_hypotheses) if options.lm is not None and options.lm_scale else None
    return FusionState(lm, np.zeros(num_hypotheses, np.int64))


def check(options: SearchOptions, hotwords: Hotwords | None, state: FusionState) -> None:
    """Raise ValueError for a state that these options and hotwords never have: its numbers are places in tables."""
    most = 0 if hotwords is None else len(hotwords.matcher.fallback) - 1
    if not (0 <= state.hotwords.min() and state.hotwords.max() <= most):
        raise ValueError(f"the hotwords' states must be in 0..{most}")
    if options.lm is not None and options.lm_scale:
        options.lm.check(state.lm)
