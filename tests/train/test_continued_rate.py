"""The learning rate does not jump when a run resumes with another number of steps."""

from dataclasses import asdict, replace

import pytest
from train.fakes import FakeLoader, FakeModel, FakeTokenizer, fake_recipe
from train.test_loop import metrics

from sumix_stream.config import RecipeConfig, TrainConfig
from sumix_stream.train.continued_rate import go_on_smoothly, rate_from
from sumix_stream.train.loop import Trainer
from sumix_stream.train.optim import learning_rate_at
from sumix_stream.train.resume import TrainerState

CONFIG = TrainConfig(max_steps=1000)
PEAK = 1e-3


def resumed(step, before: TrainConfig, after: TrainConfig, began=None):
    state = TrainerState(step=step, step_batches=1, rate_from=began)
    recipe = RecipeConfig(train=after)
    return go_on_smoothly(state, asdict(replace(recipe, train=before)), recipe, PEAK, step_seconds=120.0)


@pytest.mark.parametrize("step", [0, 40, 150, 500, 999])
def test_nothing_changes_where_nothing_changed(step):
    assert resumed(step, CONFIG, CONFIG) == (None, None)
    assert rate_from(None, step, PEAK, CONFIG, 120.0) == learning_rate_at(step, PEAK, CONFIG, 120.0)


@pytest.mark.parametrize("step", [40, 99, 100, 500, 900, 1000])
@pytest.mark.parametrize("max_steps", [1100, 2000, 20_000])
def test_the_rate_goes_on_where_it_stood(step, max_steps):
    after = replace(CONFIG, max_steps=max_steps)
    began, told = resumed(step, CONFIG, after)
    last = learning_rate_at(step - 1, PEAK, CONFIG, 120.0)
    rates = [rate_from(began, n, PEAK, after, 120.0) for n in range(step, max_steps)]
    assert rates[0] == pytest.approx(last, rel=0.05)  # a step of the warm-up is up to 2.5 % of the rate there
    warmup = 0.1 * max_steps
    rising = step < warmup
    assert max(rates) == pytest.approx(PEAK if rising else last, rel=0.03)
    assert rates[-1] == pytest.approx(0.05 * PEAK)
    jump = abs(learning_rate_at(step, PEAK, after, 120.0) - last) > 0.05 * last
    assert (told is not None) == (began is not None)
    if jump:
        assert f"{learning_rate_at(step, PEAK, CONFIG, 120.0):.2e}, where it stood" in told


def test_a_rate_of_ones_own_is_followed_at_once():
    after = replace(CONFIG, max_steps=2000, learning_rate=3e-4)
    assert resumed(1000, CONFIG, after, began=[500, 0.4]) == (None, None)


def test_it_is_changed_twice():
    first = replace(CONFIG, max_steps=2000)
    began, _ = resumed(1000, CONFIG, first)
    second = replace(CONFIG, max_steps=4000)
    again, _ = resumed(1500, first, second, began)
    before, after = rate_from(began, 1500, 1.0, first, 120.0), rate_from(again, 1500, 1.0, second, 120.0)
    assert after == pytest.approx(before, rel=0.02)
    assert resumed(1700, second, second, again) == (again, None)


def test_recipes_of_other_releases_are_no_reason_to_stop():
    state, recipe = TrainerState(step=5, step_batches=1), RecipeConfig()
    for saved in ({}, {"train": {"max_steps": "many"}, "data": {"max_duration": 1}}, {"train": {}, "data": {}}):
        assert go_on_smoothly(state, saved, recipe, PEAK, step_seconds=1.0) == (None, None)


def test_in_a_run(tmp_path):
    """12 steps to the end, then 24: no jump, the log says so, and a third start repeats it."""

    def run(exp_dir, max_steps, **settings):
        recipe = fake_recipe(exp_dir, max_steps=max_steps, **settings)
        Trainer(recipe, FakeModel(), FakeTokenizer(), FakeLoader()).fit()
        return metrics(exp_dir, "learning_rate")

    run(tmp_path / "a", 12)
    rates = run(tmp_path / "a", 24)
    assert rates[12:] == pytest.approx([rates[11]] * 12)
    assert (tmp_path / "a" / "train.log").read_text().count("the learning rate goes on from") == 1

    run(tmp_path / "b", 12)
    recipe = fake_recipe(tmp_path / "b", max_steps=24, save_interval=6)

    class Stop(Exception):
        pass

    def hook(epoch, index):
        if epoch * 5 + index == 19:
            raise Stop

    with pytest.raises(Stop):
        Trainer(recipe, FakeModel(), FakeTokenizer(), FakeLoader(hook=hook)).fit()
    assert run(tmp_path / "b", 24, save_interval=6) == rates
    assert (tmp_path / "b" / "train.log").read_text().count("the learning rate goes on from") == 1
