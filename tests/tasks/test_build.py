import pytest
import torch

from sumix_stream.config import PRESETS, EncoderConfig, ModelConfig
from sumix_stream.tasks.build import build_model


def test_equal_arguments_give_equal_weights_and_leave_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    first, second = build_model("tiny", 20, seed=3), build_model("tiny", 20, seed=3)
    assert torch.equal(torch.randn(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(next(build_model("tiny", 20, seed=4).parameters()), next(first.parameters()))
    assert not first.training


@pytest.mark.parametrize(("preset", "least", "most"), [("tiny", 1.0, 4.0), ("small", 8, 13), ("medium", 24, 38)])
def test_preset_sizes(preset, least, most):
    with torch.device("meta"):
        from sumix_stream.tasks.transducer.model import Transducer

        millions = Transducer(PRESETS[preset], 500).num_parameters / 1e6
    assert least <= millions <= most


def test_large_is_the_papers_shape():
    large = PRESETS["large"]
    assert (large.encoder.num_layers, large.encoder.dim, large.encoder.ffn_dim) == (12, 512, 2048)
    assert (large.predictor.hidden_dim, large.joiner_dim) == (512, 640)


def test_bad_arguments():
    with pytest.raises(ValueError, match="tiny, small, medium, large"):
        build_model("huge")
    with pytest.raises(ValueError, match="vocab_size"):
        build_model("tiny", vocab_size=1)


def test_normalisation_is_stored_with_the_model_and_checked():
    model = build_model("tiny", 20)
    model.set_normalisation(torch.full((80,), -7.0), torch.full((80,), 3.0))
    assert model.state_dict()["encoder.subsampling.feature_mean"][0] == -7
    with pytest.raises(ValueError, match="std"):
        model.set_normalisation(torch.zeros(80), torch.zeros(80))
    with pytest.raises(ValueError, match="mean"):
        model.set_normalisation(torch.full((80,), float("nan")), torch.ones(80))


@pytest.mark.parametrize("vocab_size", [2, 12, 500])
def test_an_untrained_model_expects_blank(vocab_size):
    model = build_model("tiny", vocab_size)
    for head in (model.joiner.output, model.simple_lm, model.ctc_head):
        assert head.bias.softmax(0)[model.blank_id].item() == pytest.approx(0.9, abs=1e-5)


@pytest.mark.parametrize("mixer", ["summary", "attention"])
def test_residual_branches_start_smaller_the_deeper_the_model(mixer):
    """Each layer adds four branches; their output weights shrink so that the sum keeps its variance."""
    rms = {}
    for depth in (1, 4):
        config = ModelConfig(encoder=EncoderConfig(num_layers=depth, mixer=mixer))
        layer = build_model(config, 5).encoder.layers[0]
        rms[depth] = [output.weight.square().mean().sqrt().item() for output in layer.residual_outputs]
    for shallow, deep in zip(rms[1], rms[4], strict=True):
        assert deep == pytest.approx(shallow / 2, rel=0.05)
