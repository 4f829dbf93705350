"""Consistency of CTC posteriors between two views of an utterance (CR-CTC, arXiv 2410.05101, 3.2).

B batch, T encoder frames, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def ctc_consistency(one: Tensor, other: Tensor, lengths: Tensor) -> Tensor:
    """Half the sum over frames of KL(sg(p_other) || p_one) + KL(sg(p_one) || p_other), in nats, in fp32: (B,).

    Each view is drawn to what the other says now: no gradient goes through the target (sg).

    Args:
        one, other: CTC logits (B, T, V); lengths: (B,) valid frames.
    """
    log_p, log_q = F.log_softmax(one.float(), dim=-1), F.log_softmax(other.float(), dim=-1)
    each = _divergence(log_q.detach(), log_p) + _divergence(log_p.detach(), log_q)
    valid = torch.arange(each.shape[1], device=each.device) < lengths[:, None]
    return 0.5 * torch.where(valid, each, 0.0).sum(1)


def _divergence(log_target: Tensor, log_model: Tensor) -> Tensor:
    """KL(target || model) of each frame, (B, T)."""
    return F.kl_div(log_model, log_target, reduction="none", log_target=True).sum(-1)
