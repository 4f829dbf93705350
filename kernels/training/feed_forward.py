"""The half feed-forward branch: x + factor dropout(W2 dropout(SiLU(W1 LayerNorm(x) + b1)) + b2), and LayerNorm alone.

B batch, T frames, N = B T rows, D channels.
"""

import numpy as np
import torch
from torch import Tensor, nn

from sumix_kernels.cpu.training import normalise_rows, normalise_rows_back
from sumix_kernels.cpu.training_products import feed_forward as feed_forward_blocks
from sumix_kernels.cpu.training_products import feed_forward_back as feed_forward_blocks_back
from sumix_kernels.training.products import (
    filled,
    in_panels,
    in_panels_back,
    num_block_parts,
    room,
    share_blocks,
    weight_grad,
    weight_room,
)
from sumix_kernels.training.rows import NO_ROWS, applied, backward_once, draw_dropout, num_parts, share


def feed_forward(
    x: Tensor, norm: nn.LayerNorm, expand: nn.Linear, contract: nn.Linear, factor: float, dropout: float
) -> Tensor:
    """x (B, T, D) plus `factor` times the branch; two dropouts of probability `dropout`, keys from torch's generator.

    Takes what `training_branches` admits. Raises ValueError for a probability outside [0, 1).
    """
    drops = draw_dropout(dropout), draw_dropout(dropout)
    parameters = (norm.weight, norm.bias, expand.weight, expand.bias, contract.weight, contract.bias)
    return applied(_FeedForward, x, *parameters, norm.eps, np.float32(factor), drops)


def masked_norm(x: Tensor, norm: nn.LayerNorm, lengths: Tensor, dropout: float = 0.0) -> Tensor:
    """dropout(LayerNorm(x)) of x (B, T, D), zero at and past the lengths (B,)."""
    return applied(_MaskedNorm, x, norm.weight, norm.bias, norm.eps, lengths, draw_dropout(dropout))


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, w1, b1, w2, b2, eps, factor, drops, bf16):
        rows = x.contiguous().view(-1, x.shape[-1])
        N, width = rows.shape[0], len(b1)
        stats, hidden, out = rows.new_empty(N, 2), room(N, width), torch.empty_like(rows)
        weights = (in_panels(w1, bf16), filled(b1), in_panels(w2, bf16), filled(b2))
        arguments = (norm_weight, norm_bias, np.float32(eps), *weights)
        share_blocks(feed_forward_blocks, N, rows, *arguments, factor, width, *drops, stats, hidden, out)
        ctx.save_for_backward(rows, stats, hidden, norm_weight, norm_bias, w1, w2)
        ctx.settings = factor, drops, bf16
        return out.view(x.shape)

    @staticmethod
    @backward_once
    def backward(ctx, grad):
        rows, stats, hidden, norm_weight, norm_bias, w1, w2 = ctx.saved_tensors
        factor, drops, bf16 = ctx.settings
        (N, D), width = rows.shape, len(w1)
        parts, out = num_block_parts(N), torch.empty_like(rows)
        w1_grads, w2_grads = weight_room(parts, w1), weight_room(parts, w2)
        b1_grads, b2_grads = rows.new_zeros(parts, width), rows.new_zeros(parts, D)
        norm_grads = rows.new_zeros(2, parts, D).unbind()
        weights = in_panels_back(w1, bf16), in_panels_back(w2, bf16)
        arguments = (rows, stats, hidden, norm_weight, norm_bias, *weights)
        sums = (w1_grads, b1_grads, w2_grads, b2_grads, *norm_grads)
        share_blocks(
            feed_forward_blocks_back, N, grad.contiguous().view(N, D), *arguments, factor, width, *drops, out, *sums
        )
        w1_grad, w2_grad = weight_grad(w1_grads, w1), weight_grad(w2_grads, w2)
        b1_grad, b2_grad, *norm_grads = (part.sum(0) for part in (b1_grads, b2_grads, *norm_grads))
        return out.view(grad.shape), *norm_grads, w1_grad, b1_grad, w2_grad, b2_grad, None, None, None, None


class _MaskedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, lengths, drop, _):
        rows = x.contiguous().view(-1, x.shape[-1])
        out, stats = torch.empty_like(rows), rows.new_empty(rows.shape[0], 2)
        arguments = (rows, weight, bias, np.float32(eps), lengths, x.shape[1], drop, out, stats)
        share(normalise_rows, rows.shape[0], num_parts(rows.shape[0]), *arguments)
        ctx.save_for_backward(rows, stats, weight, lengths)
        ctx.drop = drop
        return out.view(x.shape)

    @staticmethod
    @backward_once
    def backward(ctx, grad):
        rows, stats, weight, lengths = ctx.saved_tensors
        parts = num_parts(rows.shape[0])
        out = torch.empty_like(rows).copy_(grad.reshape(rows.shape))
        weight_grads, bias_grads = rows.new_zeros(2, parts, weight.shape[0]).unbind()
        arguments = (out, rows, weight, stats, lengths, grad.shape[1], ctx.drop, NO_ROWS)
        share(normalise_rows_back, rows.shape[0], parts, *arguments, weight_grads, bias_grads)
        return out.view(grad.shape), weight_grads.sum(0), bias_grads.sum(0), None, None, None, None
