"""The transducer's joiner in training, from projections to arc log-probabilities and back, some frames at a time.

Logits are made, used and forgotten while they lie in a cache; the backward pass makes them again from what it is given.

M frames of all utterances, R lattice rows kept a frame, N = M R rows, J joint dimension, V vocabulary, P parts.
`pred_rows` (N,): which row of `pred` (., J) each row reads. Functions take frames [begin, end); see `training`.
"""

import math

import numpy as np

from sumix_kernels.cpu.compiled import ONE, ZERO, compiled, exp, inlined, tanh
from sumix_kernels.cpu.products import ROWS, WIDTH, filled_up, multiply
from sumix_kernels.cpu.training_products import BLOCK, add_products_like, into_panels, pairs_for


@inlined
def _hidden(enc, pred, pred_rows, first, count, R, out):
    for i in range(count):
        own, other, y = enc[(first + i) // R], pred[pred_rows[first + i]], out[i]
        for j in range(enc.shape[1]):
            y[j] = tanh(own[j] + other[j])


def _join(begin, end, part, enc, pred, pred_rows, targets, blank, weights, bias, R, V, x, y, normalisers):
    """x, y, normalisers (N,): log softmax of tanh(enc + pred) W^T + bias at the targets and at blank, and its own
    logarithm. Logits that are no finite numbers give NaN."""
    frames = max(1, BLOCK // R)
    room = filled_up(frames * R, ROWS)
    hidden, logits = np.empty((room, enc.shape[1]), np.float32), np.empty((room, len(weights) * WIDTH), np.float32)
    pairs = pairs_for(weights, room)
    for frame in range(begin, end, frames):
        first, count = frame * R, (min(frame + frames, end) - frame) * R
        _hidden(enc, pred, pred_rows, first, count, R, hidden)
        multiply(hidden, count, weights, bias, 0, False, logits, pairs)
        for i in range(count):
            z, n = logits[i], first + i
            most, odd, total = z[0], ZERO, ZERO
            for v in range(V):
                most = max(most, z[v])
                odd += ZERO * z[v]  # NaN where any is infinite or NaN
            for v in range(V):
                total += exp(z[v] - most)
            normaliser = most + np.float32(math.log(total)) + odd
            x[n], y[n], normalisers[n] = z[targets[n]] - normaliser, z[blank] - normaliser, normaliser


def _join_back(
    begin, end, part, x_grad, y_grad, enc, pred, pred_rows, targets, blank, weights, weights_back, bias, R, V,
    normalisers, enc_grad, pred_grads, weight_grads, bias_grads,
):  # fmt: skip
    """enc_grad (M, J) is written; to pred_grads (P, ., J), weight_grads (P, V, J) and bias_grads (P, V) is added."""
    J = enc.shape[1]
    frames = max(1, BLOCK // R)
    room, wide = filled_up(frames * R, ROWS), len(weights_back) * WIDTH
    hidden, logits = np.zeros((room, wide), np.float32), np.empty((room, len(weights) * WIDTH), np.float32)
    hidden_grad, panels = np.empty((room, wide), np.float32), np.empty((len(weights_back), room, WIDTH), np.float32)
    pairs, pairs_back = pairs_for(weights, room), pairs_for(weights_back, room)
    none = np.zeros(wide, np.float32)
    pred_grad, bias_grad = pred_grads[part], bias_grads[part]
    for frame in range(begin, end, frames):
        first, count = frame * R, (min(frame + frames, end) - frame) * R
        _hidden(enc, pred, pred_rows, first, count, R, hidden)
        multiply(hidden, count, weights, bias, 0, False, logits, pairs)
        for i in range(count):
            z, n = logits[i], first + i
            normaliser, gx, gy = normalisers[n], x_grad[n], y_grad[n]
            both = gx + gy
            for v in range(V):
                z[v] = -both * exp(z[v] - normaliser)
            z[targets[n]] += gx
            z[blank] += gy
            for v in range(V):
                bias_grad[v] += z[v]
            into_panels(hidden[i], i, panels)
        add_products_like(logits, count, panels, none, weights, weight_grads[part])
        multiply(logits, count, weights_back, none, 0, False, hidden_grad, pairs_back)
        for i in range(count):
            n = first + i
            h, g, own, other = hidden[i], hidden_grad[i], enc_grad[n // R], pred_grad[pred_rows[n]]
            if n % R == 0:
                own[:] = ZERO
            for j in range(J):
                s = g[j] * (ONE - h[j] * h[j])
                own[j] += s
                other[j] += s


join = compiled(_join, nogil=True)
join_back = compiled(_join_back, nogil=True)
