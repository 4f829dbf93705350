"""The words of one segment, chunk after chunk: what a chunk adds is worked out, and all before it is kept.

A segment may hold minutes, and every chunk of it is reported.
"""

from __future__ import annotations

from sumix_stream.search.greedy import Emissions
from sumix_stream.search.hypothesis import Hypothesis, Word
from sumix_stream.search.word_starts import last_start, word_starts
from sumix_stream.search.words import words_of
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import Tokenizer

_LONGEST_CHARACTER = 4  # bytes, of pieces that are bytes


class Transcript:
    """Text and words of a segment, told its tokens so far again and again.

    A word can change until the next one begins, so the last one is always made anew; so is everything when any of the
    tokens before it has changed, as happens in a beam search.
    """

    def __init__(self, tokenizer: Tokenizer, timebase: Timebase) -> None:
        self._tokenizer, self._timebase = tokenizer, timebase
        self._forget()

    def read(self, found: Emissions) -> tuple[str, list[Word]]:
        """Text and words."""
        size = len(self._kept.tokens)
        if size and not self._still_holds(found):
            self._forget()
            size = 0
        rest = Emissions(*(part[size:] for part in found))
        words = self._words_of(rest)
        text, all_words = self._joined(rest.tokens), self._words + words
        last = last_start(self._pieces(rest.tokens))
        if last:
            unsure = 1 if self._tokenizer.decode(rest.tokens[last:]).strip() else 0
            more = rest.tokens[:last]
            self._text = self._joined(more)
            self._end = more if self._tokenizer.decode(more).strip() else self._end + more
            self._words += words[: len(words) - unsure]
            self._word = more[last_start(self._pieces(more)) :]
            for kept, part in zip(self._kept, rest, strict=True):
                kept.extend(part[:last])
            self._following = rest.frames[last]
        return text, all_words

    def num_complete(self, tokens: list[int]) -> int:
        """Words of tokens that are complete because the next has begun."""
        begun = sum(1 for n, token in enumerate(tokens) if not n or self._tokenizer.piece(token).startswith("▁"))
        return max(0, begun - 1)

    def _still_holds(self, found: Emissions) -> bool:
        """Whether what is kept is what it was, and a word begins after it when it did: the last word ends by then."""
        size = len(self._kept.tokens)
        return (
            len(found.tokens) > size
            and found.frames[size] == self._following
            and all(kept == given[:size] for kept, given in zip(self._kept, found, strict=True))
            and word_starts(self._pieces(self._word + found.tokens[size : size + _LONGEST_CHARACTER]))[len(self._word)]
        )

    def _forget(self) -> None:
        self._kept = Emissions([], [], [])  # tokens of the words that are kept
        self._text, self._words = "", []  # of these
        self._following = 0  # frame of the token after them
        self._end: list[int] = []  # the last of these tokens, with text if there is any
        self._word: list[int] = []  # those of the last word

    def _words_of(self, found: Emissions) -> list:
        seconds = [self._timebase.encoder_frame_time(frame) for frame in found.frames]
        hypothesis = Hypothesis("", found.tokens, seconds, found.confidence)
        seconds = self._timebase.encoder_frame_seconds
        return words_of(hypothesis, self._tokenizer, seconds, continued=bool(self._words))

    def _pieces(self, tokens: list[int]) -> list[str]:
        return [self._tokenizer.piece(token) for token in tokens]

    def _joined(self, tokens: list[int]) -> str:
        """The text kept and that of tokens after it, decoded with those before: spaces are lost where a text begins."""
        return self._text + self._tokenizer.decode(self._end + tokens)[len(self._tokenizer.decode(self._end)) :]
