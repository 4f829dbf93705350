"""Captions: words put into lines that can be read while they are said.

A caption ends at a pause, at the end of a sentence where one is marked, and before it is too long for its lines or for
the eye. Widths are columns: a Chinese or Japanese character has two, a mark upon another none.

The server's page has the same rule in JavaScript (serve/page/captions.js). So that no last bit of a float decides,
spans of time are compared in whole microseconds, and what a cut costs is a whole number of millionths of a caption.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from sumix_stream.search.hypothesis import Word, join_words

_SENTENCE, _CLAUSE = ".!?…。！？．｡؟।။។", ",;:，、；：､،"
_LINGER = 0.3  # seconds that a caption stays after its last word
_CAPTION_COST = 1_000_000  # of one more caption
_SHORTEST = 1.0  # seconds that a caption stays where the next one leaves it so much


@dataclass(frozen=True)
class CaptionStyle:
    """How captions look: columns of a line, lines, seconds that a caption may last, and seconds without a word that
    always end one. Raises ValueError for what leaves no room."""

    columns: int = 42
    lines: int = 2
    max_seconds: float = 6.0
    pause: float = 1.0

    def __post_init__(self) -> None:
        if self.columns < 2 or self.lines < 1:
            raise ValueError(f"a caption needs at least 1 line of 2 columns, got {self.lines} of {self.columns}")
        for name in ("max_seconds", "pause"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} of captions must be above 0 s, got {getattr(self, name)}")


class Caption(NamedTuple):
    """Seconds from the first sample, and the lines to be shown."""

    start: float
    end: float
    lines: tuple[str, ...]


def text_width(text: str) -> int:
    """Columns that a text takes."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def captions_of(words: Sequence[Word], style: CaptionStyle = CaptionStyle()) -> list[Caption]:
    """The captions of a recording's words, in order, none overlapping the next."""
    found: list[list[Word]] = []
    for spoken in paragraphs(words, style.pause):
        found += _divide(spoken, style)
    captions = []
    for n, group in enumerate(found):
        following = found[n + 1][0].start if n + 1 < len(found) else math.inf
        last = _end(group[-1])
        end = max(last, min(max(last + _LINGER, group[0].start + _SHORTEST), following))
        captions.append(Caption(group[0].start, min(end, max(following, group[0].start)), _lines(group, style)))
    return captions


def paragraphs(words: Sequence[Word], pause: float) -> list[list[Word]]:
    """Words cut where there is none for `pause` seconds."""
    found: list[list[Word]] = []
    for word in words:
        if not found or _span(_end(found[-1][-1]), word.start) >= pause:
            found.append([])
        found[-1].append(word)
    return found


def _end(word: Word) -> float:
    return word.start if word.end is None else max(word.start, word.end)


def _span(start: float, end: float) -> float:
    return round(end - start, 6)


def _divide(words: list[Word], style: CaptionStyle) -> list[list[Word]]:
    """Captions of the least cost: few, and cut where speech is. Shortest paths over the places between words."""
    best, back = [0] + [math.inf] * len(words), [0] * (len(words) + 1)
    for begin in range(len(words)):
        for end in range(begin + 1, len(words) + 1):
            if end > begin + 1 and not _fits(words[begin:end], style):
                break
            cost = best[begin] + _CAPTION_COST + _cut_cost(words, end)
            if cost < best[end]:
                best[end], back[end] = cost, begin
    found, end = [], len(words)
    while end:
        found.append(words[back[end] : end])
        end = back[end]
    return found[::-1]


def _fits(words: list[Word], style: CaptionStyle) -> bool:
    if _span(words[0].start, _end(words[-1])) > style.max_seconds:
        return False
    return _break_lines(words, style) is not None


def _cut_cost(words: list[Word], place: int) -> int:
    """Of ending a caption before the word at `place`: nothing at the end of a sentence or at a long gap."""
    if place == len(words):
        return 0
    last = words[place - 1].text[-1:]
    gap = max(0.0, _span(_end(words[place - 1]), words[place].start))
    by_sign = 0.0 if last in _SENTENCE else 0.4 if last in _CLAUSE else 1.0
    return round(_CAPTION_COST * by_sign * math.exp(-2.0 * gap))


def _lines(words: list[Word], style: CaptionStyle) -> tuple[str, ...]:
    broken = _break_lines(words, style) or [words]  # a word alone that is wider than a line
    return tuple(join_words([line[0]._replace(space=True), *line[1:]]) for line in broken)


def _break_lines(words: list[Word], style: CaptionStyle) -> list[list[Word]] | None:
    """The fewest lines, of widths as equal as can be; None where they are too many or too wide."""
    widths = [text_width(word.text) + word.space for word in words]
    total = sum(widths) - words[0].space
    if total <= style.columns:
        return [words]
    for count in range(2, style.lines + 1):
        if (found := _balanced(words, widths, count, style.columns)) is not None:
            return found
    return None


def _balanced(words: list[Word], widths: list[int], count: int, columns: int) -> list[list[Word]] | None:
    """`count` lines with the least sum of squared widths; None where they do not fit."""
    best = {0: (0, [0])}  # words so far -> cost, places of the breaks
    for _ in range(count):
        longer: dict[int, tuple[int, list[int]]] = {}
        for begin, (cost, places) in best.items():
            width = -int(words[begin].space) if begin < len(words) else 0
            for end in range(begin + 1, len(words) + 1):
                width += widths[end - 1]
                if width > columns:
                    break
                total = cost + width * width
                if end not in longer or total < longer[end][0]:
                    longer[end] = total, [*places, end]
        best = longer
    if len(words) not in best:
        return None
    places = best[len(words)][1]
    return [words[a:b] for a, b in pairwise(places)]
