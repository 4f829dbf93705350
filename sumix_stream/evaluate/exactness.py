"""The proof that streaming is the same function: chunk by chunk against the masked whole utterance, from samples."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sumix_stream.audio import check_samples, resample
from sumix_stream.context import ChunkContext
from sumix_stream.runtime.packed import is_exact
from sumix_stream.search.greedy import greedy_decode
from sumix_stream.streaming.offline import encode_masked, to_hypothesis
from sumix_stream.streaming.stream import Stream, StreamingRecognizer
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.tokenizer import Tokenizer

CHUNK_SIZES = (4, 8, 16, 32)
LEFT_CONTEXTS = (0, 1, 4, None)
TOLERANCE = 1e-4  # absolute, on LayerNormed encoder frames


@dataclass(frozen=True)
class Exactness:
    """Streaming against masked under one context."""

    context: ChunkContext
    num_frames: int  # encoder frames compared
    num_tokens: int
    max_difference: float  # of any element of any encoder frame; infinite where the number of frames differs
    tokens_identical: bool  # ids and frames

    @property
    def holds(self) -> bool:
        return self.max_difference <= TOLERANCE and self.tokens_identical

    def __str__(self) -> str:
        left = "unlimited" if self.context.left_context is None else self.context.left_context
        tokens = f"{self.num_tokens} tokens {'identical' if self.tokens_identical else 'DIFFER'}"
        return (
            f"C {self.context.chunk_size:3d}  L {left!s:9}  {self.num_frames} frames  "
            f"max |masked - streaming| {self.max_difference:.2e}  {tokens}"
        )


def compare(
    model: Transducer,
    tokenizer: Tokenizer,
    samples: np.ndarray,
    sample_rate: int,
    context: ChunkContext,
    pushes: Iterable[int] | None = None,
) -> Exactness:
    """Stream an utterance and compare with the masked forward of all of it.

    Args:
        samples: (S,) as `Stream.feed` takes them.
        pushes: sizes of the packets in samples, used in turn and the last repeated; None = 100 ms.
    Raises:
        ValueError: for a bundle, and for a model packed in bf16.
    """
    if not isinstance(model, Transducer):
        raise ValueError("a bundle has no masked forward to compare with: give the checkpoint that it came from")
    if not is_exact(model):
        raise ValueError("streaming is compared in fp32, since in bf16 each way rounds by itself: leave precision out")
    whole = resample(check_samples(samples, sample_rate), sample_rate, model.timebase.sample_rate)
    masked, lengths = encode_masked(model, [whole], context)
    emissions, _ = greedy_decode(model, masked, lengths)
    expected = to_hypothesis(model, tokenizer, emissions[0])

    stream = StreamingRecognizer(model, tokenizer, context).create_stream()
    encoded: list[Tensor] = []
    for packet in packets(samples, pushes or [sample_rate // 10]):
        stream.accept(sample_rate, packet)
        encoded += _drain(stream)
    stream.input_finished()
    encoded += _drain(stream)
    streamed, actual = torch.cat([masked[0, :0], *encoded]), stream.result()
    same_shape = streamed.shape == masked[0].shape
    difference = (streamed - masked[0]).abs().amax().item() if same_shape and len(streamed) else 0.0
    return Exactness(
        context,
        len(streamed),
        len(actual.tokens),
        difference if same_shape else float("inf"),
        actual.tokens == expected.tokens and actual.timestamps == expected.timestamps,
    )


def exactness_grid(
    model: Transducer,
    tokenizer: Tokenizer,
    samples: np.ndarray,
    sample_rate: int,
    chunk_sizes: Sequence[int] = CHUNK_SIZES,
    left_contexts: Sequence[int | None] = LEFT_CONTEXTS,
    pushes: Iterable[int] | None = None,
) -> list[Exactness]:
    """`compare` for every chunk size (encoder frames) with every left context (chunks, None = unlimited)."""
    contexts = [ChunkContext(size, left) for size in chunk_sizes for left in left_contexts]
    pushes = None if pushes is None else list(pushes)
    return [compare(model, tokenizer, samples, sample_rate, context, pushes) for context in contexts]


def packets(samples: np.ndarray, pushes: Iterable[int]) -> Iterator[np.ndarray]:
    """Cut samples (S,) into packets of the given sizes (at least 1) in turn, the last size repeated."""
    sizes, size, start = iter(pushes), 0, 0
    while start < len(samples):
        size = next(sizes, size)
        assert size >= 1, f"a packet of {size} samples"
        yield samples[start : start + size]
        start += size


def _drain(stream: Stream) -> list[Tensor]:
    encoded = []
    while moved := stream.recognizer.decode([stream]):
        encoded.append(moved[0][1])
    return encoded
