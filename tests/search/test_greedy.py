"""Label looping against the textbook search: one stream, one frame, one token at a time."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import needs_numba
from talkative import runtime_of, talkative_model
from textbook import textbook

from sumix_stream.config import EncoderConfig, ModelConfig, PredictorConfig
from sumix_stream.runtime import torch_greedy
from sumix_stream.runtime.base import Runtime
from sumix_stream.search import greedy
from sumix_stream.search.greedy import Emissions, fresh_state, greedy_decode
from sumix_stream.search.options import SearchOptions
from sumix_stream.tasks.build import build_model
from sumix_stream.trees import leaves, map_leaves


def common(runtime: Runtime) -> Runtime:
    """Without a search of its own."""
    runtime.search_greedily = None
    return runtime


def make(kind: str, model: object = None) -> Runtime:
    return common(runtime_of(model)) if kind == "common" else runtime_of(model, kind)


@pytest.fixture(scope="module", params=["common", "torch", pytest.param("compiled", marks=needs_numba)])
def runtime(request) -> Runtime:
    return make(request.param)


def frames(*lengths: int, dim: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Encoder frames like LayerNormed ones; what is past a length is not zero, so that looking at it shows."""
    return torch.randn(len(lengths), max(lengths), dim).numpy(), np.array(lengths)


def same(actual: Emissions, expected: Emissions) -> None:
    assert actual.tokens == expected.tokens
    assert actual.frames == expected.frames
    assert actual.confidence == pytest.approx(expected.confidence, abs=1e-5)


@pytest.mark.parametrize("max_symbols", [1, 2, 5])
def test_batch_of_unequal_lengths_equals_textbook(runtime, max_symbols):
    enc, lengths = frames(1, 7, 40, 8, 0, 33, 9)
    found, _ = greedy_decode(runtime, enc, lengths, options=SearchOptions(max_symbols=max_symbols))
    expected = [
        textbook(talkative_model(), torch.from_numpy(x[:n]), max_symbols) for x, n in zip(enc, lengths, strict=True)
    ]
    for actual, reference in zip(found, expected, strict=True):
        same(actual, reference)
    assert sum(len(e.tokens) for e in expected) > 20
    per_frame = np.bincount(expected[2].frames)
    assert per_frame.max() == max_symbols or max_symbols == 5, "the limit was never met"
    assert (per_frame == 0).any(), "no frame was blank"


@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("module", [greedy, torch_greedy], ids=["common", "torch"])
def test_window_changes_nothing(monkeypatch, module, window):
    runtime = make(module.__name__.rpartition(".")[2].replace("torch_greedy", "torch").replace("greedy", "common"))
    enc, lengths = frames(30, 17)
    expected, _ = greedy_decode(runtime, enc, lengths)
    monkeypatch.setattr(module, "WINDOW", window)
    for actual, reference in zip(greedy_decode(runtime, enc, lengths)[0], expected, strict=True):
        same(actual, reference)


@pytest.mark.parametrize("pieces", [[1] * 36, [4] * 9, [35, 1], [10, 0, 26]], ids=str)
def test_in_pieces_equals_whole(runtime, pieces):
    enc, lengths = frames(36, 36, 36)
    expected, _ = greedy_decode(runtime, enc, lengths)
    state, offset = None, 0
    joined = [Emissions([], [], []) for _ in expected]
    for piece in np.split(enc, np.cumsum(pieces)[:-1], axis=1):
        found, state = greedy_decode(runtime, piece, np.full(3, piece.shape[1]), state)
        for all_of, new in zip(joined, found, strict=True):
            all_of.tokens.extend(new.tokens)
            all_of.frames.extend(offset + frame for frame in new.frames)
            all_of.confidence.extend(new.confidence)
        offset += piece.shape[1]
    for actual, reference in zip(joined, expected, strict=True):
        same(actual, reference)


def test_streams_join_and_leave(runtime):
    enc, _ = frames(24, 24)
    expected, _ = greedy_decode(runtime, enc, np.array([24, 24]))
    first, early = greedy_decode(runtime, enc[:1, :8], np.array([8]))
    both = map_leaves(lambda *parts: np.concatenate(parts), early, fresh_state(runtime, 1))
    mixed = np.stack([enc[0, 8:24], enc[1, :16]])
    second, both = greedy_decode(runtime, mixed, np.array([16, 16]), both)
    third, _ = greedy_decode(runtime, enc[1:, 16:], np.array([8]), map_leaves(lambda part: part[1:], both))
    assert first[0].tokens + second[0].tokens == expected[0].tokens
    assert second[1].tokens + third[0].tokens == expected[1].tokens


