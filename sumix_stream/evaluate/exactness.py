"""The proof that streaming is the same function: chunk by chunk against the masked whole utterance, from samples."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from sumix_stream.audio import check_samples, resample
from sumix_stream.context import ChunkContext
from sumix_stream.features import whole_fbank
from sumix_stream.runtime.base import plain
from sumix_stream.runtime.registry import make_runtime
from sumix_stream.runtime.torch import module_of
from sumix_stream.runtime.weights import Weights
from sumix_stream.search.greedy import greedy_decode
from sumix_stream.streaming.offline import to_hypothesis
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


@torch.inference_mode()
def encode_masked(
    model: Transducer, waveforms: Sequence[np.ndarray], context: ChunkContext
) -> tuple[np.ndarray, np.ndarray]:
    """Encoder frames (B, T, D) and lengths (B,) of whole utterances by `Encoder.forward`, which no runtime's chunks
    come near: float32 (S,) each, at the model's sample rate."""
    feats = [torch.from_numpy(whole_fbank(samples)) for samples in waveforms]
    lengths = torch.tensor([len(x) for x in feats], device=model.device)
    padded = pad_sequence(feats, batch_first=True).to(model.device)
    if padded.shape[1] == 0:
        return np.zeros((len(feats), 0, model.config.encoder.dim), np.float32), lengths.cpu().numpy()
    return tuple(part.cpu().numpy() for part in model.encoder(padded, lengths, context))


def compare(
    model: Transducer | Weights,
    tokenizer: Tokenizer,
    samples: np.ndarray,
    sample_rate: int,
    context: ChunkContext,
    pushes: Iterable[int] | None = None,
    runtime: str = "auto",
) -> Exactness:
    """Stream an utterance and compare with the masked forward of all of it.

    Args:
        samples: (S,) as `Stream.feed` takes them.
        pushes: sizes of the packets in samples, used in turn and the last repeated; None = 100 ms.
        runtime: who streams.
    Raises:
        ValueError: for a bundle, and for precision bf16.
    """
    if not isinstance(model, Transducer | Weights):
        raise ValueError("a bundle has no masked forward to compare with: give the checkpoint that it came from")
    weights = model if isinstance(model, Weights) else Weights.of(model)
    if weights.precision != "fp32":
        raise ValueError("streaming is compared in fp32, since in bf16 each way rounds by itself: leave precision out")
    whole = resample(check_samples(samples, sample_rate), sample_rate, weights.timebase.sample_rate)
    masked, lengths = encode_masked(module_of(weights), [whole], context)
    emissions, _ = greedy_decode(make_runtime(weights, context, "torch"), masked, lengths)
    expected = to_hypothesis(weights.timebase, tokenizer, emissions[0])

    stream = StreamingRecognizer(model, tokenizer, context, runtime=runtime).create_stream()
    encoded: list[np.ndarray] = []
    for packet in packets(samples, pushes or [sample_rate // 10]):
        stream.accept(sample_rate, packet)
        encoded += _drain(stream)
    stream.input_finished()
    encoded += _drain(stream)
    streamed, actual = np.concatenate([masked[0, :0], *encoded]), stream.result()
    same_shape = streamed.shape == masked[0].shape
    difference = float(np.abs(streamed - masked[0]).max()) if same_shape and len(streamed) else 0.0
    return Exactness(
        context,
        len(streamed),
        len(actual.tokens),
        difference if same_shape else float("inf"),
        actual.tokens == expected.tokens and actual.timestamps == expected.timestamps,
    )


def exactness_grid(
    model: Transducer | Weights,
    tokenizer: Tokenizer,
    samples: np.ndarray,
    sample_rate: int,
    chunk_sizes: Sequence[int] = CHUNK_SIZES,
    left_contexts: Sequence[int | None] = LEFT_CONTEXTS,
    pushes: Iterable[int] | None = None,
    runtime: str = "auto",
) -> list[Exactness]:
    """`compare` for every chunk size (encoder frames) with every left context (chunks, None = unlimited)."""
    contexts = [ChunkContext(size, left) for size in chunk_sizes for left in left_contexts]
    pushes = None if pushes is None else list(pushes)
    return [compare(model, tokenizer, samples, sample_rate, context, pushes, runtime) for context in contexts]


def packets(samples: np.ndarray, pushes: Iterable[int]) -> Iterator[np.ndarray]:
    """Cut samples (S,) into packets of the given sizes (at least 1) in turn, the last size repeated."""
    sizes, size, start = iter(pushes), 0, 0
    while start < len(samples):
        size = next(sizes, size)
        assert size >= 1, f"a packet of {size} samples"
        yield samples[start : start + size]
        start += size


def _drain(stream: Stream) -> list[np.ndarray]:
    encoded = []
    while moved := stream.recognizer.decode([stream]):
        encoded.append(plain(moved[0][1]))
    return encoded
