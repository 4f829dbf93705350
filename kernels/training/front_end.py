"""The front end's two convolutions of 3 by 3 with strides of 2, SiLU after each.

B batch, T0 feature frames, F bins, H channels; T1 and T2 frames, F1 and F2 bins after the first and the second.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sumix_kernels.cpu.training import activate, activate_back
from sumix_kernels.cpu.training_front_end import (
    convolve_features,
    convolve_features_back,
    gather_patches,
    scatter_patches,
)
from sumix_kernels.training.rows import NO_DROPOUT, backward_once, num_parts, share

_FRAMES = 64  # whose patches are gathered at once: with 32 channels 1.5 MB, which stay in the caches


def front_end(x: Tensor, conv1: nn.Conv2d, conv2: nn.Conv2d, lengths: Tensor) -> Tensor:
    """SiLU(conv2(SiLU(conv1(x)))) of features x (B, T0, F) that are zero at and past lengths (B,) -> (B, T2, F2 H).

    Time has a frame of zeros before it at either stage. Bins come first, channels last, unlike in `Tensor.flatten` of
    the convolutions' own layout. Takes what `training_branches` admits, and an x without gradient.
    """
    with torch.autocast("cpu", enabled=False):
        return _FrontEnd.apply(x.float(), conv1.weight, conv1.bias, conv2.weight, conv2.bias, lengths)


class _FrontEnd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2, lengths):
        (B, T0, F), H = x.shape, len(w1)
        T1, F1 = (T0 + 1) // 2, (F + 1) // 2
        T2, F2 = (T1 + 1) // 2, (F1 + 1) // 2
        padded = functional.pad(x, (1, 1, 1, 1))
        taps, weight = w1.reshape(H, 9).t().contiguous(), w2.permute(2, 3, 1, 0).reshape(9 * H, H)
        lengths = (lengths + 1) // 2
        images = x.new_empty(B, T1, F1 + 2, H)
        share(convolve_features, B, num_parts(B, 1), padded, taps, b1, lengths, images)
        hidden = x.new_empty(B * T2 * F2, H)
        for first, patches in _blocks(images, T2, F2):
            torch.addmm(b2, patches, weight, out=hidden[first * F2 : first * F2 + patches.shape[0]])
        out = torch.empty_like(hidden)
        share(activate, hidden.shape[0], num_parts(hidden.shape[0]), hidden, NO_DROPOUT, out)
        ctx.save_for_backward(padded, taps, b1, weight, lengths, images, hidden)
        return out.view(B, T2, F2 * H)

    @staticmethod
    @backward_once
    def backward(ctx, grad):
        padded, taps, b1, weight, lengths, images, hidden = ctx.saved_tensors
        (B, T2, _), H = grad.shape, len(b1)
        F2 = hidden.shape[0] // (B * T2)
        parts = num_parts(hidden.shape[0])
        hidden_grad, b2_grads = torch.empty_like(hidden).copy_(grad.reshape(hidden.shape)), hidden.new_zeros(parts, H)
        share(activate_back, hidden.shape[0], parts, hidden_grad, hidden, NO_DROPOUT, b2_grads)
        weight_grad, images_grad = torch.zeros_like(weight), torch.zeros_like(images)
        for first, patches in _blocks(images, T2, F2):
            own = hidden_grad[first * F2 : first * F2 + patches.shape[0]]
            weight_grad.addmm_(patches.t(), own)
            torch.mm(own, weight.t(), out=patches)
            count = patches.shape[0] // F2
            scatter_patches(count, patches.view(count, F2, 3, 3 * H).numpy(), first, T2, images_grad.numpy())
        parts = num_parts(B, 1)
        tap_grads, b1_grads = hidden.new_zeros(parts, 9, H), hidden.new_zeros(parts, H)
        share(convolve_features_back, B, parts, images_grad, padded, taps, b1, lengths, tap_grads, b1_grads)
        w1_grad = tap_grads.sum(0).t().reshape(H, 1, 3, 3)
        w2_grad = weight_grad.view(3, 3, H, H).permute(3, 2, 0, 1)
        return None, w1_grad, b1_grads.sum(0), w2_grad, b2_grads.sum(0), None


def _blocks(images: Tensor, T2: int, F2: int):
    """First frame and patches (n F2, 9 H) of each block of the B T2 frames, in memory that the next one overwrites."""
    total, H = len(images) * T2, images.shape[3]
    room = images.new_empty(min(_FRAMES, total), F2, 3, 3 * H)
    for first in range(0, total, _FRAMES):
        patches = room[: min(_FRAMES, total - first)]
        share(gather_patches, patches.shape[0], num_parts(patches.shape[0], 8), images, first, T2, patches)
        yield first, patches.view(-1, 9 * H)
