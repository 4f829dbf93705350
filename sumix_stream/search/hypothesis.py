"""What recognition returns."""

from collections.abc import Iterable
from typing import NamedTuple


class Hypothesis(NamedTuple):
    """Recognised text and the tokens it is made of; the three lists have one element for each token.

    text: tokens joined to words by the tokenizer.
    tokens: ids.
    timestamps: seconds from the first sample to the start of the encoder frame that emitted the token.
    confidence: probability the model gave the token at that frame, in (0, 1].
    """

    text: str
    tokens: list[int]
    timestamps: list[float]
    confidence: list[float]


class Word(NamedTuple):
    """A word and when it was said, in seconds from the first sample; see words.py for what that means.

    start: of the encoder frame that emitted its first token.
    end: of the encoder frame that emitted its last token.
    confidence: the least of its tokens'.
    space: whether the text has a space before it, as the first word would have: not between words of scripts that
        write none.
    """

    text: str
    start: float
    end: float | None = None
    confidence: float | None = None
    space: bool = True


def join_words(words: Iterable[Word]) -> str:
    """The text of words."""
    return "".join(f" {word.text}" if word.space else word.text for word in words).removeprefix(" ")
