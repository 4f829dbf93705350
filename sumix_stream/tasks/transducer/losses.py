"""The training objective: pruned RNN-T (arXiv 2206.13236) with its simple loss, and an auxiliary CTC loss.

B batch, T encoder frames, U tokens, V vocabulary with blank = 0.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sumix_kernels import pruned_rnnt_loss
from sumix_stream.config import LossConfig
from sumix_stream.tasks.base import TaskLoss, Weights


def loss_weights(step: int, config: LossConfig) -> Weights:
    """Weights at a step: while pruning ranges are still poor, the simple loss leads.

    The simple one falls linearly from 1 to `simple_scale`, the pruned one rises from 0.1 to 1 over `warmup_steps`.
    """
    progress = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    simple = 1.0 + progress * (config.simple_scale - 1.0)
    weights = {"simple": simple, "pruned": 0.1 + 0.9 * progress, "ctc": config.ctc_scale}
    return weights if config.cr_ctc_scale == 0 else weights | {"consistency": config.cr_ctc_scale}


def transducer_loss(
    config: LossConfig,
    weights: Weights,
    *,
    enc_proj: Tensor,
    pred_proj: Tensor,
    output: nn.Linear,
    am: Tensor,
    lm: Tensor,
    ctc_logits: Tensor | None,
    enc_lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
) -> TaskLoss:
    """Weighted sum of simple, pruned and CTC losses.

    Args:
        enc_proj, pred_proj: joiner projections (B, T, J), (B, U+1, J); output: the joiner's last layer, (V, J).
        am, lm: linear projections for the simple loss, (B, T, V), (B, U+1, V).
        ctc_logits: (B, T, V) or None.
    """
    zeros = torch.zeros_like(enc_lengths)
    boundary = torch.stack([zeros, zeros, token_lengths, enc_lengths], dim=1)
    rnnt = pruned_rnnt_loss(
        enc_proj,
        pred_proj,
        output,
        am,
        lm,
        tokens,
        boundary,
        s_range=config.prune_range,
        rnnt_type=config.rnnt_type,
        delay_penalty=config.delay_penalty,
        lm_only_scale=config.lm_only_scale,
        am_only_scale=config.am_only_scale,
    )
    parts = {"simple": rnnt.simple, "pruned": rnnt.pruned}
    if ctc_logits is not None:
        parts["ctc"] = ctc_loss(ctc_logits, enc_lengths, tokens, token_lengths) * rnnt.has_path
    num_frames = enc_lengths.sum()
    weighted = sum(weights[name] * part for name, part in parts.items())
    return TaskLoss(weighted.sum() / num_frames.clamp(min=1), parts, rnnt.has_path, num_frames)


def ctc_loss(logits: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> Tensor:
    """CTC loss of each utterance (B,), in fp32; 0 where repeats make the tokens too long for the frames."""
    log_probs = F.log_softmax(logits.float(), dim=-1).transpose(0, 1)
    return F.ctc_loss(log_probs, tokens, lengths, token_lengths, reduction="none", zero_infinity=True)
