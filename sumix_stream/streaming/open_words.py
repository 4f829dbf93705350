"""Where a segment may end that is cut by its length: between words, never within one.

A word is known to be complete when the next one begins, so the last word of a long segment goes to the next. Its tokens
were emitted already; what goes on is only which segment they are shown in.
"""

from bisect import bisect_left
from collections.abc import Sequence

from sumix_stream.search.greedy import Emissions
from sumix_stream.search.word_starts import SPACE, word_starts, writes_no_spaces

LONGEST_WORD = 5.0  # seconds; what goes on for longer without a beginning is no word


def last_boundary(pieces: Sequence[str], seconds: Sequence[float], now: float) -> int:
    """Number of tokens before the last word, which may still go on; all of them where none is open.

    Args:
        pieces: of the segment's tokens.
        seconds: when each was emitted.
        now: seconds decoded.
    """
    for n, begins in reversed(list(enumerate(word_starts(pieces)))):
        if begins and (n or pieces[0].startswith(SPACE) or any(map(writes_no_spaces, pieces[0][:1]))):
            return n if now - seconds[n] <= LONGEST_WORD else len(pieces)
    return len(pieces)


def split(found: Emissions, count: int) -> tuple[Emissions, Emissions]:
    """The first `count` tokens, and the rest."""
    return Emissions(*(part[:count] for part in found)), Emissions(*(part[count:] for part in found))


def since(found: Emissions, frame: int) -> Emissions:
    """The tokens from encoder frame `frame` on."""
    if not found.frames or found.frames[0] >= frame:
        return found
    return split(found, bisect_left(found.frames, frame))[1]


def joined(first: Emissions, second: Emissions) -> Emissions:
    return Emissions(*(a + b for a, b in zip(first, second, strict=True)))
