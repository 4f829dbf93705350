"""N-gram language models over tokens, from ARPA files, for shallow fusion.

Over the model's own tokens, not words: every token is scored when it is emitted, so that the beam is pruned by the
language model at each step and partial results are ranked like final ones. A word model could only speak at the end
of each word. The file is read here and turned into arrays (backoff.py), in which the scores of all tokens after all
hypotheses are found at once: the usual libraries answer one query at a time.

Such a file is made by any n-gram toolkit from text split into pieces by the model's tokenizer (`write_pieces`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from sumix_stream.runtime.weights import digest
from sumix_stream.search.arpa import END, NEVER, START, UNKNOWN, ArpaError, Ngrams, read_arpa
from sumix_stream.search.backoff import BackoffAutomaton
from sumix_stream.tokenizer import Tokenizer

_LN10 = math.log(10)


class NgramLm:
    """An n-gram model as `fusion.LanguageModel`; its state is the automaton's, (N,). Make one with `load`."""

    def __init__(self, automaton: BackoffAutomaton, vocab_size: int, start: int, order: int) -> None:
        self.vocab_size = vocab_size
        self.order = order
        self._automaton = automaton
        self._start = start

    @classmethod
    def load(cls, path: str | os.PathLike, tokenizer: Tokenizer) -> NgramLm:
        """From an ARPA file (.arpa or .arpa.gz) whose words are the tokenizer's pieces.

        Raises:
            ArpaError: the file is missing, damaged, or over other words than the pieces.
        """
        path = Path(path)
        orders = read_arpa(path)
        ids = {tokenizer.piece(token): token for token in range(tokenizer.vocab_size) if token != tokenizer.blank_id}
        strangers = sorted({words[0] for words in orders[0]} - {START, END, UNKNOWN} - set(ids))
        if strangers:
            raise ArpaError(
                f"{path}: {len(strangers)} of its words are no pieces of this tokenizer, such as {strangers[0]!r}: "
                "train it on text that ngram.write_pieces has split into pieces with the same tokenizer"
            )
        start = tokenizer.vocab_size  # the context <s>, which is never a token to be scored
        unknown, _ = orders[0].get((UNKNOWN,), (NEVER, 0.0))
        try:
            return cls._build(orders, ids | {UNKNOWN: tokenizer.unk_id, START: start}, unknown)
        except KeyError as error:
            raise ArpaError(f"{path}: {error.args[0]} is within an n-gram but not an n-gram itself") from None

    @classmethod
    def _build(cls, orders: list[Ngrams], ids: dict[str, int], unknown: float) -> NgramLm:
        start = ids[START]
        contexts: dict[tuple[int, ...], int] = {(): 0}
        weights = {}
        backoffs = [0.0]
        for order, ngrams in enumerate(orders, 1):
            for words, (log_prob, backoff) in ngrams.items():
                if words[-1] == END:
                    continue
                tokens = tuple(ids[word] for word in words)
                if tokens[:-1] not in contexts:
                    raise KeyError(" ".join(words[:-1]))
                weights[tokens] = log_prob * _LN10
                if order < len(orders):
                    contexts[tokens] = len(contexts)
                    backoffs.append(backoff * _LN10)

        def longest(tokens: tuple[int, ...]) -> int:
            while tokens not in contexts:
                tokens = tokens[1:]
            return contexts[tokens]

        unseen = longest((ids[UNKNOWN],))
        arcs = {(0, token): (unknown * _LN10, unseen) for token in range(1, start)}
        for tokens, weight in weights.items():
            if tokens[-1] != start:
                arcs[contexts[tokens[:-1]], tokens[-1]] = (weight, longest(tokens))
        fallbacks = [0] + [longest(tokens[1:]) for tokens in contexts if tokens]
        automaton = BackoffAutomaton.build(start + 1, fallbacks, backoffs, arcs)
        return cls(automaton, start, longest((start,)), len(orders))

    def start(self, batch_size: int) -> np.ndarray:
        return np.full(batch_size, self._start)

    @cached_property
    def fingerprint(self) -> str:
        return digest(("", part) for part in vars(self._automaton).values() if isinstance(part, np.ndarray))

    def log_probs(self, state: np.ndarray) -> np.ndarray:
        return self._automaton.rows(state)[:, : self.vocab_size]

    def advance(self, tokens: np.ndarray, state: np.ndarray) -> np.ndarray:
        return self._automaton.next(state, tokens)

    def check(self, state: np.ndarray) -> None:
        most = len(self._automaton.fallback) - 1
        if not (0 <= state.min() and state.max() <= most):
            raise ValueError(f"the language model's states must be in 0..{most}")


def write_pieces(texts: Iterable[str], tokenizer: Tokenizer, path: str | os.PathLike) -> int:
    """Write texts one a line, split into pieces with spaces between: what an n-gram toolkit is trained on.

    Returns:
        Lines written; texts without a token are left out.
    """
    lines = 0
    with Path(path).open("w", encoding="utf-8") as file:
        for tokens in map(tokenizer.encode, texts):
            if tokens:
                file.write(" ".join(map(tokenizer.piece, tokens)) + "\n")
                lines += 1
    return lines
