"""Rows of a conformer in training, between its products: LayerNorm, SiLU, dropout, residual sums; forward and backward.

Each function takes rows [begin, end) of its arrays, so that threads share them, and `part`, the row of the arrays of
partial sums that is this thread's. Gradients by parameters are added to partial sums; all else is written. No two
arguments may share memory: loops whose arrays overlap are not done by vectors.

N = B T rows of frames, D channels, P parts. `drop` is (key, second key, threshold, 1 / (1 - probability)) of a dropout.
"""

import numpy as np

from sumix_kernels.cpu.compiled import ONE, ZERO, compiled, inlined, sigmoid
from sumix_kernels.cpu.dropout import random_bits


@inlined
def dropped(x, place, key, second_key, threshold, scale):
    return x * scale if random_bits(np.uint32(place), key, second_key) >= threshold else ZERO


@inlined
def mean_and_scale(x, n, eps):
    D = x.shape[1]
    total = ZERO
    for d in range(D):
        total += x[n, d]
    mean = total / np.float32(D)
    squares = ZERO
    for d in range(D):
        squares += (x[n, d] - mean) * (x[n, d] - mean)
    return mean, ONE / np.sqrt(squares / np.float32(D) + eps)


@inlined
def is_padding(n, lengths, num_frames):
    """Whether row n lies past its utterance's length; never where num_frames is 0."""
    return num_frames > 0 and n % num_frames >= lengths[n // num_frames]


def _normalise_rows(begin, end, part, x, weight, bias, eps, lengths, num_frames, drop, out, stats):
    """out = dropout(LayerNorm(x)), zero on padding; stats (N, 2): mean and reciprocal deviation of each row."""
    key, second_key, threshold, scale = drop
    D = len(weight)
    for n in range(begin, end):
        mean, inverse = mean_and_scale(x, n, eps)
        stats[n, 0], stats[n, 1] = mean, inverse
        if is_padding(n, lengths, num_frames):
            out[n] = ZERO
        elif threshold:
            for d in range(D):
                y = (x[n, d] - mean) * inverse * weight[d] + bias[d]
                out[n, d] = dropped(y, n * D + d, key, second_key, threshold, scale)
        else:
            for d in range(D):
                out[n, d] = (x[n, d] - mean) * inverse * weight[d] + bias[d]


def _normalise_rows_back(
    begin, end, part, grad, x, weight, stats, lengths, num_frames, drop, residual, weight_grads, bias_grads
):  # fmt: skip
    """grad becomes the gradient by x, plus `residual` (N, D) where that has rows."""
    key, second_key, threshold, scale = drop
    D = len(weight)
    normal, inner = np.empty(D, np.float32), np.empty(D, np.float32)
    weight_grad, bias_grad = weight_grads[part], bias_grads[part]
    for n in range(begin, end):
        if is_padding(n, lengths, num_frames):
            for d in range(D):
                grad[n, d] = residual[n, d] if len(residual) else ZERO
            continue
        mean, inverse = stats[n, 0], stats[n, 1]
        total, along = ZERO, ZERO
        if threshold:
            for d in range(D):
                inner[d] = dropped(grad[n, d], n * D + d, key, second_key, threshold, scale)
        else:
            for d in range(D):
                inner[d] = grad[n, d]
        for d in range(D):
            g = inner[d]
            h = (x[n, d] - mean) * inverse
            weight_grad[d] += g * h
            bias_grad[d] += g
            g *= weight[d]
            normal[d], inner[d] = h, g
            total += g
            along += g * h
        total /= np.float32(D)
        along /= np.float32(D)
        if len(residual):
            for d in range(D):
                grad[n, d] = residual[n, d] + (inner[d] - total - normal[d] * along) * inverse
        else:
            for d in range(D):
                grad[n, d] = (inner[d] - total - normal[d] * along) * inverse


def _activate(begin, end, part, x, drop, out):
    """out = dropout(SiLU(x))."""
    key, second_key, threshold, scale = drop
    D = x.shape[1]
    for n in range(begin, end):
        if threshold:
            for d in range(D):
                y = x[n, d] * sigmoid(x[n, d])
                out[n, d] = dropped(y, n * D + d, key, second_key, threshold, scale)
        else:
            for d in range(D):
                out[n, d] = x[n, d] * sigmoid(x[n, d])


def _activate_back(begin, end, part, grad, x, drop, sums):
    """grad becomes the gradient by x; sums (P, D) += its rows."""
    key, second_key, threshold, scale = drop
    D = x.shape[1]
    total = sums[part]
    for n in range(begin, end):
        for d in range(D):
            g = dropped(grad[n, d], n * D + d, key, second_key, threshold, scale)
            s = sigmoid(x[n, d])
            g *= s * (ONE + x[n, d] * (ONE - s))
            grad[n, d] = g
            total[d] += g


def _add_branch(begin, end, part, x, y, factor, lengths, num_frames, drop):
    """y becomes x + factor dropout(y), x on padding."""
    key, second_key, threshold, scale = drop
    D = x.shape[1]
    for n in range(begin, end):
        if is_padding(n, lengths, num_frames):
            for d in range(D):
                y[n, d] = x[n, d]
        else:
            for d in range(D):
                y[n, d] = x[n, d] + factor * dropped(y[n, d], n * D + d, key, second_key, threshold, scale)


def _add_branch_back(begin, end, part, grad, factor, lengths, num_frames, drop, out, sums):
    """out = gradient by y; sums (P, D) += its rows."""
    key, second_key, threshold, scale = drop
    D = grad.shape[1]
    total = sums[part]
    for n in range(begin, end):
        if is_padding(n, lengths, num_frames):
            for d in range(D):
                out[n, d] = ZERO
        else:
            for d in range(D):
                g = factor * dropped(grad[n, d], n * D + d, key, second_key, threshold, scale)
                out[n, d] = g
                total[d] += g


normalise_rows = compiled(_normalise_rows, nogil=True)
normalise_rows_back = compiled(_normalise_rows_back, nogil=True)
activate = compiled(_activate, nogil=True)
activate_back = compiled(_activate_back, nogil=True)
add_branch = compiled(_add_branch, nogil=True)
add_branch_back = compiled(_add_branch_back, nogil=True)
