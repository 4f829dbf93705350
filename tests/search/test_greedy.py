"""Label looping against the textbook search: one stream, one frame, one token at a time."""

import sys

import pytest
import torch
from conftest import needs_numba
from talkative import talkative_model
from torch import Tensor

import sumix_kernels
from sumix_stream.config import EncoderConfig, ModelConfig, PredictorConfig
from sumix_stream.encoders import states
from sumix_stream.runtime.packed import pack
from sumix_stream.search import greedy
from sumix_stream.search.compiled_greedy import can_compile
from sumix_stream.search.greedy import Emissions, GreedyState, greedy_decode
from sumix_stream.search.options import SearchOptions
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.transducer.model import Transducer


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=needs_numba)], ids=["batched", "compiled"])
def model(request) -> Transducer:
    return pack(talkative_model()) if request.param else talkative_model()


def textbook(model: Transducer, enc: Tensor, max_symbols: int) -> Emissions:
    """enc (T, D) of one utterance; joiner and predictor called as the equations say."""
    result = Emissions([], [], [])
    with torch.inference_mode():
        pred = model.predictor(torch.zeros(1, 0, dtype=torch.int64))[:, -1]
        for frame, x in enumerate(enc):
            for _ in range(max_symbols):
                probabilities = model.joiner(x[None], pred)[0].softmax(-1)
                token = int(probabilities.argmax())
                if token == model.blank_id:
                    break
                result.tokens.append(token)
                result.frames.append(frame)
                result.confidence.append(float(probabilities[token]))
                pred = model.predictor(torch.tensor([result.tokens]))[:, -1]
    return result


def frames(*lengths: int, dim: int = 32) -> tuple[Tensor, Tensor]:
    """Encoder frames like LayerNormed ones; what is past a length is not zero, so that looking at it shows."""
    return torch.randn(len(lengths), max(lengths), dim), torch.tensor(lengths)


def same(actual: Emissions, expected: Emissions) -> None:
    assert actual.tokens == expected.tokens
    assert actual.frames == expected.frames
    assert actual.confidence == pytest.approx(expected.confidence, abs=1e-5)


@pytest.mark.parametrize("max_symbols", [1, 2, 5])
def test_batch_of_unequal_lengths_equals_textbook(model, max_symbols):
    enc, lengths = frames(1, 7, 40, 8, 0, 33, 9)
    found, _ = greedy_decode(model, enc, lengths, options=SearchOptions(max_symbols=max_symbols))
    expected = [textbook(model, x[:n], max_symbols) for x, n in zip(enc, lengths, strict=True)]
    for actual, reference in zip(found, expected, strict=True):
        same(actual, reference)
    assert sum(len(e.tokens) for e in expected) > 20
    per_frame = torch.tensor(expected[2].frames).bincount()
    assert per_frame.max() == max_symbols or max_symbols == 5, "the limit was never met"
    assert (per_frame == 0).any(), "no frame was blank"


@pytest.mark.parametrize("window", [1, 3, 100])
def test_window_changes_nothing(monkeypatch, window):
    model = talkative_model()
    enc, lengths = frames(30, 17)
    expected, _ = greedy_decode(model, enc, lengths)
    monkeypatch.setattr(greedy, "WINDOW", window)
    for actual, reference in zip(greedy_decode(model, enc, lengths)[0], expected, strict=True):
        same(actual, reference)


@pytest.mark.parametrize("pieces", [[1] * 36, [4] * 9, [35, 1], [10, 0, 26]], ids=str)
def test_in_pieces_equals_whole(model, pieces):
    enc, lengths = frames(36, 36, 36)
    expected, _ = greedy_decode(model, enc, lengths)
    state, offset = None, 0
    joined = [Emissions([], [], []) for _ in expected]
    for piece in enc.split(pieces, dim=1):
        found, state = greedy_decode(model, piece, torch.full((3,), piece.shape[1]), state)
        for all_of, new in zip(joined, found, strict=True):
            all_of.tokens.extend(new.tokens)
            all_of.frames.extend(offset + frame for frame in new.frames)
            all_of.confidence.extend(new.confidence)
        offset += piece.shape[1]
    for actual, reference in zip(joined, expected, strict=True):
        same(actual, reference)


