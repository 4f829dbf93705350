"""The largest batches are tried before training, which then goes on as if they had not been."""

import json
import logging
import signal

import pytest
import torch
from train.fakes import FakeLoader, FakeTokenizer, fake_recipe
from train.ranks import launch
from train.test_out_of_memory import LimitedModel, ragged_batch

from sumix_stream.train.loop import Trainer
from sumix_stream.train.optim import make_optimizer
from sumix_stream.train.precision import make_fabric
from sumix_stream.train.trial import try_batches


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_what_does_not_fit_is_named_and_leaves_no_trace(tmp_path, caplog, where):
    recipe = fake_recipe(tmp_path)
    model = LimitedModel(fits=100, where=where)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [ragged_batch(8, 8), ragged_batch(8, 80), ragged_batch(100)]
    model.eval()
    random_state = torch.get_rng_state()
    with caplog.at_level(logging.INFO, "sumix_stream"):
        optimizer = make_optimizer(model, recipe.train)
        assert try_batches(make_fabric(recipe.train), model, optimizer, recipe, batches) == [batches[1]]
    assert model.sizes == [16, 160, 100]  # each tried once
    assert "does not fit (CUDA out of memory" in caplog.text and "u1 0.80 s, 1 tokens; u0 0.08 s" in caplog.text
    assert "lower data.max_duration (now 120 s" in caplog.text
    assert torch.equal(torch.get_rng_state(), random_state) and not model.training
    assert all(parameter.grad is None for parameter in model.parameters()) and not optimizer.state
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_is_the_same_with_the_trial(tmp_path):
    class Loader(FakeLoader):
        asked = 0

        def worst_batches(self, number=1):
            self.asked = number
            return [ragged_batch(8, 12)] * number

    def run(name, **train):
        loader = Loader()
        recipe = fake_recipe(tmp_path / name, max_steps=3, log_interval=1, **train)
        Trainer(recipe, LimitedModel(), FakeTokenizer(), loader).fit()
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines], loader.asked, (tmp_path / name / "train.log").read_text()

    losses, asked, _ = run("without")
    assert asked == 0  # nothing is tried on a CPU unless asked for
    again, asked, log = run("with", try_worst_batches=2)
    assert asked == 2 and "tried 2 of the largest batches" in log
    assert again == losses


def test_saves_by_the_clock(tmp_path):
    recipe = fake_recipe(tmp_path, max_steps=4, save_minutes=1e-9, keep_last=9)
    Trainer(recipe, LimitedModel(), FakeTokenizer(), FakeLoader()).fit()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4


RUN = """
import os, signal, sys, threading
from pathlib import Path
import torch
from train.fakes import FakeLoader, FakeModel, FakeTokenizer, fake_recipe, fake_validation
from sumix_stream.train.loop import Trainer
from sumix_stream.train.precision import make_fabric

out, when = Path(sys.argv[1]), sys.argv[2]
recipe = fake_recipe(out, max_steps=50, log_interval=40, valid_interval=3 if when == "validation" else 40)
fabric = make_fabric(recipe.train)

def hook(epoch, index):
    if when == "step" and fabric.global_rank == 1 and index == 4:
        os.kill(os.getpid(), signal.SIGTERM)

def validate(model):
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("validation went on")

trainer = Trainer(recipe, FakeModel(), FakeTokenizer(), FakeLoader(hook=hook), validate, fabric)
(out / f"rank{fabric.global_rank}.txt").write_text(str(tuple(trainer.fit())))
"""


@pytest.mark.slow
@pytest.mark.parametrize("when, step", [("step", 6), ("validation", 3)])
def test_a_signal_to_one_process_stops_all_within_a_step(tmp_path, when, step):
    """Not at the log interval, and in the middle of a validation too; all say so, and the state is saved."""
    script = tmp_path / "run.py"
    script.write_text(RUN)
    launch(script, 2, str(tmp_path), when, log=tmp_path / "log")
    for rank in (0, 1):
        assert (tmp_path / f"rank{rank}.txt").read_text() == str((step, None, int(signal.SIGTERM)))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"step-{step:08d}"]
