"""A recording or a microphone played into a stream, cut into segments so that nothing grows with its length."""

import time
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from sumix_stream.search.hypothesis import Hypothesis, Word
from sumix_stream.search.word_starts import last_start
from sumix_stream.search.words import words_of
from sumix_stream.streaming.endpointing import Endpointing, EndpointRule
from sumix_stream.streaming.stream import Stream, StreamingRecognizer
from sumix_stream.tokenizer import Tokenizer

# Of recordings: at a pause after 20 s, and after a minute between any two words. No token of a greedy search depends on
# it; a beam search decides there.
CUTS = Endpointing((EndpointRule(True, 1.2, 20.0), EndpointRule(False, 0.0, 60.0)))


class Gathered:
    """The segments of a stream put together."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.timestamps: list[float] = []
        self.confidence: list[float] = []

    def add(self, found: Hypothesis, offset: float = 0.0) -> None:
        """One more; `offset`: seconds by which its times are late."""
        self.tokens += found.tokens
        self.timestamps += [time + offset for time in found.timestamps]
        self.confidence += found.confidence

    def hypothesis(self, tokenizer: Tokenizer) -> Hypothesis:
        return Hypothesis(tokenizer.decode(self.tokens), self.tokens, self.timestamps, self.confidence)


class SoFar(NamedTuple):
    """The words of a segment: those that can change no more, and those that may."""

    settled: list[Word]
    open: list[Word]


def words_so_far(recognizer: StreamingRecognizer, stream: Stream) -> SoFar:
    """A word is settled when the next one has begun, and in a beam search when no hypothesis has another."""
    found, tokenizer = recognizer.result(stream), recognizer.tokenizer
    seconds = recognizer.timebase.encoder_frame_seconds
    words = words_of(found, tokenizer, seconds)
    sure = last_start([tokenizer.piece(token) for token in found.tokens[: stream.num_stable]])
    settled = len(words_of(Hypothesis("", *(part[:sure] for part in found[1:])), tokenizer, seconds))
    return SoFar(words[:settled], words[settled:])


def packets(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Blocks (n,) of any size as blocks of `size` samples, the last shorter."""
    held = np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block]) if len(held) else block
        whole = len(held) // size * size
        for start in range(0, whole, size):
            yield held[start : start + size]
        held = held[whole:]
    if len(held):
        yield held


class Heard(NamedTuple):
    """What a chunk changed."""

    seconds: float  # of audio so far
    is_final: bool  # the segment is over; then the stream begins the next


def play(
    streaming: StreamingRecognizer,
    stream: Stream,
    blocks: Iterable[np.ndarray],
    sample_rate: int,
    push_seconds: float = 0.1,
    realtime: bool = False,
) -> Iterator[Heard]:
    """Feed blocks (n,) in packets; yield after each chunk, at each end of a segment and at the end.

    Args:
        push_seconds: size of a packet, above 0.
        realtime: wait until each packet would have been spoken; otherwise feed as fast as they are decoded.
    """
    packet = int(push_seconds * sample_rate)
    if packet < 1:
        raise ValueError(f"a packet must hold at least one sample of {sample_rate} Hz, got {push_seconds} s")
    began, heard = time.monotonic(), 0
    for samples in packets(blocks, packet):
        heard += len(samples)
        if realtime:
            time.sleep(max(0.0, began + heard / sample_rate - time.monotonic()))
        streaming.accept_waveform(stream, sample_rate, samples)
        yield from _decoded(streaming, stream, heard / sample_rate)
    streaming.input_finished(stream)
    yield from _decoded(streaming, stream, heard / sample_rate)
    yield Heard(heard / sample_rate, True)


def _decoded(streaming: StreamingRecognizer, stream: Stream, seconds: float) -> Iterator[Heard]:
    while streaming.decode([stream]):
        ended = streaming.is_endpoint(stream)
        yield Heard(seconds, ended)
        if ended:
            streaming.reset(stream)


def play_words(
    streaming: StreamingRecognizer,
    blocks: Iterable[np.ndarray],
    sample_rate: int,
    push_seconds: float,
    realtime: bool,
    gathered: Gathered,
) -> Iterator[tuple[float, list[Word]]]:
    """`play`, but with the words from the first that is new or has changed since the last time.

    Args:
        gathered: gets all segments, by the second pass where there is one.
    """
    stream, shown, before = streaming.create_stream(), [], []
    seconds = streaming.timebase.encoder_frame_seconds
    for heard in play(streaming, stream, blocks, sample_rate, push_seconds, realtime):
        found = streaming.result(stream)
        if found.tokens != before:
            words = words_of(found, streaming.tokenizer, seconds, continued=bool(gathered.tokens))
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(shown, words, strict=False)))
            if words[same:]:
                yield heard.seconds, words[same:]
            shown, before = words, found.tokens
        if heard.is_final:
            gathered.add(found if streaming.second_pass is None else streaming.final(stream).hypothesis)
            shown = shown[len(words_of(found, streaming.tokenizer, seconds)) :]
            before = before[len(found.tokens) :]
