"""A packed model is the model, but for rounding."""

import pytest
import torch
from talkative import MIXERS, LetterTokenizer, sound, talkative_model
from torch import nn

from sumix_stream.config import ModelConfig, PredictorConfig
from sumix_stream.context import ChunkContext
from sumix_stream.runtime.packed import PackedLinear, PackedPredictor, has_bf16_products, pack
from sumix_stream.streaming.stream import StreamingRecognizer
from sumix_stream.tasks.build import build_model

needs_bf16 = pytest.mark.skipif(not has_bf16_products(), reason="this processor has no bfloat16 products")
CONTEXT = ChunkContext(8, 2)
WINDOW = 32


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("batch_size", [1, 3, 8, 17])
@torch.inference_mode()
def test_steps_are_equal(mixer, batch_size):
    torch.manual_seed(batch_size)
    model = talkative_model(mixer)
    packed = pack(model)
    assert any(isinstance(part, PackedLinear) for part in packed.modules())
    states = [each.encoder.init_state(batch_size, CONTEXT) for each in (model, packed)]
    lengths = torch.full((batch_size,), WINDOW)
    for n in range(3):
        feats = torch.randn(batch_size, WINDOW, 80)
        if n == 2:
            lengths = lengths - torch.arange(batch_size)
        (expected, sizes, states[0]), (out, out_sizes, states[1]) = (
            each.encoder.step(feats, lengths, state, final=n == 2)
            for each, state in zip((model, packed), states, strict=True)
        )
        assert torch.equal(sizes, out_sizes)
        torch.testing.assert_close(out, expected, atol=2e-5, rtol=0)
        for row, size in enumerate(out_sizes.tolist()):
            assert not out[row, size:].any(), "padded frames are zero"


def test_the_joiner_and_empty_batches():
    model = talkative_model()
    packed = pack(model)
    with torch.inference_mode():
        for shape in ((3, 5), (0, 5), (2, 0), ()):
            enc, pred = torch.randn(*shape, 32), torch.randn(*shape, 24)
            torch.testing.assert_close(packed.joiner(enc, pred), model.joiner(enc, pred), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2])
@torch.inference_mode()
def test_predictor_steps_are_equal(num_layers):
    torch.manual_seed(num_layers)
    config = ModelConfig(predictor=PredictorConfig(embed_dim=12, hidden_dim=20, num_layers=num_layers))
    model = build_model(config, vocab_size=30)
    packed = pack(model).predictor
    assert isinstance(packed, PackedPredictor)
    states = [each.init_state(7) for each in (model.predictor, packed)]
    for _ in range(6):
        tokens = torch.randint(30, (7,))
        (expected, states[0]), (out, states[1]) = (
            each.step(tokens, state) for each, state in zip((model.predictor, packed), states, strict=True)
        )
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
        for mine, theirs in zip(states[1], states[0], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)
    none = torch.zeros(0, dtype=torch.int64)
    assert packed.step(none, packed.init_state(0))[0].shape == (0, 20)


def test_the_model_itself_is_left_as_it_was():
    model = talkative_model()
    packed = pack(model)
    assert not any(isinstance(part, PackedLinear) for part in model.modules())
    assert model.encoder.subsampling.block_size is None
    before, after = model.state_dict(), packed.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert packed.encoder.layers[0].conv.out.weight is model.encoder.layers[0].conv.out.weight


def test_gradients_and_other_types_go_the_plain_way():
    linear = nn.Linear(6, 5)
    packed, x = PackedLinear(linear), torch.randn(4, 6, requires_grad=True)
    packed(x).sum().backward()
    torch.testing.assert_close(x.grad, linear.weight.sum(0).expand(4, 6))
    assert linear.weight.grad is not None
    half = nn.Linear(6, 5).bfloat16()
    assert pack(half) is half


