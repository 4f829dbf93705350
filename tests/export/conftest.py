"""What the streaming recogniser says of the same audio."""

from collections.abc import Callable

import numpy as np
import pytest
from talkative import LetterTokenizer, sound, talkative_model
from torch import Tensor

from sumix_stream.context import ChunkContext
from sumix_stream.export.parity import Search
from sumix_stream.runtime.registry import make_runtime
from sumix_stream.search.greedy import greedy_decode
from sumix_stream.search.options import SearchOptions
from sumix_stream.streaming.stream import StreamingRecognizer
from sumix_stream.tasks.transducer.model import Transducer

SHERPA_MAX_SYMBOLS = 10  # tokens a frame in sherpa-onnx; ours are asked for as many

Expected = Callable[[str, ChunkContext, np.ndarray], list[str]]


@pytest.fixture(scope="session")
def expected() -> Expected:
    """Tokens that our streaming recogniser has found in samples at 16 kHz by the time it has heard them all."""

    def recognise(mixer: str, context: ChunkContext, samples: np.ndarray) -> list[str]:
        model, tokenizer = talkative_model(mixer), LetterTokenizer()
        search = SearchOptions(max_symbols=SHERPA_MAX_SYMBOLS)
        stream = StreamingRecognizer(model, tokenizer, context, search=search).create_stream()
        stream.feed(16_000, samples)
        # sherpa-onnx shows the mark of a word's beginning as a space.
        return [tokenizer.piece(token).replace("▁", " ") for token in stream.result().tokens]

    return recognise


@pytest.fixture(scope="session")
def search() -> Search:
    def find(model: Transducer, frames: Tensor, lengths: Tensor) -> list[list[int]]:
        runtime = make_runtime(model, ChunkContext.full())
        return [emitted.tokens for emitted in greedy_decode(runtime, frames, lengths.numpy())[0]]

    return find


@pytest.fixture(scope="session")
def sounds() -> list[np.ndarray]:
    """Five utterances of different lengths, one shorter than a chunk and one of whole chunks."""
    return [sound(seconds, seed=seed) for seed, seconds in enumerate((3.0, 0.2, 2.2, 5.12, 1.0))]
