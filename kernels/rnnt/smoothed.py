"""Arc log-probabilities of the simple transducer, whose joiner is the sum of an acoustic and a language part.

B batch, S symbols, T frames, V vocabulary with the termination symbol (blank). Never builds (B, T, S+1, V): the
normaliser factorises (arXiv 2206.13236, 3.1),

    log sum_v exp(am[t, v] + lm[s, v]) = max am[t] + max lm[s] + log sum_v exp(am[t, v] - max) exp(lm[s, v] - max)

into a matrix product. The result is smoothed (3.3) by interpolation with the log-probabilities of the language part
alone and of the acoustic part with an averaged (unigram) language part.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def smoothed_log_probs(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float,
    am_only_scale: float,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities px (B, S, T) of the symbols and py (B, S+1, T) of termination, at least fp32.

    lm (B, S+1, V), am (B, T, V), symbols (B, S). The unigram is averaged over every row of lm, the whole batch with
    its padding, as in k2: with ``am_only_scale > 0`` an utterance's loss depends a little on its batch.
    """
    with torch.autocast(am.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(am.dtype, lm.dtype), torch.float32)
        lm, am = lm.to(dtype), am.to(dtype)
        px, py = _SumLogProbs.apply(lm, am, symbols, termination_symbol)
        if lm_only_scale != 0.0 or am_only_scale != 0.0:
            scale = 1.0 - lm_only_scale - am_only_scale
            px, py = scale * px, scale * py
        if lm_only_scale != 0.0:
            lm_log_probs = lm.log_softmax(2)
            px = px + lm_only_scale * lm_log_probs[:, :-1].gather(2, symbols[:, :, None])
            py = py + lm_only_scale * lm_log_probs[:, :, termination_symbol, None]
        if am_only_scale != 0.0:
            px, py = add_acoustic_log_probs(px, py, lm, am, symbols, termination_symbol, am_only_scale)
        return px, py


def add_acoustic_log_probs(
    px: Tensor, py: Tensor, lm: Tensor, am: Tensor, symbols: Tensor, termination_symbol: int, scale: float
) -> tuple[Tensor, Tensor]:
    """px and py plus ``scale`` times the log-probabilities of am with lm's unigram.

    As in k2, the smallest normal number is added to the unigram. Symbols that lm rules out by -inf have that.
    """
    limits = torch.finfo(lm.dtype)
    rows = lm.log_softmax(2).flatten(0, 1).clamp_min(limits.min)  # a column of -inf would have gradient nan
    unigram = rows.logsumexp(0) - math.log(rows.shape[0])
    unigram = torch.logaddexp(unigram, unigram.new_full((), math.log(limits.tiny)))
    am_log_probs = (am + unigram).log_softmax(2).transpose(1, 2)  # (B, V, T)
    px = px + scale * am_log_probs.gather(1, symbols[:, :, None].expand(px.shape))
    return px, py + scale * am_log_probs[:, termination_symbol, None]


_UP = 2.0**60


class _SumLogProbs(torch.autograd.Function):
    """Log softmax of lm[s] + am[t] at the symbols and at termination.

    As in k2, the sum over the vocabulary has the smallest normal number added, so that its logarithm is finite where
    the exponentials underflow (the best joint symbol 87 below the sum of the maxima); what that number takes of the
    distribution pushes on the two maxima. Its reciprocal times a lattice's sums overflows, hence the factor `_UP`.
    """

    @staticmethod
    def forward(ctx, lm: Tensor, am: Tensor, symbols: Tensor, blank: int):
        lm_max, lm_best = lm.max(2, keepdim=True)
        am_max, am_best = am.max(2, keepdim=True)
        lm_up, am_exp = (lm - lm_max).exp_().mul_(_UP), (am - am_max).exp_()
        total = (lm_up @ am_exp.transpose(1, 2)).add_(_UP * torch.finfo(am.dtype).tiny)  # (B, S+1, T)
        normaliser = (total / _UP).log_()
        # Each part less its own maximum: huge logits keep the digits of their differences.
        lm_symbol = lm[:, :-1].gather(2, symbols[:, :, None]) - lm_max[:, :-1]
        am_symbol = am.transpose(1, 2).gather(1, symbols[:, :, None].expand(-1, -1, am.shape[1]))
        px = lm_symbol + (am_symbol - am_max.transpose(1, 2)) - normaliser[:, :-1]
        py = (lm[:, :, blank, None] - lm_max) + (am[:, :, blank, None] - am_max).transpose(1, 2) - normaliser
        ctx.blank = blank
        ctx.save_for_backward(lm_up, lm_best, am_exp, am_best, total, symbols)
        return px, py

    @staticmethod
    @once_differentiable
    def backward(ctx, px_grad: Tensor, py_grad: Tensor):
        lm_up, lm_best, am_exp, am_best, total, symbols = ctx.saved_tensors
        with torch.autocast(total.device.type, enabled=False):  # backward may be called where it is on
            row_grad = py_grad.clone()
            row_grad[:, :-1] += px_grad
            ratio = row_grad / -total
            rest = ratio * (_UP * torch.finfo(total.dtype).tiny)

            am_grad = (ratio.transpose(1, 2) @ (lm_up / _UP)).mul_(am_exp).mul_(_UP)
            am_grad.scatter_add_(2, am_best, rest.sum(1)[:, :, None])
            am_grad.transpose(1, 2).scatter_add_(1, symbols[:, :, None].expand(px_grad.shape), px_grad)
            am_grad[:, :, ctx.blank] += py_grad.sum(1)

            lm_grad = (ratio @ am_exp).mul_(lm_up)
            lm_grad.scatter_add_(2, lm_best, rest.sum(2, keepdim=True))
            lm_grad[:, :-1].scatter_add_(2, symbols[:, :, None], px_grad.sum(2, keepdim=True))
            lm_grad[:, :, ctx.blank] += py_grad.sum(2)
        return lm_grad, am_grad, None, None
