"""Hotwords: phrases a stream is likely to hear, boosted token by token while they are spoken.

An Aho-Corasick matcher (Communications of the ACM 18(6), 1975) over the phrases' tokens. A phrase of n tokens and
score s earns s * d / n when its first d tokens have been emitted, for good when it is complete and until then on
approval: when the next token breaks the match, the unearned part is taken back, and a suffix that begins another phrase
keeps its own. Every complete occurrence earns its phrase's score: NEW YORK CITY earns that of NEW YORK too, if both are
given. Results are ranked without what is on approval.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from sumix_stream.search.backoff import BackoffAutomaton
from sumix_stream.tokenizer import Tokenizer

DEFAULT_SCORE = 1.5  # nats for each token of a phrase


@dataclass(frozen=True)
class Hotwords:
    """Token sequences with their scores, for one or many streams.

    Args:
        sequences: (tokens, score of the whole sequence in nats) pairs, no sequence twice or empty.
        vocab_size: of the model.
    """

    sequences: tuple[tuple[tuple[int, ...], float], ...]
    vocab_size: int

    @classmethod
    def compile(
        cls, phrases: Mapping[str, float | None] | Iterable[str], tokenizer: Tokenizer, score: float = DEFAULT_SCORE
    ) -> Hotwords:
        """From phrases as the model writes them (case too).

        Args:
            phrases: texts, or texts with their own scores in nats for each token (None = `score`).
            score: of phrases without their own; below 0 makes them rarer.
        Raises:
            ValueError: no phrase, an empty one, a score that is not finite, or characters the tokenizer cannot write.
        """
        if not isinstance(phrases, Mapping):
            phrases = dict.fromkeys([phrases] if isinstance(phrases, str) else phrases)
        if not phrases:
            raise ValueError("hotwords need at least one phrase; leave them out to search without")
        scores: dict[tuple[int, ...], float] = {}
        for text, own in phrases.items():
            per_token = score if own is None else own
            if not math.isfinite(per_token):
                raise ValueError(f"the score of hotword {text!r} must be a finite number, got {per_token!r}")
            tokens = tuple(tokenizer.encode(text))
            if not tokens:
                raise ValueError(f"hotword {text!r} has no text")
            if tokenizer.unk_id in tokens:
                unknown = " ".join(sorted(tokenizer.unknown_characters(text)))
                raise ValueError(
                    f"hotword {text!r} has {unknown}, which the model cannot write; spell it as transcripts do"
                )
            scores[tokens] = per_token * len(tokens)
        return cls(tuple(scores.items()), tokenizer.vocab_size)

    @cached_property
    def matcher(self) -> BackoffAutomaton:
        return _match(self.sequences, self.vocab_size)


def parse_hotwords(lines: Iterable[str], source: str = "hotwords") -> dict[str, float | None]:
    """Phrases of a hotword file: one a line, its own score after a colon (`NEW YORK :2.0`); # begins a comment.

    Raises ValueError naming the line for a score that is no number.
    """
    phrases: dict[str, float | None] = {}
    for number, line in enumerate(lines, 1):
        text, _, score = line.partition("#")[0].partition(" :")
        if not text.strip():
            continue
        try:
            phrases[text.strip()] = float(score) if score.strip() else None
        except ValueError:
            message = f"{source}:{number}: the score of {text.strip()!r} must be a number, got {score.strip()!r}"
            raise ValueError(message) from None
    return phrases


def _match(sequences: Iterable[tuple[tuple[int, ...], float]], vocab_size: int) -> BackoffAutomaton:
    """The automaton whose weights are what each token earns or loses."""
    children: list[dict[int, int]] = [{}]
    approval = [0.0]  # of each trie node: what the phrases that go on from here have earned on approval
    complete = [0.0]  # what sequences that end here earn
    for tokens, score in sequences:
        node = 0
        for depth, token in enumerate(tokens, 1):
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
                approval.append(-math.inf)
                complete.append(0.0)
            node = children[node][token]
            if depth < len(tokens):
                approval[node] = max(approval[node], score * depth / len(tokens))
        complete[node] += score
    approval = [0.0 if value == -math.inf else value for value in approval]
    fallback = [0] * len(children)
    queue = deque(children[0].values())
    while queue:  # breadth first: a fallback is shorter, so it is complete before it is needed
        node = queue.popleft()
        complete[node] += complete[fallback[node]]
        for token, child in children[node].items():
            suffix = fallback[node]
            while suffix and token not in children[suffix]:
                suffix = fallback[suffix]
            fallback[child] = children[suffix].get(token, 0)
            queue.append(child)
    arcs = {
        (node, token): (approval[child] - approval[node] + complete[child], child)
        for node, by_token in enumerate(children)
        for token, child in by_token.items()
    }
    backoffs = [approval[below] - approval[node] for node, below in enumerate(fallback)]
    return BackoffAutomaton.build(vocab_size, fallback, backoffs, arcs)
