"""The front end by eight: a convolution of 3 by 3 and two depthwise-separable ones with strides of 2, SiLU after each.

B batch, T0 feature frames, F bins, H channels; T1, T2, T3 frames and F1, F2, F3 bins after each stage.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sumix_kernels.cpu.training import activate, activate_back
from sumix_kernels.cpu.training_front_end import convolve_features, convolve_features_back
from sumix_kernels.cpu.training_separable import (
    activate_images,
    activate_images_back,
    convolve_depthwise,
    convolve_depthwise_back,
)
from sumix_kernels.training.rows import NO_DROPOUT, backward_once, num_parts, share


def separable_front_end(x: Tensor, conv1: nn.Conv2d, stages: nn.ModuleList, lengths: Tensor) -> Tensor:
    """Features x (B, T0, F) that are zero at and past lengths (B,) -> (B, T3, F3 H), bins first, channels last.

    `stages` have a `depthwise` and a `pointwise` convolution each. Time has a frame of zeros before it at every stage.
    Takes what `training_branches` admits, and an x without gradient.
    """
    parameters = [conv1.weight, conv1.bias]
    for stage in stages:
        for convolution in (stage.depthwise, stage.pointwise):
            parameters += [convolution.weight, convolution.bias]
    with torch.autocast("cpu", enabled=False):
        return _SeparableFrontEnd.apply(x.float(), lengths, *parameters)


class _SeparableFrontEnd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, lengths, w1, b1, dw2, db2, pw2, pb2, dw3, db3, pw3, pb3):
        (B, T0, F), H = x.shape, len(w1)
        T1, F1, parts = (T0 + 1) // 2, (F + 1) // 2, num_parts(B, 1)
        T2, F2 = (T1 + 1) // 2, (F1 + 1) // 2
        T3, F3 = (T2 + 1) // 2, (F2 + 1) // 2
        padded, taps1, taps2, taps3 = functional.pad(x, (1, 1, 1, 1)), _by_tap(w1), _by_tap(dw2), _by_tap(dw3)
        lengths1, lengths2 = (lengths + 1) // 2, (lengths + 3) // 4
        images1, images2 = x.new_empty(B, T1, F1 + 2, H), x.new_empty(B, T2, F2 + 2, H)
        share(convolve_features, B, parts, padded, taps1, b1, lengths1, images1)
        read2, read3 = x.new_empty(B, T2, F2, H), x.new_empty(B, T3, F3, H)
        share(convolve_depthwise, B, parts, images1, taps2, db2, read2)
        hidden2 = torch.addmm(pb2, read2.view(-1, H), pw2.view(H, H).t())
        share(activate_images, B, parts, hidden2.view(read2.shape), lengths2, images2)
        share(convolve_depthwise, B, parts, images2, taps3, db3, read3)
        hidden3 = torch.addmm(pb3, read3.view(-1, H), pw3.view(H, H).t())
        out = torch.empty_like(hidden3)
        share(activate, hidden3.shape[0], num_parts(hidden3.shape[0]), hidden3, NO_DROPOUT, out)
        saved = (padded, images1, read2, hidden2, images2, read3, hidden3, taps1, b1, taps2, pw2, taps3, pw3)
        ctx.save_for_backward(*saved, lengths1, lengths2)
        return out.view(B, T3, F3 * H)

    @staticmethod
    @backward_once
    def backward(ctx, grad):
        padded, images1, read2, hidden2, images2, read3, hidden3, *parameters, lengths1, lengths2 = ctx.saved_tensors
        taps1, b1, taps2, pw2, taps3, pw3 = parameters
        B, H = len(images1), len(b1)
        parts, row_parts = num_parts(B, 1), num_parts(hidden3.shape[0])
        grad3, pb3_grads = torch.empty_like(hidden3).copy_(grad.reshape(hidden3.shape)), b1.new_zeros(row_parts, H)
        share(activate_back, hidden3.shape[0], row_parts, grad3, hidden3, NO_DROPOUT, pb3_grads)
        stage3, images2_grad = _stage_back(grad3, read3, images2, taps3, pw3)
        grad2, pb2_grads = torch.empty_like(hidden2), b1.new_zeros(parts, H)
        rows = (hidden2.view(read2.shape), lengths2, grad2.view(read2.shape))
        share(activate_images_back, B, parts, images2_grad, *rows, pb2_grads)
        stage2, images1_grad = _stage_back(grad2, read2, images1, taps2, pw2)
        tap_grads, b1_grads = b1.new_zeros(parts, 9, H), b1.new_zeros(parts, H)
        share(convolve_features_back, B, parts, images1_grad, padded, taps1, b1, lengths1, tap_grads, b1_grads)
        first = tap_grads.sum(0).t().reshape(H, 1, 3, 3), b1_grads.sum(0)
        return None, None, *first, *stage2, pb2_grads.sum(0), *stage3, pb3_grads.sum(0)


def _by_tap(weight: Tensor) -> Tensor:
    """A convolution's weight (H, 1, 3, 3) as (9, H)."""
    return weight.reshape(-1, 9).t().contiguous()


def _stage_back(grad: Tensor, read: Tensor, images: Tensor, taps: Tensor, pointwise: Tensor):
    """From the gradient (N, H) of a stage's product: those by its depthwise weight and bias and its pointwise weight,
    and by the images that it reads."""
    B, H = len(images), read.shape[3]
    parts = num_parts(B, 1)
    pointwise_grad = (grad.t() @ read.view(-1, H)).view(pointwise.shape)
    read_grad, images_grad = (grad @ pointwise.view(H, H)).view(read.shape), torch.zeros_like(images)
    tap_grads, bias_grads = grad.new_zeros(parts, 9, H), grad.new_zeros(parts, H)
    share(convolve_depthwise_back, B, parts, read_grad, images, taps, images_grad, tap_grads, bias_grads)
    return (tap_grads.sum(0).t().reshape(H, 1, 3, 3), bias_grads.sum(0), pointwise_grad), images_grad
