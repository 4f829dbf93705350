"""Word error rate, speed and latency of a model on a set of utterances, streamed or whole.

Latency is measured on a virtual clock. Every stream is a live speaker whose samples arrive in packets as they are
spoken; one worker serves all of them, and the clock stands at max(arrival, previous finish) + measured computing time.
Speakers begin at multiples of the chunk's duration, so that all chunks fall due together: the worst case.

first token: from the utterance's first sample to its first token on the screen, silence at the beginning included.
token delay: from the end of the encoder frame that emitted a token to the token on the screen.
final: from the arrival of the last sample to the final text.
RTF: computing time (filter bank, encoder, search, all streams) for each second of audio.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from sumix_stream.context import ChunkContext
from sumix_stream.evaluate.scoring import UtteranceErrors, WordErrors, align
from sumix_stream.runtime.registry import AUTO, as_context, make_runtime
from sumix_stream.search.hypothesis import Hypothesis
from sumix_stream.search.options import GREEDY, SearchOptions
from sumix_stream.streaming.offline import transcribe_batch
from sumix_stream.streaming.second_pass import LONGEST, SecondPass
from sumix_stream.streaming.stream import Stream, StreamingRecognizer
from sumix_stream.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sumix_stream.data.manifests import Utterance

OnUtterance = Callable[["Utterance", Hypothesis], None]


class Latency(NamedTuple):
    """Of many events, in seconds."""

    median: float
    p90: float

    @classmethod
    def of(cls, seconds: list[float]) -> Latency | None:
        if not seconds:
            return None
        rank = math.ceil(0.9 * len(seconds)) - 1
        return cls(statistics.median(seconds), sorted(seconds)[rank])

    def __str__(self) -> str:
        return f"{self.median * 1000:.0f} ms (90 %: {self.p90 * 1000:.0f} ms)"


@dataclass(frozen=True)
class Evaluation:
    """Result of decoding a test set; latencies are None where nothing was streamed in real time."""

    word_errors: WordErrors
    context: ChunkContext
    num_streams: int
    audio_seconds: float
    compute_seconds: float
    algorithmic_latency: float | None = None  # seconds
    first_token: Latency | None = None
    token_delay: Latency | None = None
    final: Latency | None = None
    state_nbytes: int | None = None  # most that any one stream held

    @property
    def wer(self) -> float:
        return self.word_errors.wer

    @property
    def metrics(self) -> dict[str, float]:
        """What a training's validation goes by: the first of word and character error rate, by the script."""
        return self.word_errors.metrics

    @property
    def rtf(self) -> float:
        return self.compute_seconds / self.audio_seconds if self.audio_seconds else 0.0

    def summary(self) -> str:
        """A few lines for people."""
        lines = [
            self.word_errors.summary(),
            f"context {self.context}; {self.num_streams} at a time; RTF {self.rtf:.4f} "
            f"({self.audio_seconds:.1f} s of audio in {self.compute_seconds:.1f} s)",
        ]
        if self.algorithmic_latency is not None:
            lines.append(f"algorithmic latency {self.algorithmic_latency * 1000:.1f} ms")
        if self.final is not None:
            tokens = (
                f"first token {self.first_token}; token delay {self.token_delay}" if self.first_token else "no token"
            )
            lines.append(f"{tokens}; final {self.final}")
        if self.state_nbytes is not None:
            lines.append(f"state of a stream {self.state_nbytes:,} bytes")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Plain values for JSON, seconds and bytes; the word errors are reported by `scoring.write_report`."""
        latencies = {"first_token": self.first_token, "token_delay": self.token_delay, "final": self.final}
        return {
            "chunk_size": self.context.chunk_size,
            "left_context": self.context.left_context,
            "num_streams": self.num_streams,
            "audio_seconds": self.audio_seconds,
            "compute_seconds": self.compute_seconds,
            "rtf": self.rtf,
            "algorithmic_latency": self.algorithmic_latency,
            "state_nbytes": self.state_nbytes,
            **{name: None if latency is None else latency._asdict() for name, latency in latencies.items()},
        }


@dataclass
class _Speaker:
    """One simulated live stream."""

    index: int  # of the utterance in the test set
    utterance: Utterance
    stream: Stream
    start: float  # on the virtual clock, seconds
    packet: int  # samples
    sample_rate: int
    paced: bool
    num_sent: int = 0
    num_tokens: int = 0
    done: bool = False

    @property
    def next_arrival(self) -> float:
        """When the next packet is complete; infinity after the last."""
        if self.done:
            return math.inf
        last = min(self.num_sent + self.packet, len(self.utterance.samples))
        return self.start + (last / self.sample_rate if self.paced else 0.0)

    @property
    def end(self) -> float:
        """When the last sample arrives."""
        return self.start + len(self.utterance.samples) / self.sample_rate

    def send(self, clock: float) -> None:
        """Hand over every packet that has arrived by now, and the end of the utterance with the last."""
        while self.next_arrival <= clock:
            packet = self.utterance.samples[self.num_sent : self.num_sent + self.packet]
            self.stream.accept(self.sample_rate, packet)
            self.num_sent += len(packet)
            if self.num_sent >= len(self.utterance.samples):
                self.stream.input_finished()
                self.done = True


@dataclass
class _Measured:
    first_token: list[float] = field(default_factory=list)
    token_delay: list[float] = field(default_factory=list)
    final: list[float] = field(default_factory=list)
    audio: float = 0.0
    compute: float = 0.0
    state_nbytes: int = 0


def streaming_wer(
    model: Any,
    tokenizer: Tokenizer,
    utterances: Iterable[Utterance],
    chunk: str | int | ChunkContext = "640ms",
    left_context: int | None = 4,
    num_streams: int = 16,
    *,
    realtime: bool = True,
    push_seconds: float = 0.1,
    options: SearchOptions = GREEDY,
    on_utterance: OnUtterance | None = None,
    runtime: str = AUTO,
    second_pass: bool = False,
) -> Evaluation:
    """Decode chunk by chunk from samples, many streams in each step.

    Args:
        model, runtime: as `registry.make_runtime` takes them.
        utterances: with id, samples (S,) float32 at the model's rate, and text; taken one by one, in order.
        chunk, left_context: the context, as on the command line; `full` raises ValueError.
        num_streams: live at a time.
        realtime: measure latency on the virtual clock; otherwise utterances are there at once, which batches best.
        push_seconds: size of the packets of a real-time stream.
        options: of the search.
        second_pass: score what a second pass makes of each utterance; its time counts as computing time.
        on_utterance: called with each utterance and its final hypothesis, as they finish.
    """
    if num_streams < 1:
        raise ValueError(f"num_streams must be at least 1, got {num_streams}")
    if not push_seconds > 0:
        raise ValueError(f"push_seconds must be above 0, got {push_seconds}")
    timebase = model.timebase
    context = as_context(model, chunk, left_context)
    again = SecondPass(max_seconds=LONGEST) if second_pass else None
    recognizer = StreamingRecognizer(model, tokenizer, context, search=options, second_pass=again, runtime=runtime)
    grid = timebase.encoder_frame_time(context.chunk_size)
    packet = max(1, timebase.num_samples(push_seconds))
    waiting = enumerate(utterances)
    speakers: list[_Speaker] = []
    measured = _Measured()
    scored: dict[int, UtteranceErrors] = {}
    clock = 0.0

    def begin(index: int, utterance: Utterance) -> _Speaker:
        start = math.ceil(clock / grid) * grid
        size = packet if realtime else max(1, len(utterance.samples))
        return _Speaker(
            index,
            utterance,
            recognizer.create_stream(),
            start if realtime else clock,
            size,
            timebase.sample_rate,
            realtime,
        )

    with _evaluating(model):
        recognizer.warm_up(1)  # what is compiled at its first use is no chunk's computing time
        while True:
            speakers += [begin(*item) for item in islice(waiting, num_streams - len(speakers))]
            if not speakers:
                break
            if not any(speaker.stream.is_ready for speaker in speakers):
                clock = max(clock, min(speaker.next_arrival for speaker in speakers))
            began = time.perf_counter()
            for speaker in speakers:
                speaker.send(clock)
            recognizer.decode([speaker.stream for speaker in speakers])
            spent = time.perf_counter() - began
            measured.compute += spent
            clock += spent
            for speaker in speakers:
                _observe(speaker, clock, timebase.encoder_frame_seconds, measured)
                if speaker.stream.is_finished:
                    hypothesis = _final(recognizer, speaker.stream, measured)
                    scored[speaker.index] = align(speaker.utterance.id, speaker.utterance.text, hypothesis.text)
                    if on_utterance is not None:
                        on_utterance(speaker.utterance, hypothesis)
            speakers = [speaker for speaker in speakers if not speaker.stream.is_finished]
    return Evaluation(
        WordErrors(tuple(scored[index] for index in sorted(scored))),
        context,
        num_streams,
        measured.audio,
        measured.compute,
        algorithmic_latency=timebase.chunk_latency_seconds(context.chunk_size),
        first_token=Latency.of(measured.first_token) if realtime else None,
        token_delay=Latency.of(measured.token_delay) if realtime else None,
        final=Latency.of(measured.final) if realtime else None,
        state_nbytes=measured.state_nbytes,
    )


def _observe(speaker: _Speaker, clock: float, frame_seconds: float, measured: _Measured) -> None:
    """Note what is new on a speaker's screen at `clock`."""
    stream = speaker.stream
    measured.state_nbytes = max(measured.state_nbytes, stream.state_nbytes)
    if stream.num_tokens > speaker.num_tokens:
        if speaker.num_tokens == 0:
            measured.first_token.append(clock - speaker.start)
        spoken = (speaker.start + start + frame_seconds for start in stream.timestamps(speaker.num_tokens))
        measured.token_delay += [clock - at for at in spoken]
        speaker.num_tokens = stream.num_tokens
    if stream.is_finished:
        measured.final.append(clock - speaker.end)
        measured.audio += speaker.end - speaker.start


