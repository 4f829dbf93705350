"""Parts that stay as they are for some steps, and what fine-tuning changes of the default rate."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from train.fakes import FakeLoader, FakeModel, FakeTokenizer, fake_recipe

from sumix_stream.config import ConfigError
from sumix_stream.config.reader import from_dict, to_dict
from sumix_stream.train.loop import Trainer


class Watched(FakeModel):
    """Keeps the weights that each step begins with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, torch.Tensor]] = []

    def forward(self, *args):
        self.seen.append({name: value.detach().clone() for name, value in self.named_parameters()})
        return super().forward(*args)


def run(tmp_path, steps, **train):
    model = Watched()
    Trainer(fake_recipe(tmp_path, max_steps=steps, **train), model, FakeTokenizer(), FakeLoader()).fit()
    return model


def test_a_frozen_part_begins_to_move_after_its_steps(tmp_path):
    seen = run(tmp_path, 6, freeze={"inner": 3, "norm": 0}).seen
    moved = [not torch.equal(a["inner.weight"], b["inner.weight"]) for a, b in pairwise(seen)]
    assert moved == [False, False, False, True, True]
    assert all(not torch.equal(a["outer.weight"], b["outer.weight"]) for a, b in pairwise(seen))


def test_a_resumed_run_freezes_as_one_that_was_not_stopped(tmp_path):
    settings = {"freeze": {"inner": 4}, "warmup_fraction": 0.0, "final_lr_fraction": 1.0}
    straight = run(tmp_path / "a", 6, **settings)
    run(tmp_path / "b", 3, **settings)
    resumed = run(tmp_path / "b", 6, **settings)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in straight.state_dict().items())


def test_parts_are_checked_and_written_to_yaml(tmp_path):
    recipe = fake_recipe(tmp_path, freeze={"inner": 3})
    assert from_dict(type(recipe), to_dict(recipe)) == recipe
    with pytest.raises(ConfigError, match="train.freeze.encoder must be an integer, got 'long'"):
        from_dict(type(recipe), {"train": {"freeze": {"encoder": "long"}}})
    with pytest.raises(ConfigError, match="freeze must be parts with steps of at least 0"):
        fake_recipe(tmp_path, freeze={"inner": -1})
    for freeze, message in (
        ({"iner": 3}, "train.freeze names 'iner'; the model has inner, norm"),
        (dict.fromkeys(("inner", "norm", "outer"), 3), "names every part of the model"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, 1, freeze=freeze)


def test_fine_tuning_has_a_lower_default_rate(tmp_path):
    class WithRate(FakeModel):
        encoder = type("Encoder", (), {"peak_rate": 1e-3})

    def peak(**train):
        recipe = fake_recipe(tmp_path, learning_rate=None, **train)
        return Trainer(recipe, WithRate(), FakeTokenizer(), FakeLoader()).peak_rate

    assert peak(init_from=str(tmp_path)) == pytest.approx(0.2 * peak())
    fixed = replace(fake_recipe(tmp_path), train=replace(fake_recipe(tmp_path).train, init_from=str(tmp_path)))
    assert Trainer(fixed, WithRate(), FakeTokenizer(), FakeLoader()).peak_rate == fixed.train.learning_rate


def test_a_fresh_models_rate_is_told_when_fine_tuning(tmp_path):
    class WithRate(FakeModel):
        encoder = type("Encoder", (), {"peak_rate": 1e-3})

    def log(folder, steps=1, **train):
        recipe = fake_recipe(tmp_path / folder, max_steps=steps, **train)
        Trainer(recipe, WithRate(), FakeTokenizer(), FakeLoader()).fit()
        return (tmp_path / folder / "train.log").read_text()

    told = "train.learning_rate 0.002 is 10 times the default of fine-tuning (0.0002, which null takes)"
    assert told in log("tuned", learning_rate=2e-3, init_from="EXP")
    assert log("tuned", 2, learning_rate=2e-3, init_from="EXP").count(told) == 1  # not again when it resumes
    assert "fine-tuning" not in log("fresh", learning_rate=2e-3) + log("low", learning_rate=3e-4, init_from="EXP")
