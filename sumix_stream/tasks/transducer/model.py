"""The conformer transducer: encoder, LSTM predictor, joiner, and the linear heads of the auxiliary losses.

B batch, T0 feature frames, T encoder frames, U tokens, V vocabulary with blank = 0, D encoder and P predictor channels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sumix_stream.config import LossConfig, ModelConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.base import make_encoder
from sumix_stream.encoders.spec_masks import mask_features
from sumix_stream.tasks.base import TaskLoss, Weights
from sumix_stream.tasks.transducer.consistency import ctc_consistency
from sumix_stream.tasks.transducer.joiner import Joiner
from sumix_stream.tasks.transducer.losses import transducer_loss
from sumix_stream.tasks.transducer.predictor import LstmPredictor
from sumix_stream.timebase import Timebase

# Share of a lattice's steps that are blank before anything is learnt. With even logits every frame's first lesson is
# "blank", learnt by making all frames alike, and the encoder then needs hundreds of steps to tell them apart again.
BLANK_PRIOR = 0.9


class _Batch(NamedTuple):
    feats: Tensor  # (B, T0, 80)
    feat_lengths: Tensor  # (B,)
    tokens: Tensor  # (B, U)
    token_lengths: Tensor  # (B,)


class Transducer(nn.Module):
    """Make one with `build_model` or `load_model`; search and audio input are the recogniser's (sumix_stream.load)."""

    blank_id = 0
    token_rows = (  # tensors with a row for each token
        "predictor.embedding.weight",
        *("joiner.output.weight", "joiner.output.bias"),
        *(f"{head}.{kind}" for head in ("simple_am", "simple_lm", "ctc_head") for kind in ("weight", "bias")),
    )

    def __init__(self, config: ModelConfig, vocab_size: int, timebase: Timebase | None = None) -> None:
        super().__init__()
        if vocab_size < 2:
            raise ValueError(f"vocab_size counts blank and at least one token, got {vocab_size}")
        self.config = config
        self.vocab_size = vocab_size
        self.timebase = timebase or config.encoder.timebase
        self.encoder = make_encoder(config.encoder, self.timebase)
        self.predictor = LstmPredictor(config.predictor, vocab_size, self.blank_id)
        dim = config.encoder.dim
        self.joiner = Joiner(dim, self.predictor.dim, config.joiner_dim, vocab_size)
        self.simple_am = nn.Linear(dim, vocab_size)
        self.simple_lm = nn.Linear(self.predictor.dim, vocab_size)
        self.ctc_head = nn.Linear(dim, vocab_size) if config.ctc else None
        self._expect_blank()

    def _expect_blank(self) -> None:
        """Start from the blank prior: am and lm logits are added, so one of the two heads holds it for both."""
        odds = (self.vocab_size - 1) * BLANK_PRIOR / (1 - BLANK_PRIOR)
        for head in (self.joiner.output, self.simple_lm, self.ctc_head):
            if head is not None:
                nn.init.zeros_(head.bias)
                nn.init.constant_(head.bias[self.blank_id], math.log(odds))

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        return self.simple_am.weight.device

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Store mean and standard deviation of the training set's features, (80,) each. They travel with the model."""
        self.encoder.subsampling.set_normalisation(mean, std)

    def forward(
        self,
        feats: Tensor,
        feat_lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        context: ChunkContext,
        weights: Weights,
        loss: LossConfig | None = None,
    ) -> TaskLoss:
        """The training objective of a batch: feats (B, T0, 80), tokens (B, U), zero-padded, with lengths (B,)."""
        loss, batch = loss or LossConfig(), _Batch(feats, feat_lengths, tokens, token_lengths)
        if self.training and loss.cr_ctc_scale > 0:
            return self._two_views(batch, context, weights, loss)
        return self._loss(batch, context, weights, loss)[0]

    def _two_views(self, batch: _Batch, context: ChunkContext, weights: Weights, loss: LossConfig) -> TaskLoss:
        """The mean objective of two differently masked views of each utterance, and their consistency.

        Raises ValueError for a model without CTC head, and where the masks are not given.
        """
        if self.ctc_head is None:
            raise ValueError("loss.cr_ctc_scale needs the CTC head: set model.ctc true, or loss.cr_ctc_scale 0")
        if loss.cr_ctc_masks is None:
            raise ValueError("two views need loss.cr_ctc_masks (bin/train takes those of data.spec_augment)")
        batch_size = batch.feats.shape[0]
        views = torch.cat([mask_features(batch.feats, batch.feat_lengths, loss.cr_ctc_masks) for _ in range(2)])
        twice = _Batch(views, *(torch.cat([value, value]) for value in batch[1:]))
        both, ctc_logits, enc_lengths = self._loss(twice, context.repeated(2), weights, loss)
        parts = {name: part.view(2, batch_size).mean(0) for name, part in both.parts.items()}
        num_frames = both.num_frames // 2
        has_path = both.usable[:batch_size]
        apart = ctc_consistency(*ctc_logits.split(batch_size), enc_lengths[:batch_size]) * has_path
        total = both.total + loss.cr_ctc_scale * apart.sum() / num_frames.clamp(min=1)
        return TaskLoss(total, parts | {"consistency": apart}, has_path, num_frames)

    def _loss(
        self, batch: _Batch, context: ChunkContext, weights: Weights, loss: LossConfig
    ) -> tuple[TaskLoss, Tensor | None, Tensor]:
        """The objective, CTC logits (B, T, V) if there is a head, and their lengths (B,)."""
        enc, enc_lengths = self.encoder(batch.feats, batch.feat_lengths, context)
        pred = self.predictor(batch.tokens)
        ctc_logits = None if self.ctc_head is None else self.ctc_head(enc)
        result = transducer_loss(
            loss,
            weights,
            enc_proj=self.joiner.project_encoder(enc),
            pred_proj=self.joiner.project_predictor(pred),
            output=self.joiner.output,
            am=self.simple_am(enc),
            lm=self.simple_lm(pred),
            ctc_logits=ctc_logits,
            enc_lengths=enc_lengths,
            tokens=batch.tokens,
            token_lengths=batch.token_lengths,
        )
        return result, ctc_logits, enc_lengths
