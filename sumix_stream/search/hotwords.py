"""Hotwords: phrases a stream is likely to hear, boosted token by token while they are spoken.

An Aho-Corasick matcher (Communications of the ACM 18(6), 1975) over the phrases' tokens. A phrase of n tokens and
score s earns s * d / n when its first d tokens have been emitted, for good when it is complete and until then on
approval: when the next token breaks the match, the unearned part is taken back, and a suffix that begins another phrase
keeps its own. Every complete occurrence earns its phrase's score: NEW YORK CITY earns that of NEW YORK too, if both are
given. Results are ranked without what is on approval.
"""

from __future__ import annotations

import codecs
import logging
import math
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from sumix_stream.search.backoff import BackoffAutomaton
from sumix_stream.tokenizer import Tokenizer, clean_text, name_characters

DEFAULT_SCORE = 1.5  # nats for each token of a phrase
_SHOWN = 5  # faults of a file that are named
_APOSTROPHES = dict.fromkeys(map(ord, "\u2019\u2018\u02bc`\u00b4"), "'")
log = logging.getLogger(__name__)


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
            if fault := unwritable(text, tokenizer):
                raise ValueError(f"hotword {fault}; spell it as transcripts do")
            scores[tokens] = per_token * len(tokens)
        return cls(tuple(scores.items()), tokenizer.vocab_size)

    @cached_property
    def matcher(self) -> BackoffAutomaton:
        return _match(self.sequences, self.vocab_size)


class Phrase(NamedTuple):
    """A line of a hotword file."""

    line: int
    text: str
    score: float | None  # nats for each token; None = the default


def read_hotwords(
    path: str | os.PathLike, tokenizer: Tokenizer, score: float = DEFAULT_SCORE, *, skip_unknown: bool = False
) -> Hotwords:
    """The phrases of a file: see `parse_lines`. It may be in UTF-8 or, with a byte order mark, in UTF-16.

    Args:
        skip_unknown: leave out phrases that the model cannot write, and tell the log, instead of an error.
    Raises:
        ValueError: naming the line, for a phrase that the model cannot write or a score that is no finite number.
    """
    phrases: dict[str, Phrase] = {}
    unknown: list[str] = []
    for phrase in parse_lines(_text_of(Path(path)).splitlines(), str(path)):
        before = phrases.get(phrase.text)
        if before is not None and before.score != phrase.score:
            log.warning(
                "%s:%d: %r stood in line %d with another score; the last holds", path, phrase.line, *before[1::-1]
            )
        if fault := unwritable(phrase.text, tokenizer):
            unknown.append(f"line {phrase.line}: {fault}")
        else:
            phrases[phrase.text] = phrase
    if unknown:
        shown = "; ".join(unknown[:_SHOWN]) + (f"; and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else "")
        some = (
            f"{path}: {len(unknown)} of {len(unknown) + len(phrases)} hotwords cannot be written by the model: {shown}"
        )
        if not skip_unknown or not phrases:
            raise ValueError(f"{some}. Spell them as transcripts do, or go on without them: --skip-unknown")
        log.warning("%s; left out", some)
    return Hotwords.compile({text: phrase.score for text, phrase in phrases.items()}, tokenizer, score)


def unwritable(text: str, tokenizer: Tokenizer) -> str | None:
    """Why a model cannot write a phrase, and how it would write it where only case or apostrophes differ; None = it
    can."""
    if tokenizer.unk_id not in tokenizer.encode(text):
        return None
    unknown = name_characters(tokenizer.unknown_characters(text))
    plain = text.translate(_APOSTROPHES)
    for spelling in (plain, plain.upper(), plain.lower()):
        if tokenizer.unk_id not in tokenizer.encode(spelling):
            return f"{text!r} has {unknown}, which the model cannot write; it writes {spelling!r}"
    scored = "; a score stands after a space and a colon" if re.search(r":[\d.]+$", text) else ""
    return f"{text!r} has {unknown}, which the model cannot write{scored}"


def parse_hotwords(lines: Iterable[str], source: str = "hotwords") -> dict[str, float | None]:
    """Phrases of a hotword file with their own scores or None: `parse_lines`, the last of equal ones."""
    return {phrase.text: phrase.score for phrase in parse_lines(lines, source)}


def parse_lines(lines: Iterable[str], source: str = "hotwords") -> Iterator[Phrase]:
    """Phrases one a line, with a score of their own after white space and a colon at the end (`NEW YORK :2.0`).

    A line that begins with # is a comment, and so is what follows a # that stands alone between spaces; `C#` is a word.
    Raises ValueError naming the line for a score that is no finite number.
    """
    for number, line in enumerate(lines, 1):
        line = re.sub(r"^\s*#.*|\s#\s.*", "", line.lstrip("\ufeff"))
        found = re.fullmatch(r"(.*?)(?:\s:\s*(\S*)\s*)?", line.rstrip())
        text, score = clean_text(found[1]), found[2]
        if not text:
            continue
        try:
            value = float(score) if score else None
        except ValueError:
            value = math.nan
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{source}:{number}: the score of {text!r} must be a number, got {score!r}")
        yield Phrase(number, text, value)


def _text_of(path: Path) -> str:
    data = path.read_bytes()
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: not UTF-8 (byte {data[error.start]:#04x}): save it in UTF-8") from None


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