def test_rows_are_filled_up_and_taken_off_again():
    torch.manual_seed(0)
    linear = nn.Linear(12, 7)
    packed = pack(nn.Sequential(linear))
    with torch.inference_mode():
        for shape in ((1,), (3,), (8,), (9,), (127,), (129,), (2, 65), (513,), (3, 171)):
            x = torch.randn(*shape, 12)
            torch.testing.assert_close(packed(x), linear(x), rtol=1e-5, atol=1e-6)


def test_every_batch_size_gives_what_each_stream_gets_alone():
    """Sizes that are filled up and sizes that are not, streams at their end among them."""
    recognizer = StreamingRecognizer(pack(talkative_model()), LetterTokenizer(), ChunkContext(8, 2))
    for count in (1, 7, 9, 33, 70):
        streams = [recognizer.create_stream() for _ in range(count)]
        for n, stream in enumerate(streams):
            stream.accept(16_000, sound(0.7 + 0.01 * n, seed=n % 5))
            if n % 3 == 0:
                stream.input_finished()
        while recognizer.decode(streams):
            pass
        for n in {0, count // 2, count - 1}:
            alone = recognizer.create_stream()
            alone.accept(16_000, sound(0.7 + 0.01 * n, seed=n % 5))
            if n % 3 == 0:
                alone.input_finished()
            while recognizer.decode([alone]):
                pass
            assert streams[n].emissions.tokens == alone.emissions.tokens and streams[n].num_encoded == alone.num_encoded


def _two_chunks(encoder, feats: torch.Tensor) -> torch.Tensor:
    state, outs = encoder.init_state(len(feats), CONTEXT), []
    for part in feats.split(WINDOW, 1):
        out, _, state = encoder.step(part, torch.full((len(feats),), WINDOW), state)
        outs.append(out)
    return torch.cat(outs, 1)


@needs_bf16
@pytest.mark.parametrize("mixer", MIXERS)
@torch.inference_mode()
def test_bf16_is_the_model_but_for_its_rounding(mixer):
    """Eight bits of each factor are kept: errors of a step are a hundredth of the frames' size, and not zero."""
    torch.manual_seed(0)
    model = talkative_model(mixer)
    feats = torch.randn(5, 2 * WINDOW, 80)
    expected, out = (_two_chunks(each.encoder, feats) for each in (model, pack(model, "bf16")))
    error = ((out - expected).square().mean() / expected.square().mean()).sqrt()
    assert out.dtype == torch.float32 and 1e-4 < error < 2e-2


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize("mixer", MIXERS)
@torch.inference_mode()
def test_frames_are_the_same_bits_in_every_batch(mixer, precision):
    """In bf16 a last bit that depended on the batch would now and then move a factor by a two hundredth. oneDNN's
    products for AVX2 alone have such last bits."""
    atol = 0.0 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 1e-5
    torch.manual_seed(0)
    encoder = pack(talkative_model(mixer), precision).encoder
    feats = torch.randn(41, 2 * WINDOW, 80)
    among_all = _two_chunks(encoder, feats)
    for count in (1, 2, 3, 7, 8, 9, 17):
        torch.testing.assert_close(_two_chunks(encoder, feats[:count]), among_all[:count], atol=atol, rtol=0)


@needs_bf16
def test_bf16_is_of_the_encoder_alone():
    model = talkative_model()
    packed = pack(model, "bf16")
    assert pack(packed) is packed, "packed once"
    with torch.inference_mode():
        enc, pred = torch.randn(3, 5, 32), torch.randn(3, 5, 24)
        torch.testing.assert_close(packed.joiner(enc, pred), model.joiner(enc, pred), atol=1e-4, rtol=1e-5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, packed.state_dict()[name]), name


def test_bf16_is_refused_where_it_is_not_to_be_had(monkeypatch):
    with pytest.raises(ValueError, match="fp32, bf16"):
        pack(nn.Linear(2, 2), "fp16")
    with pytest.raises(ValueError, match="needs a CPU with bfloat16 products .*: use fp32"):
        pack(nn.Linear(2, 2, device="meta"), "bf16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx512_bf16": False})
    with pytest.raises(ValueError, match="bfloat16 products"):
        pack(nn.Linear(2, 2), "bf16")
