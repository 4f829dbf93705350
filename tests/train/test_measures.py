"""Measures of steps, and the running average, in the trainer."""

import json
import time

import pytest
import torch
from train.fakes import FakeLoader, FakeModel, FakeTokenizer, fake_recipe, fake_validation

from sumix_stream.tasks import checkpoint
from sumix_stream.tasks.base import TaskLoss
from sumix_stream.train.averaging import WeightAverage
from sumix_stream.train.loop import Trainer
from sumix_stream.train.measures import StepBuffer


def trainer(exp_dir, loader=None, validate=None, **settings):
    return Trainer(fake_recipe(exp_dir, **settings), FakeModel(), FakeTokenizer(), loader or FakeLoader(), validate)


def lines(exp_dir):
    every = [json.loads(line) for line in (exp_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if "loss" in line]


def test_intervals_come_with_the_last_step_of_each(tmp_path):
    trainer(tmp_path, max_steps=10, log_interval=4).fit()
    steps = lines(tmp_path)
    assert [line["step"] for line in steps if "interval" in line] == [4, 8, 10]
    intervals = {line["step"]: line["interval"] for line in steps if "interval" in line}
    assert [interval["steps"] for interval in intervals.values()] == [4, 4, 2]
    for step in (4, 8):
        assert set(intervals[step]["modules"]) == {"inner", "norm", "outer"}
        gradients = [norms[0] for norms in intervals[step]["modules"].values()]
        total = sum(gradient**2 for gradient in gradients) ** 0.5
        assert total == pytest.approx(steps[step - 1]["grad_norm"], rel=1e-4)
        assert all(update > 0 for _, _, update in intervals[step]["modules"].values())
        assert intervals[step]["gpu_bytes"] == 0 and intervals[step]["host_bytes"] > 2**20
        spread = intervals[step]["step_seconds"]
        assert 0 < spread["min"] == spread["mean"] == spread["max"]
    seconds = intervals[4]["step_seconds"]["max"] * 4
    assert intervals[4]["audio_hours_per_hour"] == pytest.approx(4 * 3.6 / seconds, rel=1e-6)


def test_the_slowest_of_several_processes_is_named():
    """The other process of two is said to have taken three times as long for everything."""

    class Two:
        device, world_size = torch.device("cpu"), 2

        def all_reduce(self, table, reduce_op):
            return table * 2

        def all_gather(self, measures):
            return torch.stack([measures, measures * 3])

    buffer, one = StepBuffer(Two(), ("simple", "pruned", "ctc")), torch.ones(3)
    next(buffer.timed(iter([0])))
    loss = TaskLoss(one.sum() / 3, {"simple": one, "pruned": 2 * one}, one.bool(), torch.tensor(3))
    settings = {"grad_norm": one[0], "skipped": torch.tensor(False), "learning_rate": 1e-3, "context": "full"}
    time.sleep(0.01)
    buffer.add(1, [loss, loss], list("abcdef"), seconds=3.0, frames=(9, 12), **settings)
    (report,) = buffer.fetch()
    assert (report.loss, report.seconds) == (1.0, 6.0)
    assert report.parts == {"simple": 1.0, "pruned": 2.0, "ctc": 0.0}
    interval = report.interval
    assert interval.slowest_rank == 1 and interval.padding_share == 0.25
    least, most = interval.step_seconds["min"], interval.step_seconds["max"]
    assert least >= 0.01 and most == pytest.approx(3 * least)
    assert interval.step_seconds["mean"] == pytest.approx(2 * least)
    assert interval.audio_hours_per_hour == pytest.approx(6.0 / most)


def test_waiting_for_the_loader_and_padding_are_measured(tmp_path):
    class Slow(FakeLoader):
        def epoch_batches(self, epoch, skip=0):
            for batch in super().epoch_batches(epoch, skip):
                time.sleep(0.2)
                batch.feat_lengths[0] = 3
                yield batch

    trainer(tmp_path, Slow(), max_steps=3, log_interval=3).fit()
    interval = lines(tmp_path)[-1]["interval"]
    assert interval["padding_share"] == pytest.approx(3 / 18)
    assert interval["wait_share"]["max"] * interval["step_seconds"]["max"] >= 0.2


@pytest.mark.parametrize("average", ["ema", "growing"])
def test_the_average_is_saved_restored_bit_for_bit_and_validated(tmp_path, average):
    """12 steps, against 5 and 7; the model that validation sees is the average, training's own goes on untouched."""
    settings = {"average": average, "save_interval": 5, "valid_interval": 6, "keep_last": 9}
    seen = []

    def validate(model):
        seen.append({name: value.clone() for name, value in model.named_parameters()})
        return fake_validation(0.5)(model)

    straight = trainer(tmp_path / "a", validate=validate, **settings)
    straight.fit()
    plain = trainer(tmp_path / "plain")
    plain.fit()
    assert [line["loss"] for line in lines(tmp_path / "a")] == [line["loss"] for line in lines(tmp_path / "plain")]
    assert all(torch.equal(v, straight.model.state_dict()[n]) for n, v in plain.model.state_dict().items())
    trainer(tmp_path / "b", max_steps=5, **settings, warmup_fraction=0.0, final_lr_fraction=1.0).fit()
    trainer(tmp_path / "b", **settings, warmup_fraction=0.0, final_lr_fraction=1.0).fit()
    trainer(tmp_path / "c", **settings, warmup_fraction=0.0, final_lr_fraction=1.0).fit()
    last = [
        checkpoint.load_tensors(checkpoint.step_directory(tmp_path / run, 12) / "average.safetensors") for run in "bc"
    ]
    assert all(torch.equal(value, last[1][name]) for name, value in last[0].items())
    saved = checkpoint.load_tensors(checkpoint.step_directory(tmp_path / "a", 12) / "average.safetensors")
    assert saved.keys() == seen[-1].keys()
    assert all(torch.equal(value, seen[-1][name]) for name, value in saved.items())
    assert not torch.equal(saved["inner.weight"], straight.model.inner.weight)
    assert not (checkpoint.step_directory(tmp_path / "plain", 12) / "average.safetensors").exists()


def test_an_average_that_is_switched_on_later_starts_from_the_weights(tmp_path):
    trainer(tmp_path, max_steps=4).fit()
    weights = checkpoint.load_tensors(checkpoint.step_directory(tmp_path, 4) / "model.safetensors")
    later = trainer(tmp_path, max_steps=5, average="growing")
    later.fit()
    expected = WeightAverage(FakeModel(), later.config)
    expected.restore({name: weights[name] for name in expected.tensors()})
    expected._weights = list(later.model.parameters())
    expected.update(5)
    saved = checkpoint.load_tensors(checkpoint.step_directory(tmp_path, 5) / "average.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in expected.tensors().items())


def test_more_of_the_last_checkpoints_are_kept_if_asked(tmp_path):
    trainer(tmp_path, max_steps=10, save_interval=2, keep_last=3).fit()
    assert list(checkpoint.step_directories(tmp_path)) == [6, 8, 10]
