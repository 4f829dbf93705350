"""A task of one's own is one file and one registry line: here CTC alone, trained by the same loop, log and page."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from train.fakes import FakeBatch, FakeTokenizer, fake_recipe

from sumix_stream.config import EncoderConfig, LossConfig, ModelConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.base import make_encoder
from sumix_stream.registry import TASKS
from sumix_stream.report.report import write_report
from sumix_stream.tasks.base import TaskLoss, Weights, make_task
from sumix_stream.tasks.transducer.losses import ctc_loss
from sumix_stream.train.loop import Trainer

CONFIG = ModelConfig(
    EncoderConfig(dim=32, num_layers=1, ffn_dim=64, conv_kernel=5, subsampling_channels=4, dropout=0.0)
)


class CtcModel(nn.Module):
    def __init__(self, config: ModelConfig, num_outputs: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.timebase = config, num_outputs, config.encoder.timebase
        self.encoder = make_encoder(config.encoder, self.timebase)
        self.head = nn.Linear(config.encoder.dim, num_outputs)

    def forward(
        self,
        feats: Tensor,
        feat_lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
        context: ChunkContext,
        weights: Weights,
        loss: LossConfig,
    ) -> TaskLoss:
        frames, lengths = self.encoder(feats, feat_lengths, context)
        each, num_frames = ctc_loss(self.head(frames), lengths, targets, target_lengths), lengths.sum()
        total = weights["alignment"] * each.sum() / num_frames
        return TaskLoss(total, {"alignment": each}, target_lengths <= lengths, num_frames)


class CtcTask:
    unusable = "more labels than frames"

    def build(self, config: ModelConfig, num_outputs: int, seed: int) -> CtcModel:
        torch.manual_seed(seed)
        return CtcModel(config, num_outputs).eval()

    def weights(self, step: int, config: LossConfig) -> Weights:
        return {"alignment": 1.0}


@pytest.fixture(scope="module", autouse=True)
def registered():
    TASKS.register("ctc", CtcTask)


class TenUtterances:
    """The same ten every epoch, each of four sounds; one label a sound."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        sounds = torch.randn(5, 80, generator=generator)
        labels = torch.randint(1, 4, (10, 4), generator=generator).cumsum(1) % 4 + 1  # none twice in a row
        feats = sounds[labels].repeat_interleave(16, dim=1) + 0.1 * torch.randn(10, 64, 80, generator=generator)
        lengths = torch.full((10,), 64)
        self.batch = FakeBatch(0, feats, lengths, labels, torch.full((10,), 4), [f"u{i}" for i in range(10)], 6.4)

    def fingerprint(self, epoch: int) -> str:
        return "ten"

    def epoch_batches(self, epoch: int, skip: int = 0):
        yield from [self.batch][skip:]


def test_it_learns_ten_utterances_and_its_measures_reach_log_page_and_checkpoints(tmp_path):
    recipe = fake_recipe(tmp_path, max_steps=100, valid_interval=50, log_interval=50, chunk_size="full")
    recipe = replace(recipe, task="ctc", model=CONFIG)
    model = make_task("ctc").build(CONFIG, 5, seed=0)

    def validate(model):
        batch = TenUtterances().batch
        frames, _ = model.encoder(batch.feats, batch.feat_lengths, ChunkContext.full())
        runs = [torch.unique_consecutive(row) for row in model.head(frames).argmax(-1)]
        wrong = [not torch.equal(run[run > 0], labels) for run, labels in zip(runs, batch.tokens, strict=True)]
        return SimpleNamespace(metrics={"sequence_error": sum(wrong) / 10}, summary=lambda: "of ten")

    result = Trainer(recipe, model, FakeTokenizer(), TenUtterances(), validate=validate).fit()
    assert result.metrics == {"sequence_error": 0.0}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["parts"]["alignment"] for line in lines if "parts" in line]
    assert len(losses) == 100 and losses[-1] < 0.1 * losses[0]
    assert "(alignment " in (tmp_path / "train.log").read_text()
    page = write_report(tmp_path).read_text()
    assert "alignment" in page and "sequence error" in page
    assert (tmp_path / "best.txt").is_file()


def test_recipes_name_it():
    assert replace(fake_recipe("exp"), task="ctc").task == "ctc"
    with pytest.raises(ValueError, match="task must be one of transducer"):
        replace(fake_recipe("exp"), task="transduce")
