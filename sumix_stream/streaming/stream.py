"""Streams: audio in pieces of any size, words while it is still coming. Streams of any age share each step.

samples -> resampler -> filter bank -> queue of feature frames -> encoder chunk -> search -> tokens with times.
C encoder frames of a chunk, D encoder channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sumix_stream.context import ChunkContext
from sumix_stream.features import NUM_BINS
from sumix_stream.runtime.base import Frames, Runtime, chunk_frames
from sumix_stream.runtime.registry import AUTO, make_runtime
from sumix_stream.search.beam_search import make_search
from sumix_stream.search.greedy import Emissions
from sumix_stream.search.hypothesis import Hypothesis
from sumix_stream.search.options import GREEDY, SearchOptions
from sumix_stream.streaming import open_words, snapshot
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.feature_queue import FeatureQueue
from sumix_stream.streaming.offline import pad_chunks, to_hypothesis
from sumix_stream.tokenizer import Tokenizer


class Stream:
    """One speaker's audio on its way in; made by `StreamingRecognizer.create_stream` or `Recognizer.stream`.

    `feed` and `finish` are all that one stream needs. A server with many uses the recogniser's verbs instead.
    """

    def __init__(self, recognizer: StreamingRecognizer) -> None:
        self.recognizer = recognizer
        self.features = FeatureQueue(recognizer.timebase.sample_rate)
        self.encoder = recognizer.runtime.fresh_state()
        self.search = recognizer.search.begin()
        self.num_encoded = 0  # encoder frames
        self.segment_start = 0  # encoder frame
        self.num_segments = 0  # that are complete
        self.carried = Emissions([], [], [])  # of a word that was open when its segment became too long
        self.end_of_segment: int | None = None  # tokens before such a word, once `is_endpoint` has said so

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
        """No more samples: decode what is left, to the last sample, and return the whole result."""
        self.input_finished()
        while self.recognizer.decode([self]):
            pass
        return self.result()

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
        return found if self.end_of_segment is None else open_words.split(found, self.end_of_segment)[0]

    @property
    def all_emissions(self) -> Emissions:
        """The same with the last word in any case."""
        found = self.recognizer.search.emissions(self.search)
        return open_words.joined(self.carried, found) if self.carried.tokens else found

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
        """Bytes this stream keeps of its past: encoder, search, remainders of resampler and filter bank, and the
        feature frames of the chunk that is not full yet. Neither text nor input that waits to be decoded is counted."""
        frames = self.features.num_frames % self.recognizer.window * NUM_BINS * np.dtype(np.float32).itemsize
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
        runtime: the name of one, where `model` is none.
    Raises:
        ValueError: for full context, which cannot stream, for another context than a bundle's own, and with its reason
            where the runtime cannot run the model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        context: ChunkContext,
        *,
        search: SearchOptions = GREEDY,
        endpointing: Endpointing | None = None,
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
        self.endpointing = endpointing

    def create_stream(self) -> Stream:
        """A stream that has heard nothing."""
        return Stream(self)

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
        segment ends by its length alone, its result is without the last word, which `reset` gives to the next segment.
        """
        if self.endpointing is None:
            return False
        found = self._own(stream).all_emissions
        frames = found.frames
        seconds = self.timebase.encoder_frame_seconds
        last = frames[-1] + 1 if frames else stream.segment_start
        silence, utterance = stream.num_encoded - last, stream.num_encoded - stream.segment_start
        given = bool(frames), silence * seconds, utterance * seconds
        if not self.endpointing.is_endpoint(*given):
            return False
        if not frames or not self.endpointing.by_length(*given):
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
        forget = self.endpointing is not None and self.endpointing.reset_predictor
        self.search.cut(stream.search, forget and not stream.carried.tokens)
        stream.segment_start = stream.num_encoded
        stream.num_segments += 1

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
