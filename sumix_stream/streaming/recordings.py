"""A recording of any length: whole where it fits, else as one stream, or under full context in parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

from sumix_stream.audio import StreamResampler
from sumix_stream.context import ChunkContext
from sumix_stream.search.hypothesis import Hypothesis
from sumix_stream.search.options import GREEDY, SearchOptions
from sumix_stream.streaming.live import CUTS, Gathered, play
from sumix_stream.streaming.offline import Alternative, transcribe_batch, transcribe_nbest
from sumix_stream.streaming.recognizer import Recognizer

LONGEST_PART = 300.0  # seconds recognised at once
_SEARCHED = 0.4  # share of a part, at its end, in which a quiet place is sought
_QUIET_SECONDS, _STEP_SECONDS = 0.3, 0.02  # of such a place, and how finely it is sought


class Recognised(NamedTuple):
    """alternatives: best first, of a beam search over a whole recording; none otherwise."""

    hypothesis: Hypothesis
    seconds: float  # of audio
    num_parts: int  # recognised apart from each other
    alternatives: list[Alternative]


def recognise(
    recognizer: Recognizer,
    blocks: Iterable[np.ndarray],
    sample_rate: int,
    context: ChunkContext,
    search: SearchOptions = GREEDY,
    longest: float = LONGEST_PART,
) -> Recognised:
    """Recognise samples (n,) that come in blocks; times count from the first.

    What is longer than `longest` seconds is one stream where the context has chunks. Full context is then that of
    parts, cut at the quietest places. Memory is that of `longest`, however long the recording.

    Raises ValueError for `longest` not above 0, and for search.nbest above 1 with more audio than that.
    """
    if not longest > 0:
        raise ValueError(f"the longest part must be above 0 s, got {longest}")
    rate = recognizer.timebase.sample_rate
    coming, held, num_held = resampled(blocks, sample_rate, rate), [], 0
    for block in coming:
        held.append(block)
        num_held += len(block)
        if num_held > longest * rate:
            break
    else:
        return _whole(recognizer, np.concatenate([np.zeros(0, np.float32), *held]), context, search)
    if search.nbest > 1:
        raise ValueError(f"several results are given for at most {longest:g} s of audio at once: leave --nbest out")
    everything = chain(held, coming)
    if context.chunk_size is not None:
        return _streamed(recognizer, everything, rate, context, search)
    return _in_parts(recognizer, everything, rate, context, search, longest)


def resampled(blocks: Iterable[np.ndarray], sample_rate: int, new_rate: int) -> Iterator[np.ndarray]:
    """Blocks at another rate, the same samples as of the whole."""
    resampler = StreamResampler(sample_rate, new_rate)
    for block in blocks:
        yield resampler.accept(block)
    yield resampler.finish()


def _whole(recognizer: Recognizer, samples: np.ndarray, context: ChunkContext, search: SearchOptions) -> Recognised:
    runtime, tokenizer = recognizer.runtime(context), recognizer.tokenizer
    seconds = len(samples) / recognizer.timebase.sample_rate
    if search.method == "greedy":
        return Recognised(transcribe_batch(runtime, tokenizer, [samples], search)[0], seconds, 1, [])
    (found,) = transcribe_nbest(runtime, tokenizer, [samples], search)
    return Recognised(found[0].hypothesis, seconds, 1, found)


def _streamed(
    recognizer: Recognizer, blocks: Iterable[np.ndarray], rate: int, context: ChunkContext, search: SearchOptions
) -> Recognised:
    streaming, gathered = recognizer.streaming(context, search=search, endpointing=CUTS), Gathered()
    stream, seconds = streaming.create_stream(), 0.0
    for heard in play(streaming, stream, blocks, rate, push_seconds=1.0):
        seconds = heard.seconds
        if heard.is_final:
            gathered.add(streaming.result(stream))
    return Recognised(gathered.hypothesis(recognizer.tokenizer), seconds, 1, [])


def _in_parts(
    recognizer: Recognizer,
    blocks: Iterable[np.ndarray],
    rate: int,
    context: ChunkContext,
    search: SearchOptions,
    longest: float,
) -> Recognised:
    gathered, num_samples, num_parts = Gathered(), 0, 0
    for part in parts(blocks, rate, longest):
        found = transcribe_batch(recognizer.runtime(context), recognizer.tokenizer, [part], search)[0]
        gathered.add(found, num_samples / rate)
        num_samples += len(part)
        num_parts += 1
    return Recognised(gathered.hypothesis(recognizer.tokenizer), num_samples / rate, num_parts, [])


def parts(blocks: Iterable[np.ndarray], rate: int, longest: float) -> Iterator[np.ndarray]:
    """Blocks (n,) as parts of at most `longest` seconds, cut at the quietest place near the end of each."""
    most = max(1, int(longest * rate))
    waiting, num_waiting = [], 0
    for block in blocks:
        waiting.append(block)
        num_waiting += len(block)
        while num_waiting > most:
            held = np.concatenate(waiting)
            cut = quietest(held[:most], int((1 - _SEARCHED) * most), rate)
            yield held[:cut]
            waiting, num_waiting = [held[cut:]], num_waiting - cut
    if num_waiting:
        yield np.concatenate(waiting)


def quietest(samples: np.ndarray, first: int, rate: int) -> int:
    """Middle of the quietest 0.3 s of samples (n,) from `first` on; the end where there are fewer."""
    step = max(1, round(_STEP_SECONDS * rate))
    width = round(_QUIET_SECONDS / _STEP_SECONDS)
    steps = (len(samples) - first) // step
    if steps < width:
        return len(samples)
    power = np.square(samples[first : first + steps * step].reshape(steps, step)).sum(1, dtype=np.float64)
    sums = np.convolve(power, np.ones(width), "valid")
    return first + (int(sums.argmin()) + width // 2) * step
