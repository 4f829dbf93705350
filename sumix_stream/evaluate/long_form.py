"""One stream for hours: does anything grow, and do errors? Utterances are played one after another into one stream.

Reported by bins of the audio's time: word errors, computing time of a chunk, resident memory.
"""

import math
import os
import statistics
import sys
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sumix_stream.evaluate.scoring import CHARACTERS, WORDS, UtteranceErrors, WordErrors, align_units, units_of
from sumix_stream.search.word_starts import is_spaceless
from sumix_stream.streaming.recognizer import Recognizer
from sumix_stream.streaming.stream import StreamingRecognizer

if TYPE_CHECKING:
    from sumix_stream.data.manifests import Utterance


class Bin(NamedTuple):
    """A stretch of the stream: from `begin` to `end` seconds of audio."""

    begin: float
    end: float
    word_errors: WordErrors
    chunk_ms: float  # median computing time of a chunk
    rss_mb: float | None  # resident memory at its end, 10^6 bytes; None where the system does not tell


@dataclass(frozen=True)
class LongForm:
    """What one long stream did."""

    bins: tuple[Bin, ...]
    word_errors: WordErrors
    audio_seconds: float
    num_segments: int
    state_nbytes: int
    rss_slope_mb: float | None  # a minute of audio, by least squares, after the first minute
    chunk_ms: tuple[float, ...]  # medians of each minute
    aged_ms: tuple[float, float] | None  # a chunk of the stream of minute 1 and of the last, in turn

    def summary(self) -> str:
        unit = self.word_errors.unit
        rate = "CER" if unit == CHARACTERS else "WER"
        lines = [f"{'minutes':>12}  {rate:>7}  {unit:>{len(unit) + 1}}  {'chunk, ms':>9}  {'RSS, MB':>8}"]
        for part in self.bins:
            rss = "unknown" if part.rss_mb is None else f"{part.rss_mb:.1f}"
            minutes = f"{part.begin / 60:.0f} to {part.end / 60:.1f}"
            errors = part.word_errors.characters if unit == CHARACTERS else part.word_errors
            lines.append(
                f"{minutes:>12}  {errors.wer:7.2%}  {errors.num_words:{len(unit) + 1}d}  {part.chunk_ms:9.2f}  {rss:>8}"
            )
        slope = "unknown" if self.rss_slope_mb is None else f"{self.rss_slope_mb:+.4f} MB a minute"
        lines.append(
            f"{self.audio_seconds / 60:.1f} minutes in one stream, {self.num_segments} segments; "
            f"{self.word_errors.summary()}"
        )
        lines.append(f"RSS after the first minute {slope}; state {self.state_nbytes:,} bytes")
        if len(self.chunk_ms) > 2:
            second, last = self.chunk_ms[1], self.chunk_ms[-1]
            lines.append(
                f"a chunk takes {second:.2f} ms in minute 2, {last:.2f} in minute {len(self.chunk_ms)} "
                f"({last / second - 1:+.1%})"
            )
        if self.aged_ms is not None:
            (young, old), last = self.aged_ms, len(self.chunk_ms)
            lines.append(
                f"the stream of minute 1 and that of minute {last}, hearing the same chunk by chunk in turn: "
                f"{young:.3f} and {old:.3f} ms a chunk ({old / young - 1:+.1%})"
            )
        return "\n".join(lines)


