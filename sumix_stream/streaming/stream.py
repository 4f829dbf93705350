"""Streams: audio in pieces of any size, words while it is still coming. Streams of any age share each step.

samples -> resampler -> filter bank -> queue of feature frames -> encoder chunk -> search -> tokens with times.
C encoder frames of a chunk, D encoder channels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from sumix_stream.context import ChunkContext
from sumix_stream.features import NUM_BINS
from sumix_stream.runtime.base import Frames, Runtime, chunk_frames
from sumix_stream.runtime.registry import AUTO, make_runtime
from sumix_stream.search.beam import NBest, Scored
from sumix_stream.search.beam_search import make_search
from sumix_stream.search.greedy import Emissions
from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.hypothesis import Hypothesis
from sumix_stream.search.options import GREEDY, SearchOptions
from sumix_stream.streaming import open_words, snapshot
from sumix_stream.streaming.endpointing import OWN, Endpointing, Own
from sumix_stream.streaming.feature_queue import FeatureQueue
from sumix_stream.streaming.offline import pad_chunks, to_hypothesis
from sumix_stream.streaming.second_pass import Again, Final, Heard, SecondPass, Segment, Sent, distinct
from sumix_stream.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


class Stream:
    """One speaker's audio on its way in; made by `StreamingRecognizer.create_stream` or `Recognizer.stream`.

    `feed` and `finish` are all that one stream needs. A server with many uses the recogniser's verbs instead.
    """

    def __init__(
        self,
        recognizer: StreamingRecognizer,
        endpointing: Endpointing | None,
        second_pass: SecondPass | None,
        search: Any,
    ) -> None:
        self.recognizer, self.endpointing, self.second_pass = recognizer, endpointing, second_pass
        self.features = FeatureQueue(recognizer.timebase.sample_rate)
        self.encoder = recognizer.runtime.fresh_state()
        self.search = search  # state of the recogniser's
        self.num_encoded = 0  # encoder frames
        self.segment_start = 0  # encoder frame
        self.num_segments = 0  # that are complete
        self.carried = Emissions([], [], [])  # of a word that was open when its segment became too long
        self.end_of_segment: int | None = None  # tokens before such a word, once `is_endpoint` has said so
        self.committed = 0  # encoder frame: tokens before it are final, and are not shown again
        self.heard: Heard | None = None  # features that a second pass will want
        if second_pass is not None:
            self.heard = Heard.of(second_pass, recognizer.timebase)
        self.sent = Sent()

    @property
    def context(self) -> ChunkContext:
        return self.recognizer.context

    def feed(self, sample_rate: int, samples: np.ndarray) -> Hypothesis | None:
        """Take the next samples and decode every chunk they complete.

        Args:
            sample_rate: in Hz, the same for the whole stream; anything but the model's rate is resampled.
            samples: (S,) mono, of any length: floating point in [-1, 1], or int16 PCM.
        Returns:
            All that has been recognised so far, or None when these samples changed no token.
        Raises:
            ValueError: for samples that are not such (NaN, 2-D, another type), a change of rate, or after `finish`.
                Nothing of a refused call is kept, and the stream goes on.
        """
        self.features.accept(sample_rate, samples)
        if not self.is_ready:
            return None
        before = list(self.emissions.tokens)
        while self.recognizer.decode([self]):
            pass
        return None if self.emissions.tokens == before else self.result()

    def finish(self) -> Hypothesis:
        """No more samples: decode what is left, to the last sample, and return the whole result.

        With a second pass it is that one's; `result` is then still what was streamed.
        """
        self.input_finished()
        while self.recognizer.decode([self]):
            pass
        return self.result() if self.heard is None else self._said(self.recognizer.segment(self))

    def commit(self) -> Hypothesis:
        """Make final what was said so far, to the last sample, and go on.

        Returns what `finish` would return of a copy, without what earlier commits returned. The stream goes on as if
        nothing had happened; tokens before the committed sample are not shown again, even where they change.
        """
        return self._said(self.recognizer.commit(self))

    def _said(self, segment: Segment) -> Hypothesis:
        final = segment.final()
        if self.second_pass is not None and not final.heard_again:
            seconds = self.second_pass.max_seconds
            _log.warning("a segment of more than %g s is as it was streamed: give SecondPass more max_seconds", seconds)
        return final.hypothesis

    def copy(self) -> Stream:
        """Another stream that has heard the same and goes on by itself."""
        twin = Stream(self.recognizer, self.endpointing, self.second_pass, self.recognizer.search.copy(self.search))
        twin.features = FeatureQueue.restore(self.features.model_rate, *self.features.save())
        twin.encoder = self.encoder
        for name in ("num_encoded", "segment_start", "num_segments", "carried", "end_of_segment", "committed", "sent"):
            setattr(twin, name, getattr(self, name))
        twin.heard = None if self.heard is None else self.heard.copy()
        return twin

    def accept(self, sample_rate: int, samples: np.ndarray) -> None:
        """Take the next samples without decoding; as `feed` otherwise."""
        self.features.accept(sample_rate, samples)

    def input_finished(self) -> None:
        """Flush resampler and filter bank; the last chunk may be short."""
        self.features.finish()

    @property
    def is_ready(self) -> bool:
        """Whether a chunk can be decoded: a full one, or after the end what is left."""
        waiting = self.features.num_frames
        return waiting >= self.recognizer.window or (self.features.finished and waiting > 0)

    @property
    def is_finished(self) -> bool:
        """Whether the result is final."""
        return self.features.finished and self.features.num_frames == 0

    @property
    def num_tokens(self) -> int:
        """Tokens emitted so far, since the last reset."""
        return len(self.emissions.tokens)

    @property
    def emissions(self) -> Emissions:
        """Tokens since the last reset, with their encoder frames and confidences. To be read, not to be kept.

        At an endpoint by length, without the last word, which may go on in the next segment.
        """
        found = self.all_emissions
        if self.end_of_segment is not None:
            found = open_words.split(found, self.end_of_segment)[0]
        return open_words.since(found, self.committed)

    @property
    def all_emissions(self) -> Emissions:
        """The same with the last word in any case."""
        found = self.recognizer.search.emissions(self.search)
        return open_words.joined(self.carried, found) if self.carried.tokens else found

    @property
    def num_stable(self) -> int:
        """Of these tokens, how many stay as they are whatever follows: all of greedy search, of a beam those that all
        its hypotheses share."""
        found = self.emissions
        hidden = len(self.all_emissions.tokens) - len(found.tokens)
        stable = len(self.carried.tokens) + self.recognizer.search.num_stable(self.search) - hidden
        return min(max(stable, 0), len(found.tokens))

    def result(self) -> Hypothesis:
        """All that has been recognised since the last reset."""
        recognizer = self.recognizer
        return to_hypothesis(recognizer.timebase, recognizer.tokenizer, self.emissions)

    def timestamps(self, first: int = 0) -> list[float]:
        """Seconds from the first sample to the start of the encoder frame of each token from the `first` on."""
        frames = self.emissions.frames[first:]
        return [self.recognizer.timebase.encoder_frame_time(frame) for frame in frames]

    @property
    def state_nbytes(self) -> int:
        """Bytes this stream keeps of its past: encoder, search, remainders of resampler and filter bank, the feature
        frames of the chunk that is not full yet, and those that wait for a second pass. Neither text nor input that
        waits to be decoded is counted."""
        frames = self.features.num_frames % self.recognizer.window * NUM_BINS * np.dtype(np.float32).itemsize
        frames += 0 if self.heard is None else self.heard.nbytes
        encoder = self.recognizer.runtime.nbytes(self.encoder)
        return encoder + self.recognizer.search.nbytes(self.search) + self.features.remainder_nbytes + frames

    def snapshot(self, key: bytes | None = None) -> bytes:
        """All of this stream, for `StreamingRecognizer.restore` in this or another process to go on identically.

        Args:
            key: at least 16 secret bytes that sign it, where it passes through other hands.
        """
        return snapshot.dump(self, key)


class StreamingRecognizer:
    """Many streams under one context, by the eight verbs of sherpa-onnx's recogniser.

    create_stream; accept_waveform, input_finished; is_ready, decode; result, is_endpoint, reset. Streams of any age
    join and leave `decode`; a stream's result depends on its samples alone. Used by one thread at a time.

    Args:
        model, tokenizer: as loaded together: a `Runtime` under this context, or what `registry.make_runtime` takes.
        context: a chunk size in encoder frames and a left context in chunks; the latency of all streams.
        search: its options; greedy by default.
        endpointing: rules of `is_endpoint`, and what `reset` forgets; None = no endpoints.
        second_pass: how segments are heard again when they end; None = what was streamed is the result.
        runtime: the name of one, where `model` is none.
    Raises:
        ValueError: for full context, which cannot stream, for another context than a bundle's own, and with its reason
            where the runtime cannot run the model, or cannot run it under the full context of a second pass.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        context: ChunkContext,
        *,
        search: SearchOptions = GREEDY,
        endpointing: Endpointing | None = None,
        second_pass: SecondPass | None = None,
        runtime: str = AUTO,
    ) -> None:
        window = chunk_frames(model.timebase, context)
        if window is None:
            raise ValueError(f"streaming needs one chunk size (such as 640ms or 16), got {context}")
        self.window = window  # feature frames of a chunk
        self.runtime: Runtime = model if hasattr(model, "fresh_state") else make_runtime(model, context, runtime)
        assert self.runtime.context == context, (self.runtime.context, context)
        self.timebase, self.tokenizer, self.context = self.runtime.timebase, tokenizer, context
        self.search = make_search(self.runtime, search)
        self.endpointing, self.second_pass = endpointing, second_pass
        if second_pass is not None:
            self.again  # noqa: B018 that it cannot be had is said now

    @cached_property
    def again(self) -> Again:
        """Full context, by the same weights and search. Raises ValueError where the runtime has none."""
        whole = make_runtime(self.runtime.source, ChunkContext.full(), self.runtime.name)
        return Again(whole, self.search.options, self.tokenizer.piece)

    def like(self, context: ChunkContext, search: SearchOptions) -> StreamingRecognizer:
        """A recogniser by the same weights under another context and search. Raises ValueError as making one does."""
        runtime = self.runtime
        if context != self.context:
            runtime = make_runtime(runtime.source, context, runtime.name)
        given = {"endpointing": self.endpointing, "second_pass": self.second_pass}
        return StreamingRecognizer(runtime, self.tokenizer, context, search=search, **given)

    def create_stream(
        self,
        *,
        endpointing: Endpointing | Own | None = OWN,
        second_pass: SecondPass | Own | None = OWN,
        hotwords: Hotwords | None = None,
    ) -> Stream:
        """A stream that has heard nothing.

        Args:
            endpointing, second_pass: of this stream; OWN = the recogniser's.
            hotwords: of this stream; None = those of the search's options.
        Raises:
            ValueError: for hotwords without a beam, or a second pass where the runtime has none.
        """
        endpointing = self.endpointing if endpointing is OWN else endpointing
        second_pass = self.second_pass if second_pass is OWN else second_pass
        if second_pass is not None:
            self.again  # noqa: B018 that it cannot be had is said now
        return Stream(self, endpointing, second_pass, self.search.begin(hotwords))

    def accept_waveform(self, stream: Stream, sample_rate: int, samples: np.ndarray) -> None:
        """Take the next samples (S,) of a stream without decoding; as `Stream.feed` otherwise."""
        self._own(stream).accept(sample_rate, samples)

    def input_finished(self, stream: Stream) -> None:
        """No more samples will come; what is left is decoded to the last sample. Raises ValueError the second time."""
        self._own(stream).input_finished()

    def is_ready(self, stream: Stream) -> bool:
        """Whether `decode` would move this stream."""
        return self._own(stream).is_ready

    def decode(self, streams: Sequence[Stream]) -> list[tuple[Stream, Frames]]:
        """Decode one chunk of every stream that is ready, all in one batch, whatever their ages.

        If it raises, no stream has moved.

        Returns:
            The streams that moved, each with its encoder frames (n, D), n <= C, in the runtime's own arrays; none when
            nothing is left to do.
        """
        ready = [stream for stream in streams if self._own(stream).is_ready]
        if not ready:
            return []
        chunks = [stream.features.peek(self.window) for stream in ready]
        feats, lengths = pad_chunks(chunks)
        final = np.array([stream.features.finished for stream in ready])
        frames, after = self.runtime.encode(feats, lengths, [stream.encoder for stream in ready], final)
        num_frames = self.timebase.num_encoder_frames(lengths)
        first = [stream.num_encoded for stream in ready]
        self.search.advance(frames, num_frames, first, [stream.search for stream in ready])
        moved = []
        columns = zip(ready, after, chunks, frames, num_frames.tolist(), strict=True)
        for stream, state, chunk, own, length in columns:
            stream.encoder, stream.end_of_segment = state, None
            if stream.heard is not None:
                stream.heard.add(chunk)
            stream.features.drop(len(chunk))
            stream.num_encoded += length
            moved.append((stream, own[:length]))
        return moved

    def warm_up(self, num_streams: int | None = None) -> None:
        """Recognise silence in batches of each size that the runtime prepares for, up to `num_streams`, so that the
        first speakers do not wait for kernels to be compiled and memory to be had."""
        sizes = [size for size in self.runtime.batch_sizes if num_streams is None or size <= num_streams] or [1]
        streams = [self.create_stream() for _ in range(sizes[-1])]
        silence = np.zeros(self.context.chunk_size * self.timebase.encoder_frame_samples, np.float32)
        for stream in streams:
            stream.accept(self.timebase.sample_rate, silence)  # short of a chunk by the filter bank's look-ahead
        for size in sizes:
            for stream in streams[:size]:
                stream.accept(self.timebase.sample_rate, silence)
            self.decode(streams[:size])

    def result(self, stream: Stream) -> Hypothesis:
        """What has been recognised since the last `reset`; times count from the stream's first sample."""
        return self._own(stream).result()

    def is_endpoint(self, stream: Stream) -> bool:
        """Whether the segment since the last `reset` is over by one of the rules; never without `endpointing`.

        It looks at what has been decoded: ask after every chunk, and endpoints do not depend on packet sizes. Where a
        segment ends by its length alone, its result is without the last word, which `reset` gives to the next segment;
        at the end of the stream nothing is left for a next one, and the result has all.
        """
        endpointing = self._own(stream).endpointing
        if endpointing is None:
            return False
        stream.end_of_segment = None  # of an endpoint that nobody heeded
        found = stream.all_emissions
        frames = found.frames
        seconds = self.timebase.encoder_frame_seconds
        last = frames[-1] + 1 if frames else stream.segment_start
        silence, utterance = stream.num_encoded - last, stream.num_encoded - stream.segment_start
        given = bool(frames), silence * seconds, utterance * seconds
        if not endpointing.is_endpoint(*given):
            return False
        if not frames or stream.is_finished or not endpointing.by_length(*given):
            return True
        times = [frame * seconds for frame in frames]
        pieces = [self.tokenizer.piece(token) for token in found.tokens]
        stream.end_of_segment = open_words.last_boundary(pieces, times, stream.num_encoded * seconds) or None
        return stream.end_of_segment is not None

    def reset(self, stream: Stream) -> None:
        """Begin a new segment: the result is empty again. Encoder and audio go on, and the predictor too, unless
        `endpointing` says otherwise."""
        found, end = self._own(stream).all_emissions, stream.end_of_segment
        stream.carried = open_words.split(found, len(found.tokens) if end is None else end)[1]
        stream.end_of_segment = None
        forget = stream.endpointing is not None and stream.endpointing.reset_predictor
        self.search.cut(stream.search, forget and not stream.carried.tokens)
        stream.segment_start = stream.num_encoded
        stream.num_segments += 1
        if stream.heard is not None:
            begin = stream.carried.frames[0] if stream.carried.frames else stream.num_encoded
            stream.heard.cut(begin * self.timebase.subsampling)

    def final(self, stream: Stream) -> Final:
        """What a segment said, when it has ended: ask before `reset`. With a second pass it is heard again now."""
        return self.segment(stream).final()

    def segment(self, stream: Stream) -> Segment:
        """The same in two steps: what this returns does the work, in any thread and while the stream goes on, but in
        the order of the stream's segments."""
        heard, streamed = self._own(stream).heard, self._streamed(stream)
        feats = heard.frames() if heard is not None and heard.is_whole else None
        first = 0 if heard is None else heard.first // self.timebase.subsampling
        is_open, hotwords = stream.end_of_segment is not None, self.search.hotwords(stream.search)
        of_stream = stream.num_segments, streamed, stream.sent, feats, first, is_open
        return Segment(*of_stream, None if heard is None else self.again, hotwords, self._read)

    def commit(self, stream: Stream) -> Segment:
        """Make final what was said so far, to the last sample: what `Stream.finish` would say of a copy.

        The stream goes on as if nothing had happened, but tokens before the committed sample are not shown again.
        """
        twin = self._own(stream).copy()
        if not twin.features.finished:
            twin.input_finished()
        while self.decode([twin]):
            pass
        segment = self.segment(twin)
        stream.committed = twin.num_encoded
        stream.num_segments += 1
        if stream.heard is not None:
            stream.heard.cut(stream.committed * self.timebase.subsampling)
        return segment

    def _streamed(self, stream: Stream) -> NBest:
        """What `Stream.emissions` shows, and the other results of a beam likewise; the best alone where the segment
        was cut by its length."""
        nbest = self.search.nbest(stream.search)
        score = nbest[0].score if nbest else 0.0
        results = [Scored(*map(list, stream.emissions), score)]
        for one in nbest[1:] if stream.end_of_segment is None else ():
            found = open_words.since(open_words.joined(stream.carried, Emissions(*one[:3])), stream.committed)
            results.append(Scored(*map(list, found), one.score))
        return distinct(results)

    def _read(self, found: Emissions) -> Hypothesis:
        return to_hypothesis(self.timebase, self.tokenizer, found)

    def restore(self, data: bytes, key: bytes | None = None) -> Stream:
        """The stream of a `Stream.snapshot`, taken in this or another process, on any device.

        Args:
            key: that it must have been signed with; None = a signature is not looked at, and every value still is.
        Raises:
            ValueError: for bytes that are damaged or no snapshot, for one of another model, context or search, and for
                values that no stream has.
        """
        return snapshot.load(data, self, key)

    def _own(self, stream: Stream) -> Stream:
        if stream.recognizer is not self:
            raise ValueError(
                f"this stream is another recogniser's (context {stream.context}, here {self.context}): "
                "streams of a batch share one recogniser"
            )
        return stream
