import json
import math
import os
import signal
from dataclasses import replace

import pytest
from report.test_report import Page, check_self_contained
from train.fakes import FakeLoader, FakeModel, FakeTokenizer, fake_recipe

from sumix_stream.train.loop import Trainer
from sumix_stream.train.lr_find import HIGH, LOW, RangeTest, smooth, suggest


def rates(count):
    return [LOW * (HIGH / LOW) ** (n / (count - 1)) for n in range(count)]


def test_suggestion_on_a_known_curve():
    """Flat, a fall around 1e-3, lowest at 1e-2, then up; ten steps of lag are allowed for."""
    points = []
    for rate in rates(200):
        fall = 1 / (1 + math.exp(-4 * math.log10(rate / 1e-3)))
        rise = (max(0.0, math.log10(rate / 1e-2))) ** 2 * 4
        points.append((rate, 2 - fall + rise))
    found = suggest(points, 10)
    assert 1e-2 <= found.lowest <= 2.5e-2
    assert found.suggested == pytest.approx(found.lowest / 3)


def test_a_loss_that_never_falls_gives_no_rate():
    with pytest.raises(ValueError, match="the loss fell at no rate from 1e-05 to 1e\\+00: check the data"):
        suggest([(rate, 1 + rate) for rate in rates(100)], 10)


def test_smoothing_takes_out_what_differs_between_the_batches_of_a_cycle():
    losses = [1.0 + 0.5 * (n % 5) for n in range(20)]
    assert smooth(losses, 5) == pytest.approx([2.0] * 20)


def test_a_loss_that_is_no_number_ends_the_curve():
    losses = smooth([1.0, 1.0, math.inf, 0.0, math.nan, 1.0], 1)
    assert losses == [1.0, 1.0] + [math.inf] * 4
    points = [(rate, 2 - index / 100 if index < 60 else math.inf) for index, rate in enumerate(rates(100))]
    assert suggest(points, 10).lowest == pytest.approx(rates(100)[59])


def test_the_test_leaves_the_run_as_it_is(tmp_path):
    trainer = Trainer(fake_recipe(tmp_path, max_steps=3), FakeModel(), FakeTokenizer(), FakeLoader())
    trainer.fit()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    recipe = fake_recipe(tmp_path, max_steps=3, average="ema")
    loader = FakeLoader(length=30)
    found = RangeTest(recipe, FakeModel(), FakeTokenizer(), loader, steps=60).run()
    assert loader.read == [(0, index) for index in range(10)]  # and no more: they come again
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in after.keys() - before.keys()} == {"lr_find.html", "lr_find.json"}
    assert before.items() <= after.items()
    content = json.loads((tmp_path / "lr_find.json").read_text())
    assert [rate for rate, _ in content["points"]] == pytest.approx(rates(60))
    assert content["suggested"] == found.suggested and LOW < found.suggested < HIGH
    page = Page(found.page)
    check_self_contained(page, found.page)
    assert f"suggested peak: train.learning_rate {found.suggested:.1e}" in page.text
    assert "suggested peak" in str(found) and str(found.page) in str(found)


def test_a_model_that_diverges_on_the_way_is_no_failure(tmp_path):
    class Fragile(FakeModel):
        def forward(self, *args):
            loss = super().forward(*args)
            return loss._replace(total=loss.total * math.inf) if len(self.contexts) > 40 else loss

    recipe = replace(fake_recipe(tmp_path, max_bad_steps=5))
    found = RangeTest(recipe, Fragile(), FakeTokenizer(), FakeLoader(), steps=80).run()
    assert found.lowest <= rates(80)[39] * 1.001
    assert not (tmp_path / ".lr-find").exists()


def test_a_loss_that_no_rate_lowers_is_an_error_and_leaves_nothing(tmp_path):
    class Stubborn(FakeModel):
        def forward(self, *args):
            loss = super().forward(*args)
            return loss._replace(total=0 * loss.total + len(self.contexts))

    with pytest.raises(ValueError, match="the loss fell at no rate"):
        RangeTest(fake_recipe(tmp_path), Stubborn(), FakeTokenizer(), FakeLoader(), steps=20).run()
    assert list(tmp_path.iterdir()) == []


def test_a_signal_ends_it_without_a_finding(tmp_path):
    def stop(epoch, index):
        if index == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        RangeTest(fake_recipe(tmp_path), FakeModel(), FakeTokenizer(), FakeLoader(hook=stop), steps=60).run()
    assert list(tmp_path.iterdir()) == []


def test_too_short_a_test_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 10, got 9"):
        RangeTest(fake_recipe(tmp_path), FakeModel(), FakeTokenizer(), FakeLoader(), steps=9)
