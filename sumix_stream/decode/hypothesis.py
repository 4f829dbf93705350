"""What recognition returns."""

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
    """A word, and the seconds from the first sample to the start of the encoder frame that emitted its first token."""

    text: str
    start: float
