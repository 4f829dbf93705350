"""Validation sets by name: measures and losses of each, and the best checkpoint by the one that is named."""

import json
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train.beeps import SMALL, beep_recipe
from train.fakes import FakeLoader, FakeModel, FakeTokenizer, fake_recipe

from sumix_stream.cli.trainer import make_trainer
from sumix_stream.config import LossConfig
from sumix_stream.config.reader import load_recipe
from sumix_stream.context import ChunkContext
from sumix_stream.data import load_cuts, read_valid
from sumix_stream.evaluate.losses import HeldOutLoss
from sumix_stream.report.report import write_report
from sumix_stream.tasks.build import build_model
from sumix_stream.tokenizer import Tokenizer
from sumix_stream.train import resume
from sumix_stream.train.loop import Trainer
from sumix_stream.train.validation import NoErrorRate, SetValidator


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Beeps to train on, with a second validation set."""
    folder = tmp_path_factory.mktemp("beeps")
    beep_recipe(folder)
    cuts = list(load_cuts(folder / "cuts_train.jsonl.gz"))
    (folder / "cuts_other.jsonl").write_text("".join(json.dumps(cut.to_dict()) + "\n" for cut in cuts[10:13]))
    return folder


def recipe_of(folder, exp_dir, **settings):
    sets = {"valid": str(folder / "cuts_valid.jsonl.gz"), "other": str(folder / "cuts_other.jsonl")}
    changes = {"data.valid_cuts": sets, "train.exp_dir": str(exp_dir), "train.max_steps": 4, "train.valid_interval": 2}
    return load_recipe(folder / "recipe.yaml", changes | settings)


def test_each_set_is_in_log_metrics_board_and_page(folder, tmp_path):
    exp = tmp_path / "exp"
    make_trainer(Trainer, recipe_of(folder, exp, **{"train.best_by": "other"})).fit()
    found = [line for line in map(json.loads, (exp / "metrics.jsonl").read_text().splitlines()) if "valid" in line]
    assert [line["step"] for line in found] == [2, 4]
    for line in found:
        assert list(line["valid"]) == ["other/wer", "other/cer", "valid/wer", "valid/cer"]
        names = ("loss", "simple", "pruned", "ctc")
        assert list(line["valid_losses"]) == [f"{name}/{loss}" for name in ("other", "valid") for loss in names]
        assert all(value > 0 for value in line["valid_losses"].values())
    log = (exp / "train.log").read_text()
    assert log.count("validation valid: WER") == 2 and log.count("validation other: WER") == 2 and "; loss " in log
    board = EventAccumulator(str(exp / "tensorboard")).Reload()
    assert {"valid/other/wer", "valid/valid/wer", "valid/valid/loss", "valid/other/ctc"} <= set(board.Tags()["scalars"])
    assert board.Scalars("valid/valid/loss")[-1].value == pytest.approx(found[-1]["valid_losses"]["valid/loss"])
    page = write_report(exp).read_text()
    for text in ("Validation other, step 4", "Validation valid, step 4", "last validation WER, other, step 4"):
        assert text in page
    assert "Validation loss" in page and page.count("<audio") == 7  # four and three utterances, all of them wrong
    saved = resume.metrics_of(resume.checkpoint.load_yaml(exp / "checkpoints" / "step-00000004" / "trainer.yaml"))
    assert list(saved) == ["other/wer", "other/cer", "valid/wer", "valid/cer"]


def test_losses_are_those_of_each_utterance_alone(folder):
    """Padding, batches and their order make no difference; weights are those given."""
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    model = build_model(SMALL, tokenizer.vocab_size, seed=1).double()
    utterances = list(read_valid(load_cuts(folder / "cuts_train.jsonl.gz")))[:7]
    utterances[2] = utterances[2].__class__("short", utterances[2].samples[:9000], utterances[2].text, 9000 / 16_000)
    weights, context = {"simple": 0.5, "pruned": 1.0, "ctc": 0.3}, ChunkContext(4, 1)

    def measure(some, max_samples=10**9):
        loss = HeldOutLoss(_Double(model), tokenizer, context, weights, LossConfig(), max_samples)
        assert list(loss.watch(some)) == some
        return loss

    frames = [model.timebase.num_encoder_frames(model.timebase.num_feature_frames(len(u.samples))) for u in utterances]
    alone = [measure([utterance]).means() for utterance in utterances]
    for max_samples in (10**9, 40_000, 1):
        together = measure(utterances, max_samples).means()
        for name in ("simple", "pruned", "ctc"):
            expected = sum(one[name] * n for one, n in zip(alone, frames, strict=True)) / sum(frames)
            assert together[name] == pytest.approx(expected, rel=1e-6)  # features are fp32
        assert together["loss"] == pytest.approx(sum(w * together[name] for name, w in weights.items()), rel=1e-6)
    unknown = [utterances[0].__class__(id, utterances[0].samples, text, 1.0) for id, text in (("a", ""), ("b", "ten"))]
    assert measure(unknown).means() == {} and measure([*unknown, *utterances]).means() == measure(utterances).means()


class _Double(torch.nn.Module):
    """The model in fp64, for features in fp32."""

    def __init__(self, model):
        super().__init__()
        self.model, self.timebase = model, model.timebase

    def forward(self, feats, *rest):
        return self.model(feats.double(), *rest)


def results(*measures):
    """A validation that finds these measures, one after the other."""
    remaining = list(measures)
    return lambda model: SimpleNamespace(metrics=remaining.pop(0), summary=lambda: "fake")


def test_the_best_goes_by_the_set_that_is_named_now(tmp_path):
    """Checkpoints that were measured on both sets are ranked anew; one without the set is not ranked."""

    def train(steps, *measures):
        recipe = fake_recipe(tmp_path, max_steps=steps, valid_interval=2, save_interval=2, keep_last=9)
        Trainer(recipe, FakeModel(), FakeTokenizer(), FakeLoader(), results(*measures)).fit()
        return (tmp_path / "best.txt").read_text().strip()[-2:]

    assert train(2, {"wer": 0.01}) == "02"
    assert train(6, {"a/wer": 0.2, "b/wer": 0.3}, {"a/wer": 0.1, "b/wer": 0.6}) == "06"
    assert train(8, {"b/wer": 0.4, "a/wer": 0.05}) == "04"


def test_a_set_without_a_rate_is_told_and_the_first_decides(caplog):
    def none(model):
        raise NoErrorRate("lost")

    good = results(*[{"wer": 0.2}] * 2)
    assert SetValidator({"a": good, "b": none})(None).metrics == {"a/wer": 0.2}
    assert "validation set b: no error rate: lost" in caplog.text
    with pytest.raises(NoErrorRate, match="a: lost"):
        SetValidator({"a": none, "b": good})(None)


def test_a_set_that_cannot_be_read_is_named_before_training(folder, tmp_path):
    cuts = list(load_cuts(folder / "cuts_other.jsonl"))
    for cut in cuts:
        cut.recording.sources[0].source = str(tmp_path / "gone.flac")
    (tmp_path / "gone.jsonl").write_text("".join(json.dumps(cut.to_dict()) + "\n" for cut in cuts))
    recipe = recipe_of(folder, tmp_path / "exp", **{"data.valid_cuts": {"gone": str(tmp_path / "gone.jsonl")}})
    with pytest.raises(NoErrorRate, match=r"data.valid_cuts.gone: none of its first 3 utterances can be read"):
        make_trainer(Trainer, recipe)
