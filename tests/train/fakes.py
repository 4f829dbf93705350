"""A model, a loader and a tokenizer that are quick: the trainer asks for no more than their shape."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from sumix_stream.config import ModelConfig, RecipeConfig, TrainConfig
from sumix_stream.tasks.base import TaskLoss
from sumix_stream.timebase import Timebase


@dataclass
class FakeBatch:
    index: int
    feats: torch.Tensor
    feat_lengths: torch.Tensor
    tokens: torch.Tensor
    token_lengths: torch.Tensor
    ids: list[str]
    seconds: float

    def to(self, device):
        return self


class FakeModel(nn.Module):
    """Learns the mean of its input; has dropout, so that the random state of each step is seen in the loss."""

    def __init__(self, width=8):
        super().__init__()
        self.config, self.vocab_size, self.timebase = ModelConfig(), 5, Timebase()
        generator = torch.Generator().manual_seed(0)
        self.inner = nn.Linear(80, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.2)
        self.outer = nn.Linear(width, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
        self.contexts = []

    def forward(self, feats, feat_lengths, tokens, token_lengths, context, weights, loss):
        self.contexts.append(str(context))
        out = self.outer(self.dropout(self.norm(self.inner(feats)))).squeeze(-1)
        has_path = token_lengths <= feat_lengths
        each = ((out - feats.mean(-1) - 1) ** 2).sum(1) * has_path
        frames = feat_lengths.sum()
        total = (weights["simple"] * each + weights["pruned"] * each).sum() / frames
        return TaskLoss(total, {"simple": each, "pruned": each, "ctc": torch.zeros_like(each)}, has_path, frames)


@dataclass
class FakeLoader:
    """`length` batches of 3 utterances an epoch. Those named in `bad` are infinite, those in `long` have no path."""

    length: int = 5
    bad: set[str] = field(default_factory=set)
    long: set[str] = field(default_factory=set)
    read: list[tuple[int, int]] = field(default_factory=list)
    hook: object = None
    cuts: str = "some"

    def fingerprint(self, epoch):
        return f"{self.cuts} {epoch}"

    def epoch_batches(self, epoch, skip=0):
        for index in range(skip, self.length):
            self.read.append((epoch, index))
            if self.hook is not None:
                self.hook(epoch, index)
            generator = torch.Generator().manual_seed(1000 * epoch + index)
            ids = [f"e{epoch}-b{index}-u{i}" for i in range(3)]
            feats = torch.randn(3, 6, 80, generator=generator)
            token_lengths = torch.ones(3, dtype=torch.long)
            for i, name in enumerate(ids):
                if name in self.bad:
                    feats[i, 0, 0] = torch.inf
                if name in self.long:
                    token_lengths[i] = 7
            yield FakeBatch(
                index, feats, torch.full((3,), 6), torch.ones(3, 7, dtype=torch.long), token_lengths, ids, 3.6
            )


class FakeTokenizer:
    def to_bytes(self):
        return b"fake"


def fake_validation(*wers):
    """A `validate` that returns these error rates one after the other."""
    remaining = list(wers)

    def validate(model):
        assert not model.training
        return SimpleNamespace(metrics={"wer": remaining.pop(0)}, summary=lambda: "fake")

    return validate


def fake_recipe(exp_dir: Path, **train) -> RecipeConfig:
    defaults = TrainConfig(
        exp_dir=str(exp_dir),
        max_steps=12,
        learning_rate=1e-2,
        log_interval=4,
        valid_interval=100,
        save_interval=100,
        accelerator="cpu",
    )
    return RecipeConfig(train=replace(defaults, **train))