def long_form(
    recognizer: Recognizer,
    streaming: StreamingRecognizer,
    utterances: Iterable["Utterance"],
    minutes: float,
    *,
    bin_minutes: float = 10.0,
    gap_seconds: float = 0.5,
) -> LongForm:
    """Play `utterances`, again from the first when they run out, until `minutes` of audio have been heard.

    Args:
        streaming: with endpointing, or the text of the whole stream is one segment.
        utterances: with samples at the model's rate; taken more than once.
        gap_seconds: silence after each utterance.
    Raises:
        ValueError: for no utterances, or minutes not above 0.
    """
    utterances = list(utterances)
    if not utterances:
        raise ValueError("no utterances to play")
    if not (minutes > 0 and bin_minutes > 0):
        raise ValueError(f"minutes and bin_minutes must be above 0, got {minutes} and {bin_minutes}")
    unit = CHARACTERS if is_spaceless([utterance.text for utterance in utterances]) else WORDS
    rate = recognizer.timebase.sample_rate
    silence = np.zeros(round(gap_seconds * rate), np.float32)
    stream = streaming.create_stream()
    words: list[str] = []  # what is noted here counts as memory too, and is kept small
    texts: list[tuple[float, str]] = []  # when each utterance ends, and what was said
    heard, segments, state_nbytes = 0, 0, 0
    when, taken = array("d"), array("d")  # of each chunk: second of audio, computing seconds
    rss: list[tuple[float, float]] = []

    def decode() -> None:
        nonlocal segments, state_nbytes
        while True:
            begin = time.perf_counter()
            if not streaming.decode([stream]):
                return
            taken.append(time.perf_counter() - begin)
            when.append(heard / rate)
            state_nbytes = max(state_nbytes, stream.state_nbytes)
            if streaming.is_endpoint(stream):
                words.extend(map(sys.intern, units_of(streaming.result(stream).text, unit)))
                streaming.reset(stream)
                segments += 1

    number, young = 0, None
    while heard < minutes * 60 * rate:
        utterance = utterances[number % len(utterances)]
        number += 1
        for samples in (utterance.samples, silence):
            streaming.accept_waveform(stream, rate, samples)
            heard += len(samples)
            decode()
        texts.append((heard / rate, utterance.text))
        if len(rss) < heard / rate / 60 and (memory := _resident_mb()) is not None:
            rss.append((heard / rate / 60, memory))
        if young is None and heard >= 60 * rate:
            young = stream.snapshot()
    old = stream.snapshot()
    streaming.input_finished(stream)
    decode()
    words.extend(units_of(streaming.result(stream).text, unit))

    chunk_times = list(zip(when, taken, strict=True))
    bins = _bins(texts, words, chunk_times, rss, bin_minutes * 60, unit)
    everything = WordErrors(tuple(errors for part in bins for errors in part.word_errors.utterances))
    by_minute: dict[int, list[float]] = {}
    for second, seconds in chunk_times:
        by_minute.setdefault(int(second // 60), []).append(1e3 * seconds)
    medians = tuple(statistics.median(by_minute[minute]) for minute in sorted(by_minute))
    aged = None
    if young is not None and len(medians) > 2:
        minute = np.concatenate([part for utterance in utterances for part in (utterance.samples, silence)])
        aged = _in_turn(streaming, (young, old), np.resize(minute, 60 * rate))
    slope = _slope([point for point in rss if point[0] >= 1])
    return LongForm(bins, everything, heard / rate, segments + 1, state_nbytes, slope, medians, aged)


def _in_turn(streaming: StreamingRecognizer, snapshots: Iterable[bytes], samples: np.ndarray) -> tuple[float, float]:
    """Median ms of a chunk of two streams that hear the same; the machine's speed drifts, and drifts for both."""
    taken: tuple[list[float], list[float]] = [], []
    rate = streaming.timebase.sample_rate
    packet = streaming.context.chunk_size * streaming.timebase.encoder_frame_samples
    streams = [streaming.restore(data) for data in snapshots]
    for n, start in enumerate(range(0, len(samples), packet)):
        for which in (n % 2, 1 - n % 2):
            stream = streams[which]
            streaming.accept_waveform(stream, rate, samples[start : start + packet])
            begin = time.perf_counter()
            while streaming.decode([stream]):
                taken[which].append(1e3 * (time.perf_counter() - begin))
                if streaming.is_endpoint(stream):
                    streaming.reset(stream)
                begin = time.perf_counter()
    return statistics.median(taken[0]), statistics.median(taken[1])


def _bins(
    texts: list[tuple[float, str]],
    words: list[str],
    chunk_times: list[tuple[float, float]],
    rss: list[tuple[float, float]],
    bin_seconds: float,
    unit: str = WORDS,
) -> tuple[Bin, ...]:
    """Errors are counted where one alignment of the whole stream puts them: no boundary invents any."""
    spoken = [units_of(text, unit) for _, text in texts]
    whole = align_units("whole", [one for units in spoken for one in units], words, unit)
    pairs = iter(whole.pairs)
    utterances: list[tuple[float, UtteranceErrors]] = []
    for number, (end, _) in enumerate(texts):
        own, missing = [], len(spoken[number])
        while missing:
            own.append(next(pairs))
            missing -= own[-1][0] is not None
        if number == len(texts) - 1:
            own.extend(pairs)
        utterances.append((end, UtteranceErrors(f"{number}", tuple(own), unit)))
    total = texts[-1][0]
    bins = []
    count = max(1, math.ceil(total / bin_seconds - 0.1))  # a short rest belongs to the last
    for n in range(count):
        begin, end = n * bin_seconds, total if n == count - 1 else (n + 1) * bin_seconds
        errors = tuple(errors for when, errors in utterances if begin < when <= end)
        taken = [1e3 * seconds for second, seconds in chunk_times if begin < second <= end]
        memory = [mb for minute, mb in rss if begin < minute * 60 <= end]
        chunk_ms = statistics.median(taken) if taken else 0.0
        bins.append(Bin(begin, end, WordErrors(errors), chunk_ms, memory[-1] if memory else None))
    return tuple(bins)


def _slope(points: list[tuple[float, float]]) -> float | None:
    if len(points) < 2:
        return None
    return statistics.linear_regression(*zip(*points)).slope


def _resident_mb() -> float | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
