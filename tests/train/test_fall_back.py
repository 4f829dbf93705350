"""Whatever happens to the newest checkpoint, the run goes on from the one before, and says so."""

import json
import logging
import os
import shutil

import pytest
import torch
from train.fakes import FakeLoader, FakeModel, FakeTokenizer, fake_recipe, fake_validation

from sumix_stream.tasks import checkpoint
from sumix_stream.tasks.checkpoint import CheckpointError
from sumix_stream.train.loop import Trainer

FILES = ["SHA256SUMS", "average.safetensors", "config.yaml", "model.safetensors", "optimizer.safetensors"]
FILES += ["tokenizer.model", "trainer.yaml"]


def run(exp_dir, max_steps=6, model=None, validate=None, **train):
    settings = {"save_interval": 2, "average": "ema", "keep_last": 3, **train}
    recipe = fake_recipe(exp_dir, max_steps=max_steps, **settings)
    trainer = Trainer(recipe, model or FakeModel(), FakeTokenizer(), FakeLoader(), validate)
    trainer.fit()
    return trainer


def losses(exp_dir):
    lines = [json.loads(line) for line in (exp_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def damage(directory, name, how):
    path = directory / name
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flipped":  # one bit near the end: nothing but a checksum tells it from a good one
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of 6 steps, saved after 2, 4 and 6; never changed."""
    exp_dir = tmp_path_factory.mktemp("saved") / "exp"
    run(exp_dir)
    return exp_dir


@pytest.fixture
def exp_dir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "exp")


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """Losses of an undamaged run of 8 steps whose rate does not depend on where it ends."""
    exp_dir = tmp_path_factory.mktemp("longer")
    run(exp_dir, 8)
    return losses(exp_dir)


DAMAGES = [(name, how) for name in FILES for how in ("truncated", "flipped", "missing")]
DAMAGES.remove(("SHA256SUMS", "missing"))  # so are those of an earlier version, which load


@pytest.mark.parametrize("name, how", DAMAGES)
def test_the_newest_is_damaged(exp_dir, name, how):
    newest = checkpoint.step_directory(exp_dir, 6)
    damage(newest, name, how)
    run(exp_dir, 6)
    log = (exp_dir / "train.log").read_text()
    assert "resuming after step 4 " in log
    assert log.count("WARNING a damaged checkpoint was put aside (*.damaged)") == 1
    culprit = "/" if name == "SHA256SUMS" else str(newest / name)
    assert culprit in log.split("put aside")[1].splitlines()[0]
    assert (newest.parent / "step-00000006.damaged").is_dir()
    assert list(losses(exp_dir)) == [1, 2, 3, 4, 5, 6]
    assert list(checkpoint.step_directories(exp_dir)) == [2, 4, 6]  # saved again


def test_losses_go_on_as_without_the_damage(tmp_path, longer):
    run(tmp_path, 8)
    for step in (8, 6):
        damage(checkpoint.step_directory(tmp_path, step), "optimizer.safetensors", "flipped")
    run(tmp_path, 8)
    assert "resuming after step 4 " in (tmp_path / "train.log").read_text()
    assert losses(tmp_path) == longer


def test_pointers_follow(tmp_path):
    run(tmp_path, validate=fake_validation(0.5, 0.4, 0.3), valid_interval=2)
    damage(checkpoint.step_directory(tmp_path, 6), "model.safetensors", "flipped")
    run(tmp_path, 5, validate=fake_validation(0.45), valid_interval=2)
    assert (tmp_path / "best.txt").read_text() == "checkpoints/step-00000004\n"
    assert (tmp_path / "last.txt").read_text() == "checkpoints/step-00000005\n"


def test_none_is_good(exp_dir):
    for step in (2, 4, 6):
        damage(checkpoint.step_directory(exp_dir, step), "model.safetensors", "truncated")
    before = sorted(exp_dir.rglob("*"))
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .* resumed from.*step-00000006.*step-00000002"
    ) as error:
        run(exp_dir, 8)
    assert "--no-resume" in str(error.value)
    assert sorted(exp_dir.rglob("*")) == before


def test_another_model_is_no_damage(exp_dir):
    with pytest.raises(CheckpointError, match=r"inner.weight is \(8, 80\), the model's is \(9, 80\)"):
        run(exp_dir, 8, model=FakeModel(width=9))
    assert list(checkpoint.step_directories(exp_dir)) == [2, 4, 6]


def test_half_written_and_half_removed_directories_are_cleared_away(exp_dir):
    folder = exp_dir / "checkpoints"
    for name in (".step-00000008.partial", ".step-00000001.removed"):
        shutil.copytree(folder / "step-00000006", folder / name)
    os.remove(folder / ".step-00000008.partial" / "SHA256SUMS")
    run(exp_dir, 7)
    assert "resuming after step 6 " in (exp_dir / "train.log").read_text()
    assert sorted(os.listdir(folder)) == ["step-00000004", "step-00000006", "step-00000007"]


def test_a_checkpoint_of_an_earlier_version_loads_with_a_note(exp_dir, caplog):
    (checkpoint.step_directory(exp_dir, 6) / "SHA256SUMS").unlink()
    with caplog.at_level(logging.INFO, "sumix_stream"):
        run(exp_dir, 7)
    assert "step-00000006 has no SHA256SUMS" in caplog.text
    assert "resuming after step 6 " in (exp_dir / "train.log").read_text()


def test_everything_that_a_run_needs_is_restored(exp_dir):
    """The full state after a resume, against that of a run that was never interrupted."""
    straight = run(exp_dir.parent / "straight")
    resumed = Trainer(
        fake_recipe(exp_dir, max_steps=6, save_interval=2, average="ema", keep_last=3),
        FakeModel(),
        FakeTokenizer(),
        FakeLoader(),
    )
    resumed.fit()
    assert resumed.state == straight.state
    for own, other in ((resumed.model, straight.model), (resumed._average, straight._average)):
        tensors, expected = (
            thing.tensors() if hasattr(thing, "tensors") else thing.state_dict() for thing in (own, other)
        )
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in tensors.items())
    moments, expected = resumed.optimizer.state_dict()["state"], straight.optimizer.state_dict()["state"]
    assert moments.keys() == expected.keys()
    for number, values in moments.items():
        assert values.keys() == expected[number].keys()
        assert all(torch.equal(value, expected[number][key]) for key, value in values.items())
