"""The mixer's branch, SummaryMixing of variant fast: x + dropout(GELU(W_cf f + W_cm mean + b)).

B batch, T frames, N = B T rows, D channels, K chunks of the utterance that has most.
"""

import torch
from torch import Tensor, nn

from sumix_kernels.arguments import check_chunk_size, check_left_context, check_lengths
from sumix_kernels.cpu.training_mixer import merge_chunks, merge_chunks_back, summarise_chunks, summarise_chunks_back
from sumix_kernels.training.products import multiply, multiply_back, multiply_normal, multiply_normal_back, room
from sumix_kernels.training.rows import applied, backward_once, draw_dropout, num_parts, share


def summary_mixer(
    x: Tensor,
    norm: nn.LayerNorm,
    projection: nn.Linear,
    merge_local: nn.Linear,
    merge_summary: nn.Linear,
    lengths: Tensor,
    chunk_size: int | Tensor | None,
    left_context: int | Tensor | None,
    dropout: float,
) -> Tensor:
    """x (B, T, D) plus the branch on valid frames. Lengths, chunk sizes and left contexts: see `chunk_summary`.

    Takes what `training_branches` does. Raises ValueError as `chunk_summary` does, and for a dropout not in [0, 1).
    """
    lengths = check_lengths(lengths, x)
    size, chunks = check_chunk_size(chunk_size, x)
    left = check_left_context(left_context, x, chunks)
    sizes, lefts = per_utterance(size, x), per_utterance(chunks if left is None else left, x)
    parameters = (norm.weight, norm.bias, projection.weight, projection.bias)
    parameters = (*parameters, merge_local.weight, merge_summary.weight, merge_summary.bias)
    geometry = lengths, sizes, lefts, chunks
    return applied(_SummaryMixer, x, *parameters, norm.eps, geometry, draw_dropout(dropout))


def per_utterance(value: int | Tensor, x: Tensor) -> Tensor:
    """An int, or (B, 1), as (B,)."""
    return value.flatten().contiguous() if isinstance(value, Tensor) else torch.full((len(x),), value)


class _SummaryMixer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, w, b, local_w, summary_w, summary_b, eps, geometry, drop, bf16):
        (B, T, D), (lengths, sizes, lefts, K) = x.shape, geometry
        rows = x.contiguous().view(-1, D)
        parts, N = num_parts(B, 1), B * T
        stats, projected, local, merged = rows.new_empty(N, 2), room(N, 2 * D), room(N, D), room(N, D)
        multiply_normal(rows, norm_weight, norm_bias, eps, w, b, stats, projected, bf16)
        mean = rows.new_empty(B, K, D)
        share(summarise_chunks, B, parts, projected, lengths, sizes, lefts, T, local, mean)
        multiply(local, local_w, None, N, merged, bf16)
        summary = torch.addmm(summary_b, mean.view(-1, D), summary_w.t()).view(mean.shape)
        out = torch.empty_like(rows)
        share(merge_chunks, B, parts, rows, merged, summary, lengths, sizes, T, drop, out)
        ctx.save_for_backward(
            *(rows, stats, projected, local, mean, merged, summary),
            *(norm_weight, norm_bias, w, local_w, summary_w),
        )
        ctx.geometry, ctx.drop, ctx.bf16 = geometry, drop, bf16
        return out.view(x.shape)

    @staticmethod
    @backward_once
    def backward(ctx, grad):
        rows, stats, projected, local, mean, merged, summary, *parameters = ctx.saved_tensors
        norm_weight, norm_bias, w, local_w, summary_w = parameters
        (B, T, D), (lengths, sizes, lefts, _) = grad.shape, ctx.geometry
        residual = grad.contiguous().view(rows.shape)
        parts, N = num_parts(B, 1), B * T
        merged_grad, summary_grad = room(N, D), torch.empty_like(mean)
        arguments = (residual, merged, summary, lengths, sizes, T, ctx.drop, merged_grad, summary_grad)
        share(merge_chunks_back, B, parts, *arguments)
        flat_grad, local_grad = summary_grad.view(-1, D), room(N, D)
        local_w_grad = multiply_back(merged_grad, local, local_w, N, local_grad, ctx.bf16)
        summary_w_grad = flat_grad.t() @ mean.view(-1, D)
        mean_grad = (flat_grad @ summary_w).view(mean.shape)
        projected_grad, b_grads = room(N, 2 * D), rows.new_zeros(parts, 2 * D)
        arguments = (local_grad, mean_grad, projected, lengths, sizes, lefts, T, projected_grad, b_grads)
        share(summarise_chunks_back, B, parts, *arguments)
        back = (projected_grad, rows, stats, norm_weight, norm_bias, w, residual, ctx.bf16)
        x_grad, w_grad, *norm_grads = multiply_normal_back(*back)
        grads = (w_grad, b_grads.sum(0), local_w_grad, summary_w_grad, flat_grad.sum(0))
        return x_grad.view(grad.shape), *norm_grads, *grads, None, None, None, None
