"""What the compiled runtime gives besides the encoder's numbers: the same bits in any batch, threads, bfloat16."""

import threading

import numpy as np
import pytest
from conftest import needs_numba
from talkative import talkative_model

from sumix_stream.context import ChunkContext
from sumix_stream.runtime import threads
from sumix_stream.runtime.registry import make_runtime
from sumix_stream.runtime.weights import Weights

pytestmark = needs_numba
CONTEXTS = [ChunkContext(8, 2), ChunkContext(8, None), ChunkContext(5, 0)]


def has_bf16() -> bool:
    try:
        from sumix_kernels.cpu import HAS_BF16
    except ImportError:
        return False
    return HAS_BF16


needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="this processor has no bfloat16 products")


def make(context: ChunkContext, precision: str = "fp32"):
    return make_runtime(Weights.of(talkative_model(), precision=precision), context, "compiled")


def noise(count: int, num_frames: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, num_frames, 80)).astype(np.float32)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_frames_are_the_same_bits_in_every_batch(context, precision):
    """And beside streams at their end."""
    runtime, window = make(context, precision), 4 * context.chunk_size
    feats = noise(41, 2 * window)

    def two_chunks(count: int, last: np.ndarray) -> np.ndarray:
        states, ends = [runtime.fresh_state()] * count, np.zeros(count, bool)
        first, states = runtime.encode(feats[:count, :window], np.full(count, window), states, ends)
        return np.concatenate([first, runtime.encode(feats[:count, window:], last[:count], states, ~ends)[0]], 1)

    whole = np.full(41, window)
    short = whole.copy()
    short[1::3] = window // 2
    among_all = two_chunks(41, whole)
    for count in (1, 2, 3, 7, 8, 9, 17):
        assert np.array_equal(two_chunks(count, whole), among_all[:count])
    others = short == whole
    assert np.array_equal(two_chunks(41, short)[others], among_all[others])


def test_threads_share_the_streams(monkeypatch):
    runtime, seen = make(ChunkContext(16, 4)), []
    given = noise(7, 64), np.full(7, 64), [runtime.fresh_state()] * 7, np.zeros(7, bool)
    alone, step = runtime.encode(*given), runtime._step

    def noted(*block):
        seen.append((threading.current_thread().name, len(block[0])))
        step(*block)

    monkeypatch.setattr(runtime, "_step", noted)
    monkeypatch.setattr(threads, "_threads", 3)
    together = runtime.encode(*given)
    assert [count for _, count in sorted(seen, key=lambda part: -part[1])] == [3, 3, 1]
    assert all(name.startswith("step") for name, _ in seen)
    assert np.array_equal(alone[0], together[0])
    assert all(np.array_equal(*pair) for pair in zip(alone[1], together[1], strict=True))


@needs_bf16
def test_bf16_is_the_model_but_for_its_rounding():
    given = noise(5, 32), np.full(5, 32)
    runs = [make(CONTEXTS[0], precision) for precision in ("fp32", "bf16")]
    expected, out = (run.encode(*given, [run.fresh_state()] * 5, np.zeros(5, bool))[0] for run in runs)
    error = np.sqrt(np.square(out - expected).mean() / np.square(expected).mean())
    assert out.dtype == np.float32 and 1e-4 < error < 2e-2
