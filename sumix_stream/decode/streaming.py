"""Streams: audio in pieces of any size, words while it is still coming. Streams of any age share each step.

samples -> resampler -> filter bank -> queue of feature frames -> encoder chunk -> greedy search -> tokens with times.
C encoder frames of a chunk, D encoder channels.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sumix_stream.audio import StreamResampler, check_samples
from sumix_stream.decode.greedy import GreedyState, greedy_decode
from sumix_stream.decode.hypothesis import Hypothesis
from sumix_stream.features import NUM_BINS, FbankStream
from sumix_stream.model.transducer import Transducer
from sumix_stream.nn.chunking import ChunkContext
from sumix_stream.nn.states import EncoderState
from sumix_stream.tokenizer import Tokenizer


class Stream:
    """One utterance on its way in.

    `feed` and `finish` are all that one stream needs. A server with many calls `accept` and `input_finished` on each,
    `decode_streams` on all of them together, and reads `result`.

    Args:
        model, tokenizer: as loaded together.
        context: a chunk size in encoder frames and a left context in chunks. Raises ValueError for full context.
    """

    def __init__(self, model: Transducer, tokenizer: Tokenizer, context: ChunkContext) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.context = context
        with torch.inference_mode():
            self._encoder_state: EncoderState = model.encoder.init_state(1, context)
        self._window = model.encoder.window(context)
        self._search = GreedyState.init(model, 1)
        self._sample_rate: int | None = None
        self._resampler: StreamResampler | None = None
        self._fbank = FbankStream()
        self._queue: deque[Tensor] = deque()  # feature frames (n, 80) that wait for their chunk to be full
        self._num_queued = 0
        self._num_encoded = 0
        self._finished = False
        self._tokens: list[int] = []
        self._frames: list[int] = []
        self._confidence: list[float] = []

    def feed(self, sample_rate: int, samples: np.ndarray) -> Hypothesis | None:
        """Take the next samples and decode every chunk they complete.

        Args:
            sample_rate: in Hz, the same for the whole stream; anything but the model's rate is resampled.
            samples: (S,) mono, of any length: floating point in [-1, 1], or int16 PCM.
        Returns:
            All that has been recognised so far, or None when these samples added no token.
        Raises:
            ValueError: for samples that are not such (NaN, 2-D, another type), a change of rate, or after `finish`.
                Nothing of a refused call is kept, and the stream goes on.
        """
        before = len(self._tokens)
        self.accept(sample_rate, samples)
        while decode_streams(self.model, [self]):
            pass
        return self.result() if len(self._tokens) > before else None

    def finish(self) -> Hypothesis:
        """No more samples: decode what is left, to the last sample, and return the whole result."""
        self.input_finished()
        while decode_streams(self.model, [self]):
            pass
        return self.result()

    def accept(self, sample_rate: int, samples: np.ndarray) -> None:
        """Take the next samples without decoding; as `feed` otherwise."""
        if self._finished:
            raise ValueError("samples after finish: this stream is complete, open a new one for the next utterance")
        if self._sample_rate is not None and sample_rate != self._sample_rate:
            raise ValueError(
                f"sample_rate changed from {self._sample_rate} to {sample_rate} Hz within a stream; "
                "open a new stream, or resample before feeding"
            )
        samples = check_samples(samples, sample_rate)
        if self._sample_rate is None:
            self._sample_rate = sample_rate
            self._resampler = StreamResampler(sample_rate, self.model.timebase.sample_rate)
        self._enqueue(self._fbank.accept(self._resampler.accept(samples)))

    def input_finished(self) -> None:
        """Flush resampler and filter bank; the last chunk may be short."""
        if self._finished:
            raise ValueError("finish was called twice: this stream is complete")
        self._finished = True
        if self._resampler is not None:
            self._enqueue(self._fbank.accept(self._resampler.finish()))
        self._enqueue(self._fbank.finish())

    @property
    def is_ready(self) -> bool:
        """Whether a chunk can be decoded: a full one, or after the end what is left."""
        return self._num_queued >= self._window or (self._finished and self._num_queued > 0)

    @property
    def is_finished(self) -> bool:
        """Whether the result is final."""
        return self._finished and self._num_queued == 0

    @property
    def num_tokens(self) -> int:
        """Tokens emitted so far."""
        return len(self._tokens)

    def result(self) -> Hypothesis:
        """All that has been recognised so far; greedy search never takes a token back."""
        return Hypothesis(
            self.tokenizer.decode(self._tokens), list(self._tokens), self.timestamps(), list(self._confidence)
        )

    def timestamps(self, first: int = 0) -> list[float]:
        """Seconds from the first sample to the start of the encoder frame of each token from the `first` on."""
        return [self.model.timebase.encoder_frame_time(frame) for frame in self._frames[first:]]

    @property
    def state_nbytes(self) -> int:
        """Bytes this stream keeps of its past: encoder, search, remainders of resampler and filter bank, and the
        feature frames of the chunk that is not full yet. Neither text nor input that waits to be decoded is counted."""
        resampler = 0 if self._resampler is None else self._resampler.nbytes
        remainder = self._num_queued % self._window * NUM_BINS * torch.float32.itemsize
        return self._encoder_state.nbytes + self._search.nbytes + resampler + self._fbank.nbytes + remainder

    def _enqueue(self, feats: Tensor) -> None:
        if len(feats):
            self._queue.append(feats)
            self._num_queued += len(feats)

    def _take_chunk(self) -> Tensor:
        """The next chunk's feature frames, at most a window of them."""
        missing = min(self._window, self._num_queued)
        self._num_queued -= missing
        parts = []
        while missing:
            head = self._queue.popleft()
            parts.append(head[:missing])
            if len(head) > missing:
                self._queue.appendleft(head[missing:])
            missing -= len(parts[-1])
        return torch.cat(parts)


