"""The joiner's arc log-probabilities by compiled functions: `sumix_kernels.rnnt.joint.joint_log_probs`.

B batch, T frames, R lattice rows a frame, V vocabulary, J joint dimension.
"""

import torch
from torch import Tensor

from sumix_kernels.cpu.training_joiner import join, join_back
from sumix_kernels.training.products import filled, in_panels, in_panels_back, weight_grad, weight_room
from sumix_kernels.training.rows import backward_once, num_parts, share

_LEAST_FRAMES = 16  # that are worth a thread's start


def joint_log_probs(
    enc: Tensor,
    pred: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ranges: Tensor,
    targets: Tensor,
    blank: int,
    bf16: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log softmax of ``tanh(enc[b, t] + pred[b, ranges[b, t, r]]) @ weight.T + bias`` at targets and at blank.

    enc (B, T, J), pred (B, S+1, J), weight (V, J), bias (V,) or None, ranges and targets (B, T, R); both (B, T, R)
    in fp32. With `bf16` factors of products are rounded to it.
    """
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    with torch.autocast("cpu", enabled=False):
        return _Join.apply(enc.float(), pred.float(), weight.float(), bias.float(), ranges, targets, blank, bf16)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, enc, pred, weight, bias, ranges, targets, blank: int, bf16: bool):
        (B, T, R), J = ranges.shape, enc.shape[2]
        enc_rows, pred_rows = enc.contiguous().view(-1, J), pred.contiguous().view(-1, J)
        offsets = torch.arange(B)[:, None, None] * pred.shape[1]
        where, targets = (ranges + offsets).flatten(), targets.flatten()
        x, y, normalisers = enc.new_empty(3, B * T * R).unbind()
        arguments = (enc_rows, pred_rows, where, targets, blank, in_panels(weight, bf16), filled(bias), R, len(weight))
        share(join, B * T, num_parts(B * T, _LEAST_FRAMES), *arguments, x, y, normalisers)
        ctx.save_for_backward(enc_rows, pred_rows, weight, bias, where, targets, normalisers)
        ctx.settings = blank, enc.shape, pred.shape, bf16
        return x.view(B, T, R), y.view(B, T, R)

    @staticmethod
    @backward_once
    def backward(ctx, x_grad: Tensor, y_grad: Tensor):
        enc, pred, weight, bias, where, targets, normalisers = ctx.saved_tensors
        blank, enc_shape, pred_shape, bf16 = ctx.settings
        num_frames, V = len(enc), len(weight)
        parts, R = num_parts(num_frames, _LEAST_FRAMES), x_grad.shape[2]
        gradients = (x_grad.flatten().contiguous(), y_grad.flatten().contiguous())
        weights = in_panels(weight, bf16), in_panels_back(weight, bf16), filled(bias)
        arguments = (enc, pred, where, targets, blank, *weights, R, V)
        enc_grad, weight_grads = torch.empty_like(enc), weight_room(parts, weight)
        pred_grads, bias_grads = enc.new_zeros(parts, *pred.shape), enc.new_zeros(parts, V)
        sums = (pred_grads, weight_grads, bias_grads)
        share(join_back, num_frames, parts, *gradients, *arguments, normalisers, enc_grad, *sums)
        pred_grad, bias_grad = pred_grads.sum(0), bias_grads.sum(0)
        grads = (enc_grad.view(enc_shape), pred_grad.view(pred_shape), weight_grad(weight_grads, weight), bias_grad)
        return *grads, None, None, None, None
