"""The real model in the trainer, and the command."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from train.beeps import SMALL, WORDS, beep_recipe
from train.fakes import fake_recipe
from train.ranks import start

from sumix_stream.config import ChunkConfig, LossConfig
from sumix_stream.data import Batch
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.checkpoint import load_model, step_directories
from sumix_stream.tokenizer import Tokenizer, train_tokenizer
from sumix_stream.train.loop import Trainer


def pattern(token: int) -> torch.Tensor:
    """What a word looks like, (24, 80): six encoder frames."""
    return torch.randn(24, 80, generator=torch.Generator().manual_seed(token)) * 2


class PatternLoader:
    """Random strings of words, each spoken as its pattern; the last utterance has more tokens than frames."""

    def fingerprint(self, epoch):
        return str(epoch)

    def epoch_batches(self, epoch, skip=0):
        for index in range(skip, 20):
            generator = torch.Generator().manual_seed(epoch * 100 + index)
            tokens = torch.randint(2, 2 + len(WORDS), (4, 3), generator=generator)
            feats = torch.stack([torch.cat([pattern(int(t)) for t in row]) for row in tokens])
            feats += 0.1 * torch.randn(feats.shape, generator=generator)
            lengths = torch.tensor([72, 72, 72, 8])
            feats[3, 8:] = 0
            ids = [f"{epoch}-{index}-{i}" for i in range(4)]
            yield Batch(index, feats, lengths, tokens, torch.full((4,), 3), ids, [""] * 4, seconds=2.24)


@pytest.fixture
def tokenizer(tmp_path):
    train_tokenizer([" ".join(WORDS)], tmp_path / "tokenizer.model", 8, "word")
    return Tokenizer.load(tmp_path / "tokenizer.model")


def losses(exp_dir):
    lines = [json.loads(line) for line in (exp_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_the_real_model_learns_resumes_and_loads(tmp_path, tokenizer):
    def train(exp_dir, max_steps, interrupt_at=None):
        recipe = fake_recipe(tmp_path / exp_dir, max_steps=max_steps, log_interval=10)
        recipe = replace(recipe, loss=LossConfig(rnnt_type="modified"))  # at most one token a frame
        loader = PatternLoader()
        if interrupt_at:
            batches = loader.epoch_batches

            def epoch_batches(epoch, skip=0):
                for batch in batches(epoch, skip):
                    if batch.index == interrupt_at - 1:
                        os.kill(os.getpid(), signal.SIGINT)
                    yield batch

            loader.epoch_batches = epoch_batches
        trainer = Trainer(recipe, build_model(SMALL, tokenizer.vocab_size), tokenizer, loader)
        trainer.fit()
        return trainer

    straight = train("straight", 60)
    curve = losses(tmp_path / "straight")
    assert np.mean(curve[-5:]) < 0.5 * np.mean(curve[:5])
    train("stopped", 60, interrupt_at=7)
    assert len(losses(tmp_path / "stopped")) == 7
    train("stopped", 60)
    assert losses(tmp_path / "stopped") == curve
    assert "left out, more tokens than frames allow: 0-0-3" in (tmp_path / "straight" / "train.log").read_text()
    loaded, loaded_tokenizer = load_model(tmp_path / "stopped")
    expected = straight.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert loaded_tokenizer.to_bytes() == tokenizer.to_bytes()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("per_utterance", [False, True], ids=["one context", "context each"])
def test_the_real_model_trains_in_half_precision_and_mixed_contexts(tmp_path, tokenizer, precision, per_utterance):
    recipe = fake_recipe(tmp_path, max_steps=12, precision=precision)
    recipe = replace(recipe, chunks=ChunkConfig(per_utterance=per_utterance, min_chunk=2, max_chunk=6))
    trainer = Trainer(recipe, build_model(SMALL, tokenizer.vocab_size), tokenizer, PatternLoader())
    trainer.fit()
    curve = losses(tmp_path)
    assert all(isinstance(loss, float) for loss in curve)
    assert curve[-1] < 0.8 * curve[0]
    assert all(value.dtype == torch.float32 for value in trainer.model.state_dict().values())


@pytest.fixture
def door(tmp_path):
    """Runs bin/train with arguments, in a process that has the imports: its status and what it wrote."""

    def run(*arguments):
        log = tmp_path / "told"
        log.write_text("")
        process = start(ROOT / "bin" / "train", *arguments, log=log)
        process.join(240)
        return process.exitcode, log.read_text()

    return run


@pytest.fixture
def recipe_file(tmp_path):
    return beep_recipe(tmp_path)


@pytest.mark.slow
def test_the_command_trains_stops_and_resumes(recipe_file, door):
    exp_dir = recipe_file.parent / "exp"
    command = [sys.executable, str(ROOT / "bin" / "train"), "--config", str(recipe_file), "--chunk-size", "dynamic"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not ((exp_dir / "metrics.jsonl").exists() and losses(exp_dir)):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "the same command again resumes" in stderr
    done = len(losses(exp_dir))
    assert list(step_directories(exp_dir)) == [done]
    more = done + 4
    status, told = door("--config", recipe_file, "--train.max_steps", more, "--train.valid_chunk_size=320ms")
    assert status == 0, told
    assert f"resuming after step {done}" in told and "validation WER" in told
    assert len(losses(exp_dir)) == more
    assert (exp_dir / "best.txt").read_text() == f"checkpoints/step-{more:08d}\n"
    weights = exp_dir / "checkpoints" / f"step-{more:08d}" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    status, told = door("--config", recipe_file, "--train.max_steps", more + 1)
    assert status == 0, told
    assert f"put aside (*.damaged): {weights} is damaged" in told
    assert f"resuming after step {done} " in told
    for checkpoint in step_directories(exp_dir).values():
        (checkpoint / "model.safetensors").unlink()
    status, told = door("--config", recipe_file, "--train.max_steps", more + 1)
    assert status == 1
    assert told.splitlines()[-1].startswith(f"train: no checkpoint in {exp_dir} can be resumed from")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--chunk-sise", "16"], "unknown option --chunk-sise; did you mean --chunk-size?"),
        (["--train.max_stesp", "10"], "unknown key 'max_stesp' in train; did you mean 'max_steps'?"),
        (["--train.max_steps"], "--train.max_steps needs a value"),
        (["--train.max_steps", "many"], "train.max_steps"),
        (["--config", "no/such/recipe.yaml"], "no/such/recipe.yaml"),
        (["stray"], "unknown option stray"),
        (["--report"], "no run has begun there; train one with bin/train"),
    ],
)
def test_the_command_refuses(arguments, message, tmp_path, door):
    (tmp_path / "recipe.yaml").write_text("train: {max_steps: 5}\n")
    status, told = door("--config", tmp_path / "recipe.yaml", *arguments)
    assert status and message in told and "Traceback" not in told
    assert not (tmp_path / "exp").exists()
