import math

import pytest
import torch
from torch import nn

from sumix_stream.config import TrainConfig
from sumix_stream.encoders.mixers.attention import ChunkedAttention
from sumix_stream.train.optim import (
    default_learning_rate,
    learning_rate_at,
    make_optimizer,
    parameter_groups,
    warmup_steps,
)


def test_schedule_warms_up_and_falls_to_its_final_fraction():
    config = TrainConfig(max_steps=100, warmup_fraction=0.1, final_lr_fraction=0.05)
    rates = [learning_rate_at(step, 2.0, config, 30.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0)
    assert rates[:10] == sorted(set(rates[:10]))
    assert rates[9:] == sorted(set(rates[9:]), reverse=True)
    assert rates[54] == pytest.approx(2.0 * (0.05 + 0.95 * 0.5))  # half way down
    assert rates[99] == pytest.approx(0.1)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_schedule_without_warm_up_or_without_decay(fraction):
    config = TrainConfig(max_steps=10, warmup_fraction=fraction)
    rates = [learning_rate_at(step, 1.0, config, 30.0) for step in range(10)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == pytest.approx(1.0, abs=0.03)


def test_default_rate_falls_with_the_square_root_of_the_width_and_of_short_steps():
    assert default_learning_rate(144, 30.0) == default_learning_rate(144, 80.0) == pytest.approx(1e-3)
    assert default_learning_rate(576, 600.0) == pytest.approx(5e-4)
    assert default_learning_rate(144, 7.5) == pytest.approx(5e-4)
    assert default_learning_rate(576, 600.0, ChunkedAttention.peak_rate) == pytest.approx(3.5e-4)


def test_warm_up_in_hours_of_audio():
    config = TrainConfig(max_steps=1000, warmup_hours=1.0)
    assert warmup_steps(config, 30.0) == 120
    assert warmup_steps(config, 300.0) == 12
    assert warmup_steps(config, 1.0) == 1000  # the whole run
    assert learning_rate_at(59, 2.0, config, 30.0) == pytest.approx(1.0)
    assert warmup_steps(TrainConfig(max_steps=1000), 30.0) == 100


def test_only_weights_decay():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.linear = nn.Linear(4, 4)
            self.norm = nn.LayerNorm(4)
            self.lstm = nn.LSTM(4, 4)
            self.pos_bias = nn.Parameter(torch.zeros(2, 2))
            self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)

    model = Model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.1))
    assert decayed == {"linear.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0"}
    assert kept == set(names.values()) - decayed - {"frozen"}


def test_the_optimiser_itself_skips_a_flagged_update():
    model = nn.Linear(3, 1)
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.5))
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.1

    def update(factor, found_inf):
        (model(torch.ones(1, 3)).sum() * factor).backward()
        optimizer.found_inf = torch.tensor(found_inf)
        optimizer.step()
        optimizer.zero_grad()
        return model.weight.detach().clone()

    first = update(1.0, 0.0)
    moments = {key: value.clone() for key, value in optimizer.state[model.weight].items()}
    assert torch.equal(update(math.nan, 1.0), first)
    assert all(torch.equal(value, moments[key]) for key, value in optimizer.state[model.weight].items())
    assert not torch.equal(update(1.0, 0.0), first)
