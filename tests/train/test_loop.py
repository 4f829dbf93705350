import errno
import json
import logging
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from train.fakes import FakeLoader, FakeModel, FakeTokenizer, fake_recipe, fake_validation

from sumix_stream.tasks import checkpoint
from sumix_stream.tasks.checkpoint import CheckpointError, resolve_checkpoint
from sumix_stream.tokenizer import Tokenizer, train_tokenizer
from sumix_stream.train.loop import DivergenceError, Trainer


def make(exp_dir, loader=None, validate=None, model=None, **train):
    recipe = fake_recipe(exp_dir, **train)
    return Trainer(recipe, model or FakeModel(), FakeTokenizer(), loader or FakeLoader(), validate)


def metrics(exp_dir, key="loss"):
    lines = [json.loads(line) for line in (exp_dir / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def steps_saved(exp_dir):
    return list(checkpoint.step_directories(exp_dir))


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_run_repeats_the_straight_one_bit_for_bit(tmp_path, accumulate, precision):
    """12 steps, against 7 and 5 in another process's clothes: across the end of an epoch, dynamic contexts, dropout."""
    settings = {"accumulate": accumulate, "precision": precision, "chunk_size": "dynamic"}
    straight = make(tmp_path / "a", **settings)
    assert straight.fit() == (12, None, None)
    expected = metrics(tmp_path / "a")
    assert len(expected) == 12 and len(set(expected)) == 12

    def stop(epoch, index):
        if epoch * 5 + index == 7 * accumulate - 1:
            os.kill(os.getpid(), signal.SIGINT)

    first = make(tmp_path / "b", FakeLoader(hook=stop), **settings)
    assert first.fit() == (7, None, signal.SIGINT)
    loader = FakeLoader()
    second = make(tmp_path / "b", loader, **settings)
    assert second.fit() == (12, None, None)
    assert loader.read[0] == divmod(7 * accumulate, 5)  # nothing before it was read again
    assert metrics(tmp_path / "b") == expected
    assert second.model.contexts == straight.model.contexts[7 * accumulate :]
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(straight).items())


def test_loss_falls_and_contexts_are_drawn(tmp_path):
    trainer = make(tmp_path, max_steps=60, log_interval=10)
    trainer.fit()
    losses = metrics(tmp_path)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert 0.2 < trainer.model.contexts.count("full") / 60 < 0.6
    assert metrics(tmp_path, "context") == trainer.model.contexts
    assert (tmp_path / "train.log").read_text().count("audio hours/hour") == 6
    assert any((tmp_path / "tensorboard").iterdir())


def test_fixed_context_is_used_throughout(tmp_path):
    trainer = make(tmp_path, max_steps=2, chunk_size="640ms", left_context=3)
    trainer.fit()
    assert set(trainer.model.contexts) == {"16 frames, left 3 chunks"}


def test_metrics_after_the_checkpoint_are_taken_back(tmp_path):
    """A run killed without warning has written more steps than it saved."""
    make(tmp_path, max_steps=4).fit()
    before = metrics(tmp_path, "step")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 0.5}\n{"step": 6, "lo')
    make(tmp_path, max_steps=6).fit()
    assert metrics(tmp_path, "step") == [*before, 5, 6]
    assert 0.5 not in metrics(tmp_path)


def test_bad_utterance_skips_the_update_and_is_named(tmp_path):
    names = {"e0-b1-u0", "e0-b1-u2"}
    constant = {"warmup_fraction": 0.0, "final_lr_fraction": 1.0}
    clean = make(tmp_path / "clean", max_steps=1, **constant)
    clean.fit()
    bad = make(tmp_path / "bad", FakeLoader(bad=names), max_steps=2, **constant)
    bad.fit()
    assert all(torch.equal(value, weights(clean)[name]) for name, value in weights(bad).items())
    assert bad.optimizer.state[bad.model.inner.weight]["step"] == 1
    log = (tmp_path / "bad" / "train.log").read_text()
    assert "step 2: update skipped, loss of e0-b1-u0, e0-b1-u2 is not finite" in log
    assert metrics(tmp_path / "bad", "skipped") == [False, True]
    assert metrics(tmp_path / "bad")[1] is None
    assert metrics(tmp_path / "bad", "bad_ids") == [sorted(names)]
    make(tmp_path / "bad", max_steps=4).fit()
    assert metrics(tmp_path / "bad", "skipped") == [False, True, False, False]


def test_fp16_overflow_lowers_the_loss_scale_and_is_no_alarm(tmp_path):
    """The first scale is far too high on purpose; an utterance that is infinite is named all the same."""
    trainer = make(tmp_path, FakeLoader(bad={"e1-b3-u1"}), precision="16-mixed")
    trainer.fit()
    skipped = metrics(tmp_path, "skipped")
    assert skipped[0] and skipped[8] and sum(skipped) < 6
    assert trainer.fabric.strategy.precision.state_dict()["scale"] == 2.0 ** (16 - sum(skipped))
    log = (tmp_path / "train.log").read_text()
    assert "INFO step 1: update skipped, fp16 gradient overflow" in log
    assert "WARNING step 9: update skipped, loss of e1-b3-u1 is not finite" in log


def test_bad_gradient_of_a_finite_loss_skips_too(tmp_path):
    class Model(FakeModel):
        def forward(self, *args):
            loss = super().forward(*args)
            zero = torch.zeros((), requires_grad=True) * self.outer.bias.sum()
            return loss._replace(total=loss.total + zero.abs().sqrt()) if len(self.contexts) == 2 else loss

    trainer = make(tmp_path, model=Model(), max_steps=3)
    trainer.fit()
    assert metrics(tmp_path, "skipped") == [False, True, False]
    assert "gradient not finite" in (tmp_path / "train.log").read_text()
    assert all(value.isfinite().all() for value in weights(trainer).values())


def test_infinite_loss_with_finite_gradients_skips_too(tmp_path):
    class Model(FakeModel):
        def forward(self, *args):
            loss = super().forward(*args)
            return loss._replace(total=loss.total + torch.inf) if len(self.contexts) == 2 else loss

    make(tmp_path, model=Model(), max_steps=3).fit()
    assert metrics(tmp_path, "skipped") == [False, True, False]


def test_divergence_stops_with_advice_and_the_last_checkpoint_stays(tmp_path):
    bad = {f"e{epoch}-b{index}-u1" for epoch in range(1, 9) for index in range(5)}
    trainer = make(
        tmp_path,
        FakeLoader(bad=bad),
        max_steps=40,
        save_interval=5,
        max_bad_steps=3,
        log_interval=1,
        precision="32-true",
    )
    with pytest.raises(
        DivergenceError, match=r"stopped at step 8: 3 updates.*learning_rate.*warmup_steps.*step-00000005"
    ):
        trainer.fit()
    assert steps_saved(tmp_path) == [5]
    assert all(value.isfinite().all() for value in weights(trainer).values())


def test_bad_steps_in_a_row_are_counted_not_all(tmp_path):
    bad = {f"e{epoch}-b{index}-u1" for epoch in range(9) for index in (1, 3)}
    make(tmp_path, FakeLoader(bad=bad), max_steps=12, max_bad_steps=2).fit()
    assert sum(metrics(tmp_path, "skipped")) == 5


def test_utterances_without_a_path_are_named(tmp_path):
    make(tmp_path, FakeLoader(long={"e0-b2-u1"}), max_steps=4).fit()
    assert "step 3: left out, more tokens than frames allow: e0-b2-u1" in (tmp_path / "train.log").read_text()
    assert metrics(tmp_path, "skipped") == [False] * 4


def test_best_and_last_are_kept_and_pointed_at(tmp_path):
    validate = fake_validation(0.5, 0.2, 0.4, 0.3, 0.6)
    make(tmp_path, validate=validate, max_steps=10, valid_interval=2, keep_best=1).fit()
    assert steps_saved(tmp_path) == [4, 8, 10]
    assert (tmp_path / "best.txt").read_text() == "checkpoints/step-00000004\n"
    assert (tmp_path / "last.txt").read_text() == "checkpoints/step-00000010\n"
    assert resolve_checkpoint(tmp_path).name == "step-00000004"
    assert metrics(tmp_path, "valid") == [{"wer": wer} for wer in (0.5, 0.2, 0.4, 0.3, 0.6)]


def test_validation_does_not_change_the_curve(tmp_path):
    make(tmp_path / "a").fit()

    def validate(model):
        torch.rand(7)
        return fake_validation(0.5)(model)

    make(tmp_path / "b", validate=validate, valid_interval=3).fit()
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_interrupt_while_validating_saves(tmp_path):
    def validate(model):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("validation went on after the signal")

    assert make(tmp_path, validate=validate, valid_interval=3).fit() == (3, None, signal.SIGTERM)
    assert steps_saved(tmp_path) == [3]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_second_interrupt_leaves_at_once(tmp_path):
    def hook(epoch, index):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, FakeLoader(hook=hook)).fit()
    assert steps_saved(tmp_path) == []


