"""Every runtime that can run a model under a context computes `Encoder.forward`, in batches of streams of any age, and
finds the tokens of a search by the book."""

from functools import cache
from itertools import count

import numpy as np
import pytest
import torch
from talkative import KINDS, MIXERS, sound, talkative_model
from textbook import textbook

from sumix_stream.context import ChunkContext
from sumix_stream.features import whole_fbank
from sumix_stream.runtime.base import Runtime, plain
from sumix_stream.runtime.bundle import open_bundle
from sumix_stream.runtime.registry import NAMES, RUNTIMES, as_context, make_runtime, reason_against
from sumix_stream.runtime.weights import Weights
from sumix_stream.search.base import GreedySearch
from sumix_stream.search.greedy import Emissions, fresh_state, search_common

FULL, FINITE = ChunkContext(None, None), ChunkContext(8, 2)
SECONDS = (2.0, 0.3, 0.01, 1.28, 2.57, 0.64)
BEGIN = (0, 1, 1, 2, 2, 2)  # turn
CHECKPOINTS = [kind for kind in RUNTIMES if kind != "onnx"]
CASES = [
    (kind, mixer, context)
    for kind in CHECKPOINTS
    for mixer in MIXERS
    for context in (FINITE, ChunkContext(8, None), ChunkContext(5, 0), ChunkContext(1, 1), FULL)
    if reason_against(kind, Weights.of(talkative_model(mixer)), context) is None
] + [
    (kind, other, context)
    for kind in CHECKPOINTS
    for other in KINDS
    for context in (FINITE, ChunkContext(5, None), *([FULL] if other in ("by eight", "branchformer") else []))
    if reason_against(kind, Weights.of(talkative_model(other)), context) is None
]
BUNDLES = [  # some of those that tests/export makes
    ("sherpa-onnx", "fast", ChunkContext(8, 2)),
    ("onnx", "fast", ChunkContext(8, 0)),
    *(
        pytest.param("onnx", other, FINITE, marks=pytest.mark.slow)
        for other in ("full, decay, norms", "branchformer, none")
    ),
    *(
        pytest.param("sherpa-onnx", mixer, context, marks=pytest.mark.slow)
        for mixer, context in [("lite", ChunkContext(16, 1)), ("expdecay", FINITE), ("attention", ChunkContext(8, 1))]
    ),
]


@cache
def features() -> list[np.ndarray]:
    return [whole_fbank(sound(seconds, seed=seed)) for seed, seconds in enumerate(SECONDS)]


@cache
def expected(mixer: str, context: ChunkContext) -> list[tuple[np.ndarray, Emissions]]:
    """Of each utterance alone: encoder frames (T, D) by the masked forward, and the tokens in them."""
    model, found = talkative_model(mixer), []
    for feats in features():
        with torch.inference_mode():
            frames, _ = model.encoder(torch.from_numpy(feats)[None], torch.tensor([len(feats)]), context)
        found.append((frames[0].numpy(), textbook(model, frames[0])))
    return found


def check(runtime: Runtime, mixer: str) -> None:
    """Each stream begins a turn after the one before it, and is alone, or among others of other ages."""
    utterances, search = features(), GreedySearch(runtime)
    window = max(map(len, utterances))
    if runtime.context.chunk_size is not None:
        window = runtime.timebase.feature_frames_per_chunk(runtime.context.chunk_size)
    states, begun = [runtime.fresh_state() for _ in utterances], [0] * len(utterances)
    searches, found, sizes = [search.begin() for _ in utterances], [[] for _ in utterances], set()
    for turn in count():
        rows = [i for i, feats in enumerate(utterances) if turn >= BEGIN[i] and begun[i] < len(feats)]
        if turn > 2 and not rows:
            break
        if not rows:
            continue
        chunks = [utterances[i][begun[i] : begun[i] + window] for i in rows]
        lengths = np.array([len(chunk) for chunk in chunks])
        feats = np.full((len(rows), lengths.max(), 80), np.nan, np.float32)
        for row, chunk in zip(feats, chunks, strict=True):
            row[: len(chunk)] = chunk
        feats = np.nan_to_num(feats, nan=7.0)  # what pads a chunk does not count
        final = np.array([begun[i] + window >= len(utterances[i]) for i in rows])
        before = [states[i] for i in rows]
        saved = [runtime.save(state) for state in before] if runtime.context.chunk_size else []
        frames, after = runtime.encode(feats, lengths, before, final)
        for state, parts in zip(before, saved, strict=False):
            kept = runtime.save(state)
            assert all(np.array_equal(kept[name], part) for name, part in parts.items()), "a step changed a state"
        num_frames = runtime.timebase.num_encoder_frames(lengths)
        search.advance(frames, num_frames, [sum(map(len, found[i])) for i in rows], [searches[i] for i in rows])
        for i, state, own, length in zip(rows, after, plain(frames), num_frames, strict=True):
            assert not own[length:].any(), "padded frames are zero"
            found[i].append(own[:length])
            states[i] = state
            begun[i] += window
        sizes.add(len(rows))
    assert len(sizes) > 1
    for parts, stream, (frames, emitted) in zip(found, searches, expected(mixer, runtime.context), strict=True):
        np.testing.assert_allclose(np.concatenate(parts), frames, atol=1e-4, rtol=0)
        mine = search.emissions(stream)
        assert mine.tokens == emitted.tokens and mine.frames == emitted.frames
        assert mine.confidence == pytest.approx(emitted.confidence, abs=1e-3)
    assert sum(len(emitted.tokens) for _, emitted in expected(mixer, runtime.context)) > 15


@pytest.mark.parametrize(("kind", "mixer", "context"), CASES, ids=str)
def test_a_checkpoint_s_runtime_is_the_encoder(kind, mixer, context, poisoned_memory):
    check(make_runtime(talkative_model(mixer), context, kind), mixer)