def _final(recognizer: StreamingRecognizer, stream: Stream, measured: _Measured) -> Hypothesis:
    """What a finished stream said; a second pass takes its time, and its result is later by that."""
    began = time.perf_counter() if recognizer.second_pass is not None else None
    hypothesis = recognizer.final(stream).hypothesis
    if began is not None:
        spent = time.perf_counter() - began
        measured.compute += spent
        measured.final[-1] += spent
    return hypothesis


def masked_wer(
    model: Any,
    tokenizer: Tokenizer,
    utterances: Iterable[Utterance],
    chunk: str | int | ChunkContext = "full",
    left_context: int | None = None,
    batch_size: int = 16,
    *,
    options: SearchOptions = GREEDY,
    on_utterance: OnUtterance | None = None,
    runtime: str = AUTO,
) -> Evaluation:
    """Decode whole utterances under any context, `full` included: the text that streaming would give.

    Arguments as for `streaming_wer`; `batch_size` utterances are decoded together.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    context = as_context(model, chunk, left_context)
    waiting = iter(utterances)
    audio = compute = 0.0
    scored = []
    with _evaluating(model):
        computing = make_runtime(model, context, runtime)
        while batch := list(islice(waiting, batch_size)):
            began = time.perf_counter()
            samples = [utterance.samples for utterance in batch]
            hypotheses = transcribe_batch(computing, tokenizer, samples, options)
            compute += time.perf_counter() - began
            for utterance, hypothesis in zip(batch, hypotheses, strict=True):
                audio += model.timebase.seconds(len(utterance.samples))
                scored.append(align(utterance.id, utterance.text, hypothesis.text))
                if on_utterance is not None:
                    on_utterance(utterance, hypothesis)
    return Evaluation(WordErrors(tuple(scored)), context, batch_size, audio, compute)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode, and the mode it had before afterwards: validation happens amid training."""
    if not hasattr(model, "training"):  # nothing that is trained
        yield
        return
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