def test_full_disk_is_one_clear_error_and_earlier_checkpoints_stay(tmp_path, monkeypatch):
    written = Path.write_bytes

    def write_bytes(path, data):
        if path.name == "optimizer.safetensors" and "step-00000004" in str(path):
            written(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return written(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(CheckpointError, match=r"step-00000004.*disk is full.*MiB.*earlier checkpoints are intact"):
        make(tmp_path, save_interval=2).fit()
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000002"]
    assert (tmp_path / "last.txt").read_text() == "checkpoints/step-00000002\n"
    monkeypatch.undo()
    assert make(tmp_path, save_interval=2).fit().step == 12


def test_resume_refuses_another_model(tmp_path):
    make(tmp_path, max_steps=1).fit()
    with pytest.raises(CheckpointError, match=r"inner.weight is \(8, 80\), the model's is \(9, 80\)"):
        make(tmp_path, model=FakeModel(width=9)).fit()


def test_resume_names_what_changed(tmp_path):
    make(tmp_path, max_steps=2).fit()
    make(tmp_path, max_steps=3).fit()
    assert "the recipe has changed since: train.max_steps 2 -> 3" in (tmp_path / "train.log").read_text()


def test_resume_says_that_the_data_has_changed(tmp_path):
    said = "the batches of epoch 0 are others than before"
    make(tmp_path, max_steps=2).fit()
    make(tmp_path, max_steps=3).fit()
    assert said not in (tmp_path / "train.log").read_text()
    make(tmp_path, FakeLoader(cuts="others"), max_steps=5).fit()
    assert (tmp_path / "train.log").read_text().count(said) == 1


def test_finished_run_has_nothing_to_do(tmp_path):
    make(tmp_path, max_steps=2).fit()
    loader = FakeLoader()
    assert make(tmp_path, loader, max_steps=2).fit().step == 2
    assert loader.read == []
    assert "nothing to do" in (tmp_path / "train.log").read_text()


def test_no_resume_moves_the_earlier_run_aside(tmp_path):
    make(tmp_path, max_steps=2).fit()
    assert make(tmp_path, max_steps=3).fit(resume=False).step == 3
    assert metrics(tmp_path, "step") == [1, 2, 3]
    assert steps_saved(tmp_path / "previous-1") == [2]
    assert steps_saved(tmp_path) == [3]


def test_empty_training_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no batch: check data.train_cuts"):
        make(tmp_path, FakeLoader(length=0)).fit()


def test_sharded_strategies_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train\.strategy must be one of auto, ddp"):
        make(tmp_path, strategy="fsdp")


@pytest.mark.parametrize("name", ["chunk_size", "valid_chunk_size"])
def test_a_chunk_that_is_no_whole_number_of_frames_is_refused_at_once(tmp_path, name):
    with pytest.raises(ValueError, match=rf"train\.{name}: 650 ?ms is not a whole number .*640 ?ms and 680 ?ms"):
        make(tmp_path, **{name: "650ms"})


class _Tokenizer(FakeTokenizer):
    """One of `words`."""

    from_bytes = staticmethod(Tokenizer.from_bytes)

    def __init__(self, folder, words):
        self._real = train_tokenizer([" ".join(words)], folder / f"{'-'.join(words)}.model", model_type="word")
        self.to_bytes, self.difference = self._real.to_bytes, self._real.difference


def test_a_tokenizer_made_anew_is_refused_on_resume(tmp_path):
    first, exp = _Tokenizer(tmp_path, ("one", "two", "two")), tmp_path / "exp"
    train = {"max_steps": 2}

    def run(tokenizer, **train):
        return Trainer(fake_recipe(exp, **train), FakeModel(), tokenizer, FakeLoader()).fit()

    run(first, **train)
    for words, said in (
        (("one", "one", "two"), r"2 of 4 ids stand for other pieces, the first 2: '▁two', now '▁one'"),
        (("one", "two", "three"), r"it has 5 pieces, not 4"),
    ):
        with pytest.raises(CheckpointError, match=rf"tokenizer has been made anew.*{said}.*--no-resume"):
            run(_Tokenizer(tmp_path, words), max_steps=4)
    assert steps_saved(exp) == [2]
    again = _Tokenizer(tmp_path, ("one", "two", "two"))
    assert run(again, max_steps=4).step == 4


def test_statistics_made_anew_are_refused_on_resume(tmp_path):
    def model(mean):
        result = FakeModel()
        result.register_buffer("feature_mean", torch.full((80,), mean))
        result.register_buffer("feature_std", torch.ones(80))
        return result

    make(tmp_path, model=model(-8.0), max_steps=2).fit()
    with pytest.raises(CheckpointError, match=r"feature statistics.*feature_mean differs by up to 0\.5.*--no-resume"):
        make(tmp_path, model=model(-8.5), max_steps=4).fit()
    assert make(tmp_path, model=model(-8.001), max_steps=4).fit().step == 4  # other versions' rounding


def test_lines_are_not_doubled_by_a_root_logger(tmp_path, capsys, monkeypatch):
    """A library that logs through the root logger gives it a handler that prints; files and others still get all."""
    root = logging.getLogger()
    kept = logging.FileHandler(tmp_path / "all.log")
    added = [logging.StreamHandler(sys.stderr), kept]
    said = []

    def hook(epoch, index):
        if not said:  # amid the run, as libraries do
            said.append(True)
            for handler in added:
                root.addHandler(handler)

    try:
        make(tmp_path / "exp", FakeLoader(hook=hook), max_steps=4, log_interval=2).fit()
    finally:
        for handler in added:
            root.removeHandler(handler)
        kept.close()
    assert capsys.readouterr().err.count("step 4/4: loss") == 1
    assert (tmp_path / "all.log").read_text().count("step 4/4: loss") == 1
    assert logging.getLogger("sumix_stream").propagate