@pytest.mark.parametrize(("form", "mixer", "context"), BUNDLES, ids=str)
def test_a_bundle_s_runtime_is_the_encoder(form, mixer, context, bundle):
    runtime = make_runtime(open_bundle(bundle(form, mixer, context)), context)
    assert runtime.name == "onnx"
    check(runtime, mixer)
    with pytest.raises(ValueError, match="only where a stream ends"):
        runtime.encode(np.zeros((1, 3, 80), np.float32), np.array([3]), [runtime.fresh_state()], np.array([False]))
    with pytest.raises(ValueError, match="exported for chunks of .*not 3 frames"):
        make_runtime(runtime.bundle, ChunkContext(3, 1), "onnx")


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_own_searches_equal_the_common_one(kind):
    """With every option; in the states they leave as well."""
    runtime, rng = make_runtime(talkative_model(), ChunkContext(8, 2), kind), np.random.default_rng(3)
    frames, lengths, seen = rng.standard_normal((5, 40, 32)).astype(np.float32), np.array([1, 40, 33, 0, 7]), set()
    state = fresh_state(runtime, 5)
    for numbers in ((0.0, 1.0, 5), (2.5, 1.0, 5), (-1.0, 3.0, 5), (0.0, 1.0, 1)):
        expected, before = search_common(runtime, frames, lengths, state, *numbers)
        found, after = runtime.search_greedily(frames, lengths, state, *numbers)
        for mine, theirs in zip(found, expected, strict=True):
            assert mine[:2] == theirs[:2]
            assert mine[2] == pytest.approx(theirs[2], abs=1e-5)
        np.testing.assert_allclose(after.projection, before.projection, atol=1e-5)
        seen.add(str([own[0] for own in expected]))
    assert len(seen) >= 3, "options have an effect"


@pytest.mark.parametrize("left", [0, 2, None])
@pytest.mark.parametrize("kind", [kind for kind in CHECKPOINTS if kind != "torch"])
def test_states_move_between_runtimes(kind, left):
    context, feats = ChunkContext(8, left), features()[0][None, :64]
    runtimes = [make_runtime(talkative_model(), context, name) for name in (kind, "torch")]
    whole, last = np.array([32]), np.array([False])
    for one, other in (runtimes, runtimes[::-1]):
        _, (state,) = one.encode(feats[:, :32], whole, [one.fresh_state()], last)
        moved = other.load(one.save(state))
        frames = [plain(each.encode(feats[:, 32:], whole, [s], last)[0]) for each, s in ((one, state), (other, moved))]
        np.testing.assert_allclose(*frames, atol=2e-5)
        assert one.nbytes(state) == other.nbytes(moved)
    with pytest.raises(ValueError, match=r"missing.*layers.0.conv"):
        runtimes[0].load({name: part for name, part in one.save(state).items() if name != "layers.0.conv"})
    with pytest.raises(ValueError, match=r"layers.0.conv must be .*float64"):
        runtimes[0].load(one.save(state) | {"layers.0.conv": np.zeros((1, 3, 32))})


def test_a_named_runtime_runs_or_says_why_not(tmp_path, caplog):
    attention, fast = (Weights.of(talkative_model(mixer)) for mixer in ("attention", "fast"))
    context = ChunkContext(8, 2)
    with pytest.raises(ValueError, match="not compiled: mixer attention has not been compiled"):
        make_runtime(attention, context, "compiled")
    for other, reason in [
        ("lite", "variant lite"),
        ("none", "mixer none has not been compiled"),
        ("branchformer", "an encoder of kind branchformer has not been compiled"),
    ]:
        with pytest.raises(ValueError, match=f"not compiled: {reason}"):
            make_runtime(talkative_model(other), context, "compiled")
    with pytest.raises(ValueError, match=r"not compiled: encoder.summary_decay \(0.9\) has not been compiled"):
        make_runtime(talkative_model("fast", summary_decay=0.9), context, "compiled")
    with pytest.raises(ValueError, match="not onnx: it runs exported bundles"):
        make_runtime(fast, context, "onnx")
    with pytest.raises(ValueError, match="must be one of auto, compiled, onnx, torch, got 'cuda'"):
        make_runtime(fast, context, "cuda")
    with pytest.raises(ValueError, match=r"not torch: device 'warp' cannot be used"):
        make_runtime(Weights.of(talkative_model(), device="warp"), context, "torch")
    bf16 = Weights(fast.config, fast.vocab_size, fast.arrays, precision="bf16")
    with pytest.raises(ValueError, match="not torch: precision bf16"):
        make_runtime(bf16, context, "torch")
    with caplog.at_level("INFO"):
        assert make_runtime(attention, context).name == "torch"
        assert make_runtime(fast, context).name in ("compiled", "torch")
    assert "runtime torch, 8 frames, left 2 chunks (not onnx: it runs exported bundles" in caplog.text
    assert "mixer attention has not been compiled" in caplog.text


def test_a_missing_library_is_a_reason(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sumix_stream.runtime.torch", None)
    reason = reason_against("torch", Weights.of(talkative_model()), ChunkContext(8, 2))
    assert "is not installed: pip install 'sumix-stream[train]'" in reason
    assert set(NAMES) == {"auto", *RUNTIMES}


def test_default_contexts():
    model = talkative_model()
    assert as_context(model) == ChunkContext(16, 4)
    assert as_context(model, "320ms") == ChunkContext(8, 4)
    assert as_context(model, left_context=None) == ChunkContext(16, None)
    assert as_context(model, otherwise=("full", None)) == ChunkContext(None, None)
    assert as_context(model, "320ms", otherwise=("full", None)) == ChunkContext(8, None)