def test_a_stream_that_gets_no_frames_keeps_its_state(runtime):
    enc, _ = frames(12, 12)
    _, state = greedy_decode(runtime, enc, np.array([12, 12]))
    found, after = greedy_decode(runtime, enc, np.array([0, 12]), state)
    assert found[0] == Emissions([], [], [])
    assert found[1].tokens
    assert np.array_equal(after.projection[0], state.projection[0])
    assert np.array_equal(after.predictor.cell[0], state.predictor.cell[0])
    assert not np.array_equal(after.predictor.cell[1], state.predictor.cell[1])


def test_no_frames_at_all(runtime):
    found, _ = greedy_decode(runtime, np.zeros((2, 0, 32), np.float32), np.array([0, 0]))
    assert found == [Emissions([], [], [])] * 2


@pytest.mark.parametrize("kind", ["common", "torch", pytest.param("compiled", marks=needs_numba)])
def test_always_a_token_ends_by_max_symbols(kind):
    talker = deepcopy(talkative_model(seed=1))
    with torch.no_grad():
        talker.joiner.output.bias[0] = -1e4
    enc, lengths = frames(6)
    found, _ = greedy_decode(make(kind, talker), enc, lengths, options=SearchOptions(max_symbols=3))
    assert found[0].frames == sorted([*range(6)] * 3)


def test_another_method_is_refused(runtime):
    with pytest.raises(ValueError, match="method must be greedy"):
        greedy_decode(runtime, *frames(3), options=SearchOptions(method="modified_beam"))


def test_state_size(runtime):
    _, state = greedy_decode(runtime, *frames(5))
    sizes = [sum(part.nbytes for part in leaves(each)) for each in (state, fresh_state(runtime, 1))]
    assert sizes == [4 * (32 + 24 + 24)] * 2


@needs_numba
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_compiled_search_with_every_option(num_layers):
    """A joiner wider than the vocabulary, odd sizes, several layers; what each option changes, it changes alike."""
    config = ModelConfig(
        encoder=EncoderConfig(dim=32, num_layers=1, ffn_dim=32, conv_kernel=3, subsampling_channels=4),
        predictor=PredictorConfig(embed_dim=11, hidden_dim=13, num_layers=num_layers),
        joiner_dim=41,
    )
    model = build_model(config, vocab_size=37, seed=num_layers)
    with torch.no_grad():
        model.joiner.output.bias[0] = 1.0
        model.joiner.output.weight *= 4
    runtimes, seen = [make("common", model), make("compiled", model)], set()
    enc, lengths = frames(1, 40, 33, 0, 90)
    for options in (
        SearchOptions(),
        SearchOptions(blank_penalty=2.5),
        SearchOptions(blank_penalty=-1.0, temperature=3.0),
        SearchOptions(max_symbols=1),
    ):
        (expected, before), (found, after) = (greedy_decode(each, enc, lengths, options=options) for each in runtimes)
        for actual, reference in zip(found, expected, strict=True):
            same(actual, reference)
        for mine, theirs in zip(leaves(after), leaves(before), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=0)
        seen.add(str(expected))
    assert len(seen) == 4, "each option has an effect"


@needs_numba
def test_compiled_search_gives_the_same_bits_in_every_batch():
    runtime = make("compiled")
    enc, lengths = frames(40, 31, 8, 40)
    together, _ = greedy_decode(runtime, enc, lengths)
    for b in range(4):
        assert greedy_decode(runtime, enc[b : b + 1], lengths[b : b + 1])[0] == [together[b]]


@needs_numba
def test_compiled_search_ends_on_numbers_that_are_none():
    """A broken model must not hold up the others of its batch, nor read beyond its arrays."""
    runtime = make("compiled")
    enc, lengths = frames(9, 9)
    enc[0, 3:] = float("nan")
    found, _ = greedy_decode(runtime, enc, lengths, options=SearchOptions(max_symbols=3))
    assert found[1] == greedy_decode(runtime, enc[1:], lengths[1:], options=SearchOptions(max_symbols=3))[0][0]
    assert all(0 < token < runtime.vocab_size for token in found[0].tokens)
