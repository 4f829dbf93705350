"""Two texts one above the other, with their differences marked: by colour on a terminal, by brackets elsewhere."""

import os
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple, TextIO

from sumix_stream.streaming.captions import text_width

GAP, _CIRCLE = "*", "\u25cc"


class Marks(NamedTuple):
    """What is put around a wrong word, and how wide it shows."""

    before: str
    after: str
    width: int


BRACKETS = Marks("[", "]", 2)
COLOUR = Marks("\x1b[1;31m", "\x1b[0m", 0)


def marks_for(file: TextIO) -> Marks:
    """Colour where a person sees it, and has not set NO_COLOR."""
    return COLOUR if file.isatty() and not os.environ.get("NO_COLOR") else BRACKETS


def columns(pairs: Iterable[tuple[str | None, str | None]], marks: Marks, between: str) -> tuple[str, str]:
    """Reference and hypothesis, each pair in a column; gaps are stars."""
    lines: tuple[list[str], list[str]] = [], []
    for pair in pairs:
        wrong = pair[0] != pair[1]
        wide = max(text_width(side or "") for side in pair)
        for line, side in zip(lines, pair, strict=True):
            shown = GAP * max(1, wide) if side is None else side
            if wrong and unicodedata.category(shown[0])[0] == "M":
                shown = _CIRCLE + shown  # a mark stands upon something
            padding = " " * (wide - text_width(shown))
            line.append(f"{marks.before}{shown}{marks.after}{padding}" if wrong else f"{shown}{padding}")
    reference, hypothesis = (between.join(line).rstrip() for line in lines)
    return reference, hypothesis
