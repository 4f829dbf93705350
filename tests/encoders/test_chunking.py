import subprocess
import sys
from collections import Counter

import pytest
import torch

from sumix_stream.config import ChunkConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.chunking import ChunkSampler


@pytest.mark.parametrize(
    ("text", "frames"), [("full", None), ("640ms", 16), ("0.64s", 16), ("16", 16), (16, 16), (" 40MS ", 1), ("1s", 25)]
)
def test_parse(text, frames):
    assert ChunkContext.parse(text, left_context=4) == ChunkContext(frames, 4)


def test_a_duration_between_frames_names_both_neighbours():
    with pytest.raises(ValueError, match=r"600 ms.*640 ms|640 ms.*680 ms"):
        ChunkContext.parse("650ms")


@pytest.mark.parametrize("text", ["dynamic", "16 frames", "-1", "0", "0ms", "640 m", ""])
def test_refused(text):
    with pytest.raises(ValueError):
        ChunkContext.parse(text)


@pytest.mark.parametrize(("chunk", "left"), [(0, None), (-4, 1), (16, -1), (True, 1)])
def test_impossible_contexts(chunk, left):
    with pytest.raises(ValueError, match="must be an integer"):
        ChunkContext(chunk, left)


def test_chunking_imports_no_torch():
    code = "import sys, sumix_stream.encoders.chunking; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_draws_depend_on_seed_and_step_only():
    first, again, other = (ChunkSampler(ChunkConfig(), seed) for seed in (1, 1, 2))
    steps = range(50)
    assert [first.draw(s) for s in steps] == [again.draw(s) for s in reversed(steps)][::-1]
    assert [first.draw(s) for s in steps] != [other.draw(s) for s in steps]


def test_draws_follow_the_distribution():
    draws = [ChunkSampler(ChunkConfig(), 0).draw(step) for step in range(4000)]
    full = [d for d in draws if d.chunk_size is None]
    chunked = [d for d in draws if d.chunk_size is not None]
    limited = [d for d in chunked if d.left_context is not None]
    # Five standard deviations of a binomial.
    assert abs(len(full) / 4000 - 0.4) < 5 * (0.24 / 4000) ** 0.5
    assert abs(len(limited) / len(chunked) - 0.75) < 5 * (0.1875 / len(chunked)) ** 0.5
    assert all(d.left_context is None for d in full)
    assert set(Counter(d.chunk_size for d in chunked)) == set(range(8, 33))
    assert set(Counter(d.left_context for d in limited)) == set(range(2, 33))


def test_a_context_for_each_utterance():
    sampler = ChunkSampler(ChunkConfig(per_utterance=True), 0)
    context = sampler.draw(3, batch_size=64)
    assert context.chunk_size.shape == context.left_context.shape == (64,)
    assert len(set(context.chunk_size.tolist())) > 5
    assert torch.equal(context.chunk_size, sampler.draw(3, batch_size=64).chunk_size)
    assert sampler.draw(3) == sampler.draw(3), "without a batch size: one context"