@torch.inference_mode()
def decode_streams(model: Transducer, streams: Sequence[Stream]) -> list[tuple[Stream, Tensor]]:
    """Decode one chunk of every stream that is ready, all in one batch, whatever their ages.

    Streams share a context; their results do not depend on each other. Call until nothing is returned.

    Returns:
        The streams that moved, each with its encoder frames (n, D), n <= C. Raises ValueError if contexts differ.
    """
    ready = [stream for stream in streams if stream.is_ready]
    if not ready:
        return []
    state = EncoderState.stack([stream._encoder_state for stream in ready])
    search = GreedyState.stack([stream._search for stream in ready])
    chunks = [stream._take_chunk() for stream in ready]
    lengths = torch.tensor([len(chunk) for chunk in chunks], device=model.device)
    final = torch.tensor([stream.is_finished for stream in ready], device=model.device)
    feats = pad_sequence(chunks, batch_first=True).to(model.device)
    enc, enc_lengths, state = model.encoder.step(feats, lengths, state, final=final)
    emissions, search = greedy_decode(model, enc, enc_lengths, search)
    moved = []
    for stream, frames, length, encoder_state, search_state, emitted in zip(
        ready, enc, enc_lengths.tolist(), state.unstack(), search.unstack(), emissions, strict=True
    ):
        stream._encoder_state = encoder_state
        stream._search = search_state
        stream._tokens += emitted.tokens
        stream._frames += [stream._num_encoded + frame for frame in emitted.frames]
        stream._confidence += emitted.confidence
        stream._num_encoded += length
        moved.append((stream, frames[:length]))
    return moved


def as_context(model: Transducer, chunk: str | int | ChunkContext, left_context: int | None) -> ChunkContext:
    """`full`, `640ms`, `0.64s` or 16 (encoder frames) with `left_context` in chunks (None = unlimited), or as it is.

    Raises ValueError for a duration that is no whole number of the model's encoder frames.
    """
    return chunk if isinstance(chunk, ChunkContext) else ChunkContext.parse(chunk, left_context, model.timebase)
