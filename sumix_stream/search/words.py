"""Words with times and confidences, from tokens with theirs.

A transducer emits a token at one encoder frame, usually some time after it was said: how long depends on the model
and its context, and hardly on the word. So a word lies between the frames of its first and last token, each moved by
a constant that `estimate_delay` learns from words whose times are known (two constants: a word of one token is emitted
at one frame).

What a word is in scripts that write no spaces: see word_starts.py.

A word's confidence is the least of its tokens': it is wrong as soon as one of them is, and a product would call every
long word doubtful. An utterance's is the geometric mean of its tokens'.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sumix_stream.search.hypothesis import Hypothesis, Word
from sumix_stream.search.word_starts import SPACE, word_starts
from sumix_stream.tokenizer import Tokenizer

GAP = " "  # marks the empty side of a deletion or an insertion; no word made by str.split can be a space


class Delay(NamedTuple):
    """Seconds by which words seem to begin and end later than they do."""

    start: float = 0.0
    end: float = 0.0


NO_DELAY = Delay()


class TokenTime(NamedTuple):
    """Seconds from the first sample."""

    start: float
    end: float


def token_times(
    hypothesis: Hypothesis, tokenizer: Tokenizer, frame_seconds: float, delay: Delay = NO_DELAY
) -> list[TokenTime]:
    """When each token was said: until the next begins, or at the end of a word until its own frame ends.

    Nothing begins before the first sample or before what precedes it, or ends before it begins or after the next word's
    beginning.

    Args:
        frame_seconds: an encoder frame (`model.timebase.encoder_frame_seconds`).
    """
    starts: list[float] = []
    for time in hypothesis.timestamps:
        starts.append(max(0.0, time - delay.start, *starts[-1:]))
    heads = word_starts([tokenizer.piece(token) for token in hypothesis.tokens])
    times = []
    for n, (start, time) in enumerate(zip(starts, hypothesis.timestamps, strict=True)):
        following = starts[n + 1] if n + 1 < len(starts) else math.inf
        within = n + 1 < len(starts) and not heads[n + 1]
        end = following if within else min(following, time + frame_seconds - delay.end)
        times.append(TokenTime(start, max(start, end)))
    return times


def words_of(
    hypothesis: Hypothesis,
    tokenizer: Tokenizer,
    frame_seconds: float,
    delay: Delay = NO_DELAY,
    *,
    continued: bool = False,
) -> list[Word]:
    """The words of a hypothesis; arguments as for `token_times`. Tokens without text make no word.

    Args:
        continued: words came before the first of these.
    """
    groups: list[list[int]] = []
    pieces = [tokenizer.piece(token) for token in hypothesis.tokens]
    for n, begins in enumerate(word_starts(pieces)):
        if begins:
            groups.append([])
        groups[-1].append(n)
    times = token_times(hypothesis, tokenizer, frame_seconds, delay)
    words = []
    for group in groups:
        text = tokenizer.decode([hypothesis.tokens[n] for n in group]).strip()
        if text:
            confidence = min(hypothesis.confidence[n] for n in group)
            space = not (words or continued) or pieces[group[0]].startswith(SPACE)
            words.append(Word(text, times[group[0]].start, times[group[-1]].end, confidence, space))
    return words


def utterance_confidence(hypothesis: Hypothesis) -> float | None:
    """Geometric mean of the tokens' confidences; None without a token."""
    if not hypothesis.confidence:
        return None
    smallest = math.ulp(0.0)  # a probability may round to 0, which has no logarithm
    return math.exp(statistics.fmean(math.log(max(p, smallest)) for p in hypothesis.confidence))


def estimate_delay(pairs: Iterable[tuple[Sequence[Word], Sequence[Word]]]) -> Delay:
    """Median delay of recognised words against given ones.

    Args:
        pairs: (recognised without a delay, given) words of utterances; both with start and end, in the same clock.
            Words are matched by a minimum edit alignment, and those that are not recognised count for nothing.
    Raises:
        ValueError: no word was recognised.
    """
    import kaldialign

    starts, ends = [], []
    for recognised, given in pairs:
        waiting, spoken = iter(recognised), iter(given)
        texts = [word.text for word in given], [word.text for word in recognised]
        for reference, hypothesis in kaldialign.align(*texts, GAP):
            truth = next(spoken) if reference != GAP else None
            found = next(waiting) if hypothesis != GAP else None
            if reference == hypothesis:
                starts.append(found.start - truth.start)
                ends.append(found.end - truth.end)
    if not starts:
        raise ValueError("none of the given words was recognised: there is nothing to learn a delay from")
    return Delay(statistics.median(starts), statistics.median(ends))
