"""The half feed-forward branch: x + factor dropout(W2 dropout(SiLU(W1 LayerNorm(x) + b1)) + b2), and LayerNorm alone.

B batch, T frames, N = B T rows, D channels.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sumix_kernels.cpu.training import (
    activate,
    activate_back,
    add_branch,
    add_branch_back,
    normalise_rows,
    normalise_rows_back,
)
from sumix_kernels.training.rows import NO_DROPOUT, NO_LENGTHS, NO_ROWS, draw_dropout, num_parts, share


def feed_forward(
    x: Tensor, norm: nn.LayerNorm, expand: nn.Linear, contract: nn.Linear, factor: float, dropout: float
) -> Tensor:
    """x (B, T, D) plus `factor` times the branch; two dropouts of probability `dropout`, keys from torch's generator.

    Takes what `usable` admits. Raises ValueError for a probability outside [0, 1).
    """
    drops = draw_dropout(dropout), draw_dropout(dropout)
    parameters = (norm.weight, norm.bias, expand.weight, expand.bias, contract.weight, contract.bias)
    return _FeedForward.apply(x, *parameters, norm.eps, np.float32(factor), drops)


def masked_norm(x: Tensor, norm: nn.LayerNorm, lengths: Tensor, dropout: float = 0.0) -> Tensor:
    """dropout(LayerNorm(x)) of x (B, T, D), zero at and past the lengths (B,)."""
    return _MaskedNorm.apply(x, norm.weight, norm.bias, norm.eps, lengths, draw_dropout(dropout))


def normalised(rows: Tensor, weight: Tensor, bias: Tensor, eps: float, parts: int) -> tuple[Tensor, Tensor]:
    """LayerNorm of rows (N, D), and their statistics (N, 2)."""
    out, stats = torch.empty_like(rows), rows.new_empty(rows.shape[0], 2)
    arguments = (rows, weight, bias, np.float32(eps), NO_LENGTHS, 0, NO_DROPOUT, out, stats)
    share(normalise_rows, rows.shape[0], parts, *arguments)
    return out, stats


def normalised_back(
    grad: Tensor, rows: Tensor, weight: Tensor, stats: Tensor, residual: Tensor, parts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by rows plus `residual`, in the memory of `grad`, and by weight and bias."""
    weight_grads, bias_grads = rows.new_zeros(2, parts, weight.shape[0]).unbind()
    arguments = (grad, rows, weight, stats, NO_LENGTHS, 0, NO_DROPOUT, residual, weight_grads, bias_grads)
    share(normalise_rows_back, rows.shape[0], parts, *arguments)
    return grad, weight_grads.sum(0), bias_grads.sum(0)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, w1, b1, w2, b2, eps, factor, drops):
        rows = x.contiguous().view(-1, x.shape[-1])
        parts = num_parts(rows.shape[0])
        normal, stats = normalised(rows, norm_weight, norm_bias, eps, parts)
        hidden = torch.addmm(b1, normal, w1.t())
        active = torch.empty_like(hidden)
        share(activate, rows.shape[0], parts, hidden, drops[0], active)
        out = torch.addmm(b2, active, w2.t())
        share(add_branch, rows.shape[0], parts, rows, out, factor, NO_LENGTHS, 0, drops[1])
        ctx.save_for_backward(rows, stats, normal, hidden, active, norm_weight, w1, w2)
        ctx.settings = factor, drops
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, stats, normal, hidden, active, norm_weight, w1, w2 = ctx.saved_tensors
        factor, drops = ctx.settings
        residual = grad.contiguous().view(rows.shape)
        parts = num_parts(rows.shape[0])
        out_grad, b2_grads = torch.empty_like(rows), rows.new_zeros(parts, rows.shape[1])
        share(add_branch_back, rows.shape[0], parts, residual, factor, NO_LENGTHS, 0, drops[1], out_grad, b2_grads)
        w2_grad = out_grad.t() @ active
        hidden_grad, b1_grads = out_grad @ w2, rows.new_zeros(parts, hidden.shape[1])
        share(activate_back, rows.shape[0], parts, hidden_grad, hidden, drops[0], b1_grads)
        w1_grad = hidden_grad.t() @ normal
        x_grad, *norm_grads = normalised_back(hidden_grad @ w1, rows, norm_weight, stats, residual, parts)
        x_grad = x_grad.view(grad.shape)
        return x_grad, *norm_grads, w1_grad, b1_grads.sum(0), w2_grad, b2_grads.sum(0), None, None, None


class _MaskedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, lengths, drop):
        rows = x.contiguous().view(-1, x.shape[-1])
        out, stats = torch.empty_like(rows), rows.new_empty(rows.shape[0], 2)
        arguments = (rows, weight, bias, np.float32(eps), lengths, x.shape[1], drop, out, stats)
        share(normalise_rows, rows.shape[0], num_parts(rows.shape[0]), *arguments)
        ctx.save_for_backward(rows, stats, weight, lengths)
        ctx.drop = drop
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, stats, weight, lengths = ctx.saved_tensors
        parts = num_parts(rows.shape[0])
        out = torch.empty_like(rows).copy_(grad.reshape(rows.shape))
        weight_grads, bias_grads = rows.new_zeros(2, parts, weight.shape[0]).unbind()
        arguments = (out, rows, weight, stats, lengths, grad.shape[1], ctx.drop, NO_ROWS)
        share(normalise_rows_back, rows.shape[0], parts, *arguments, weight_grads, bias_grads)
        return out.view(grad.shape), weight_grads.sum(0), bias_grads.sum(0), None, None, None
