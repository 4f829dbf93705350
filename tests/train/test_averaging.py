import pytest
import torch
from torch import nn

from sumix_stream.config import ConfigError, TrainConfig
from sumix_stream.train.averaging import WeightAverage, decay_at


def walk(config, steps, dtype=torch.float64):
    """The average after `steps` random weights, and the weights."""
    model = nn.Linear(3, 2)
    average, seen = WeightAverage(model, config), []
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3))
        seen.append(model.weight.detach().to(dtype).clone())
        average.update(step)
    return average.tensors()["weight"], torch.stack(seen)


@pytest.mark.parametrize("age", [0.5, 0.25, 0.1])
def test_growing_average_weighs_steps_by_their_number(age):
    """Against its closed form: the products of the decays telescope; the mean age is the one asked for."""
    average, seen = walk(TrainConfig(average="growing", average_age=age), 400)
    t = torch.arange(1, 401, dtype=torch.float64)
    shares = (t ** (1 / age - 1) - (t - 1) ** (1 / age - 1)) / 400 ** (1 / age - 1)
    assert torch.allclose(average.double(), torch.einsum("t,tij->ij", shares, seen), atol=1e-5)
    assert ((400 - t) * shares).sum() / 400 == pytest.approx(age, abs=0.005)


def test_ema_forgets_as_it_says_and_starts_short():
    config = TrainConfig(average="ema", ema_decay=0.9)
    average, seen = walk(config, 200)
    shares = torch.ones(200, dtype=torch.float64)
    for t in range(200):
        shares[t] = 1 - decay_at(t + 1, config)
        shares[:t] *= decay_at(t + 1, config)
    assert shares.sum() == pytest.approx(1)
    assert shares[-1] == pytest.approx(0.1) and shares[-11] / shares[-1] == pytest.approx(0.9**10)
    assert torch.allclose(average.double(), torch.einsum("t,tij->ij", shares, seen), atol=1e-6)
    assert decay_at(1, config) == 0 and decay_at(2, config) == 3 / 12  # the first steps count for little


def test_applied_averages_come_and_go_bit_for_bit():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, TrainConfig(average="ema", ema_decay=0.5))
    for step in (1, 2, 3):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(step)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), average.applied():
        assert torch.equal(model.weight, average.tensors()["weight"])
        assert not torch.equal(model.weight, own["weight"])
        raise KeyboardInterrupt
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_half_precision_weights_are_averaged_in_fp32():
    model = nn.Linear(4, 4).bfloat16()
    average = WeightAverage(model, TrainConfig(average="ema"))
    assert {value.dtype for value in average.tensors().values()} == {torch.float32}
    average.update(1)
    with average.applied():
        assert model.weight.dtype == torch.bfloat16


def test_restoring():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, TrainConfig(average="growing"))
    saved = {name: torch.randn_like(value) for name, value in average.tensors().items()}
    average.restore(saved)
    assert all(torch.equal(value, saved[name]) for name, value in average.tensors().items())
    average.restore(None)
    assert torch.equal(average.tensors()["weight"], model.weight)
    with pytest.raises(ValueError, match="another model: bias"):
        average.restore({"weight": saved["weight"]})
    with pytest.raises(ValueError, match=r"another model: weight is \(3, 2\)"):
        average.restore({**saved, "weight": saved["weight"].T})


def test_frozen_parameters_stay_out_and_batch_normalisation_is_refused():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    assert list(WeightAverage(model, TrainConfig(average="ema")).tensors()) == ["weight"]
    with pytest.raises(ValueError, match="1 is BatchNorm1d: set train.average none"):
        WeightAverage(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), TrainConfig(average="ema"))


@pytest.mark.parametrize("values", [{"average": "mean"}, {"ema_decay": 1.0}, {"average_age": 0.6}, {"keep_last": 0}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        TrainConfig(**values)