def test_streams_join_and_leave(model):
    enc, _ = frames(24, 24)
    expected, _ = greedy_decode(model, enc, torch.tensor([24, 24]))
    first, early = greedy_decode(model, enc[:1, :8], torch.tensor([8]))
    both = GreedyState.stack([early, GreedyState.init(model, 1)])
    mixed = torch.stack([enc[0, 8:24], enc[1, :16]])
    second, both = greedy_decode(model, mixed, torch.tensor([16, 16]), both)
    third, _ = greedy_decode(model, enc[1:, 16:], torch.tensor([8]), both.unstack()[1])
    assert first[0].tokens + second[0].tokens == expected[0].tokens
    assert second[1].tokens + third[0].tokens == expected[1].tokens


def test_a_stream_that_gets_no_frames_keeps_its_state(model):
    enc, _ = frames(12, 12)
    _, state = greedy_decode(model, enc, torch.tensor([12, 12]))
    found, after = greedy_decode(model, enc, torch.tensor([0, 12]), state)
    assert found[0] == Emissions([], [], [])
    assert found[1].tokens
    assert torch.equal(after.projection[0], state.projection[0])
    assert torch.equal(after.predictor.cell[0], state.predictor.cell[0])
    assert not torch.equal(after.predictor.cell[1], state.predictor.cell[1])


def test_no_frames_at_all(model):
    found, _ = greedy_decode(model, torch.zeros(2, 0, 32), torch.tensor([0, 0]))
    assert found == [Emissions([], [], [])] * 2


def test_always_a_token_ends_by_max_symbols(model):
    talker = talkative_model(seed=1)
    with torch.no_grad():
        blank = talker.joiner.output.bias[0].item()
        talker.joiner.output.bias[0] = -1e4
        enc, lengths = frames(6)
        found, _ = greedy_decode(talker, enc, lengths, options=SearchOptions(max_symbols=3))
        talker.joiner.output.bias[0] = blank
    assert found[0].frames == sorted([*range(6)] * 3)


def test_another_method_is_refused(model):
    with pytest.raises(ValueError, match="method must be greedy"):
        greedy_decode(model, *frames(3), options=SearchOptions(method="modified_beam"))


def test_state_size(model):
    _, state = greedy_decode(model, *frames(5))
    assert state.nbytes == GreedyState.init(model, 1).nbytes == 4 * (32 + 24 + 24)


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
    packed, seen = pack(model), set()
    enc, lengths = frames(1, 40, 33, 0, 90)
    for options in (
        SearchOptions(),
        SearchOptions(blank_penalty=2.5),
        SearchOptions(blank_penalty=-1.0, temperature=3.0),
        SearchOptions(max_symbols=1),
    ):
        (expected, before), (found, after) = (
            greedy_decode(each, enc, lengths, options=options) for each in (model, packed)
        )
        for actual, reference in zip(found, expected, strict=True):
            same(actual, reference)
        for mine, theirs in zip(states.tensors(after), states.tensors(before), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
        seen.add(str(expected))
    assert len(seen) == 4, "each option has an effect"


@needs_numba
def test_compiled_search_gives_the_same_bits_in_every_batch():
    model = pack(talkative_model())
    enc, lengths = frames(40, 31, 8, 40)
    together, _ = greedy_decode(model, enc, lengths)
    for b in range(4):
        assert greedy_decode(model, enc[b : b + 1], lengths[b : b + 1])[0] == [together[b]]


@needs_numba
def test_compiled_search_ends_on_numbers_that_are_none():
    """A broken model must not hold up the others of its batch, nor read beyond its arrays."""
    model = pack(talkative_model())
    enc, lengths = frames(9, 9)
    enc[0, 3:] = float("nan")
    found, _ = greedy_decode(model, enc, lengths, options=SearchOptions(max_symbols=3))
    assert found[1] == greedy_decode(model, enc[1:], lengths[1:], options=SearchOptions(max_symbols=3))[0][0]
    assert all(0 < token < model.vocab_size for token in found[0].tokens)


def test_without_numba_packed_models_search_in_batches(monkeypatch):
    model = pack(talkative_model())
    enc, lengths = frames(40, 31)
    expected, _ = greedy_decode(talkative_model(), enc, lengths)
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in [name for name in sys.modules if name.startswith("sumix_kernels.cpu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sumix_kernels, "cpu", raising=False)
    assert not can_compile(model)
    for actual, reference in zip(greedy_decode(model, enc, lengths)[0], expected, strict=True):
        same(actual, reference)
