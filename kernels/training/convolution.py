"""The convolution branch: x + dropout(W2 SiLU(LayerNorm(chunk convolution of GLU(W1 LayerNorm(x) + b1))) + b2).

B batch, T frames, N = B T rows, D channels, k taps.
"""

import numpy as np
import torch
from torch import Tensor, nn

from sumix_kernels.arguments import check_frames_of_chunk, check_lengths
from sumix_kernels.cpu.training import add_branch_back
from sumix_kernels.cpu.training_convolution import convolve_chunks, convolve_chunks_back
from sumix_kernels.cpu.training_products import product_add
from sumix_kernels.training.mixer import per_utterance
from sumix_kernels.training.products import (
    filled,
    in_panels,
    multiply_back,
    multiply_normal,
    multiply_normal_back,
    room,
    share_blocks,
)
from sumix_kernels.training.rows import applied, backward_once, draw_dropout, num_parts, share


def convolution(
    x: Tensor,
    norm: nn.LayerNorm,
    expand: nn.Linear,
    taps: Tensor,
    tap_bias: Tensor,
    inner_norm: nn.LayerNorm,
    contract: nn.Linear,
    lengths: Tensor,
    chunk_size: int | Tensor | None,
    dropout: float,
) -> Tensor:
    """x (B, T, D) plus the branch on valid frames; taps (D, k), lengths and chunk sizes: see `chunk_conv1d`.

    Takes what `training_branches` does. Raises ValueError as `chunk_conv1d` does, and for a dropout not in [0, 1).
    """
    geometry = check_lengths(lengths, x), per_utterance(check_frames_of_chunk(chunk_size, x), x)
    parameters = (norm.weight, norm.bias, expand.weight, expand.bias, taps, tap_bias)
    parameters = (*parameters, inner_norm.weight, inner_norm.bias, contract.weight, contract.bias)
    return applied(_Convolution, x, *parameters, (norm.eps, inner_norm.eps), geometry, draw_dropout(dropout))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x,
        norm_weight,
        norm_bias,
        w1,
        b1,
        taps,
        tap_bias,
        inner_weight,
        inner_bias,
        w2,
        b2,
        eps,
        geometry,
        drop,
        bf16,
    ):
        (B, T, D), (lengths, sizes) = x.shape, geometry
        rows = x.contiguous().view(-1, D)
        parts, N = num_parts(B, 1), B * T
        stats, gates, active = rows.new_empty(N, 2), room(N, 2 * D), room(N, D)
        multiply_normal(rows, norm_weight, norm_bias, eps[0], w1, b1, stats, gates, bf16)
        inner, inner_stats, out = torch.zeros_like(rows), torch.zeros_like(stats), torch.empty_like(rows)
        by_tap = taps.t().contiguous()
        arguments = (gates, by_tap, tap_bias, inner_weight, inner_bias, np.float32(eps[1]), lengths, sizes, T)
        share(convolve_chunks, B, parts, *arguments, inner, inner_stats, active)
        share_blocks(product_add, N, active, in_panels(w2, bf16), filled(b2), rows, lengths, T, drop, out)
        ctx.save_for_backward(
            *(rows, stats, gates, inner, inner_stats, active),
            *(norm_weight, norm_bias, w1, by_tap, inner_weight, inner_bias, w2),
        )
        ctx.geometry, ctx.drop, ctx.bf16 = geometry, drop, bf16
        return out.view(x.shape)

    @staticmethod
    @backward_once
    def backward(ctx, grad):
        rows, stats, gates, inner, inner_stats, active, *parameters = ctx.saved_tensors
        norm_weight, norm_bias, w1, by_tap, inner_weight, inner_bias, w2 = parameters
        (B, T, D), (lengths, sizes) = grad.shape, ctx.geometry
        residual = grad.contiguous().view(rows.shape)
        parts, row_parts, N = num_parts(B, 1), num_parts(rows.shape[0]), B * T
        out_grad, b2_grads = room(N, D), rows.new_zeros(row_parts, D)
        arguments = (residual, np.float32(1), lengths, T, ctx.drop, out_grad, b2_grads)
        share(add_branch_back, N, row_parts, *arguments)
        active_grad = room(N, D)
        w2_grad = multiply_back(out_grad, active, w2, N, active_grad, ctx.bf16)
        gates_grad, b1_grads = room(N, 2 * D), rows.new_zeros(parts, 2 * D)
        tap_grads = rows.new_zeros(parts, *by_tap.shape)
        tap_bias_grads, weight_grads, bias_grads = rows.new_zeros(3, parts, D).unbind()
        arguments = (active_grad, gates, inner, inner_stats, by_tap, inner_weight, inner_bias, lengths, sizes, T)
        sums = (b1_grads, tap_grads, tap_bias_grads, weight_grads, bias_grads)
        share(convolve_chunks_back, B, parts, *arguments, gates_grad, *sums)
        back = (gates_grad, rows, stats, norm_weight, norm_bias, w1, residual, ctx.bf16)
        x_grad, w1_grad, *norm_grads = multiply_normal_back(*back)
        b1_grad, tap_grad, tap_bias_grad, weight_grad, bias_grad = (part.sum(0) for part in sums)
        grads = (w1_grad, b1_grad, tap_grad.t(), tap_bias_grad, weight_grad, bias_grad, w2_grad, b2_grads.sum(0))
        return x_grad.view(grad.shape), *norm_grads, *grads, None, None, None, None
