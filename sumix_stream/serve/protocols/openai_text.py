"""Text that is only appended to, out of results that may still change."""

from __future__ import annotations

from collections.abc import Iterable

from sumix_stream.search.hypothesis import Word, join_words
from sumix_stream.search.word_starts import SPACE
from sumix_stream.serve.events import Final, Partial


class GrowingText:
    """What was sent of one or several segments; each result gives what may be appended.

    Of a `Partial` only the words that nothing changes any more are sent. A second pass may find other words than those
    that were streamed: what was sent stays the streaming text then.
    """

    def __init__(self) -> None:
        self.text = ""
        self._of_segment = ""

    def partial(self, found: Partial) -> str:
        return self._grow(join_words(found.words[: found.stable]), found.spaced)

    def final(self, found: Final) -> str:
        text = found.text if found.streaming_text is None else found.streaming_text
        delta = self._grow(text, is_spaced(found))
        self._of_segment = ""
        return delta

    def _grow(self, text: str, spaced: bool) -> str:
        if not text.startswith(self._of_segment):
            return ""
        delta = text[len(self._of_segment) :]
        if delta and spaced and self.text and not self._of_segment:
            delta = " " + delta
        self.text += delta
        self._of_segment = text
        return delta


def is_spaced(found: Final) -> bool:
    """Whether a space belongs between a segment and the one before it."""
    return not found.tokens or found.tokens[0].startswith(SPACE)


def text_of(finals: Iterable[Final]) -> str:
    """The text of segments, one after the other."""
    whole = ""
    for found in finals:
        space = " " if whole and found.text and is_spaced(found) else ""
        whole += space + found.text
    return whole


def words_of(finals: Iterable[Final]) -> list[Word]:
    """The words of segments."""
    words: list[Word] = []
    for found in finals:
        own = list(found.words)
        if own and words and not is_spaced(found):
            own[0] = own[0]._replace(space=False)
        words += own
    return words
