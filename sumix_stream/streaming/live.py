"""A recording played into a stream as if it were spoken now."""

import time
from collections.abc import Iterator
from itertools import takewhile

import numpy as np

from sumix_stream.search.hypothesis import Hypothesis, Word
from sumix_stream.streaming.recognizer import Recognizer
from sumix_stream.streaming.stream import Stream


def play(
    stream: Stream, samples: np.ndarray, sample_rate: int, push_seconds: float = 0.1, realtime: bool = False
) -> Iterator[tuple[float, Hypothesis]]:
    """Feed samples (S,) in packets; yield (seconds heard, hypothesis) whenever tokens were added, and at the end.

    Args:
        push_seconds: size of a packet, above 0.
        realtime: wait until each packet would have been spoken; otherwise feed as fast as they are decoded.
    """
    packet = int(push_seconds * sample_rate)
    if packet < 1:
        raise ValueError(f"a packet must hold at least one sample of {sample_rate} Hz, got {push_seconds} s")
    began = time.monotonic()
    for start in range(0, len(samples), packet):
        end = min(start + packet, len(samples))
        if realtime:
            time.sleep(max(0.0, began + end / sample_rate - time.monotonic()))
        hypothesis = stream.feed(sample_rate, samples[start:end])
        if hypothesis is not None:
            yield end / sample_rate, hypothesis
    yield len(samples) / sample_rate, stream.finish()


def play_words(
    recognizer: Recognizer, stream: Stream, samples: np.ndarray, sample_rate: int, push_seconds: float, realtime: bool
) -> Iterator[tuple[float, list[Word]]]:
    """`play`, but with the words from the first that is new or has changed since the last time."""
    shown: list[Word] = []
    for heard, hypothesis in play(stream, samples, sample_rate, push_seconds, realtime):
        words = recognizer.words(hypothesis)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(shown, words, strict=False)))
        if words[same:]:
            yield heard, words[same:]
        shown = words
