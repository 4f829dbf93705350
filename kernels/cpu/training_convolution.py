"""The convolution module in training, between its products: GLU, depthwise taps, LayerNorm, SiLU; forward and backward.

Each function takes utterances [begin, end), so that threads share them, and `part`: see `training`.

B utterances of T frames, N = B T rows, D channels, k taps. `sizes` (B,): chunk sizes in frames. A frame's taps reach
k // 2 frames back, and forward to the end of its chunk. Frames past a length are zero in all results.
"""

import numpy as np

from sumix_kernels.cpu.compiled import ONE, ZERO, compiled, inlined, sigmoid
from sumix_kernels.cpu.training import mean_and_scale


@inlined
def _gate(gates, first, length, out):
    """out[t] = GLU of row first + t."""
    D = out.shape[1]
    for t in range(length):
        n = first + t
        for d in range(D):
            out[t, d] = gates[n, d] * sigmoid(gates[n, D + d])


@inlined
def _reach(t, length, size, half):
    """Frames [from, to) that the taps of frame t read."""
    return max(0, t - half), min(t + half + 1, (t // size + 1) * size, length)


def _convolve_chunks(begin, end, part, gates, taps, tap_bias, weight, bias, eps, lengths, sizes, T, inner, stats, out):
    """out (N, D) = SiLU(LayerNorm(inner)), inner = convolution of the GLU of gates (N, 2D). taps (k, D)."""
    k, D = taps.shape
    half = k // 2
    x = np.empty((T, D), np.float32)
    for b in range(begin, end):
        length = min(lengths[b], T)
        _gate(gates, b * T, length, x)
        for t in range(length):
            n = b * T + t
            y = inner[n]
            for d in range(D):
                y[d] = tap_bias[d]
            first, last = _reach(t, length, sizes[b], half)
            for i in range(first, last):
                tap, read = taps[i - t + half], x[i]
                for d in range(D):
                    y[d] += tap[d] * read[d]
            mean, inverse = mean_and_scale(inner, n, eps)
            stats[n, 0], stats[n, 1] = mean, inverse
            for d in range(D):
                z = (y[d] - mean) * inverse * weight[d] + bias[d]
                out[n, d] = z * sigmoid(z)
        for n in range(b * T + length, (b + 1) * T):
            for d in range(D):
                out[n, d] = ZERO


def _convolve_chunks_back(
    begin, end, part, grad, gates, inner, stats, taps, weight, bias, lengths, sizes, T,
    out, sums, tap_grads, tap_bias_grads, weight_grads, bias_grads,
):  # fmt: skip
    """out (N, 2D) = gradient by gates; sums (P, 2D) += its rows; the other gradients are added to (P, k, D), (P, D)."""
    k, D = taps.shape
    half = k // 2
    total, tap_grad, tap_bias_grad = sums[part], tap_grads[part], tap_bias_grads[part]
    weight_grad, bias_grad = weight_grads[part], bias_grads[part]
    x, x_grad, y_grad = np.empty((T, D), np.float32), np.empty((T, D), np.float32), np.empty((T, D), np.float32)
    for b in range(begin, end):
        length = min(lengths[b], T)
        _gate(gates, b * T, length, x)
        for t in range(length):
            n = b * T + t
            mean, inverse = stats[n, 0], stats[n, 1]
            y = y_grad[t]
            mean_grad, along = ZERO, ZERO
            for d in range(D):
                h = (inner[n, d] - mean) * inverse
                z = h * weight[d] + bias[d]
                s = sigmoid(z)
                g = grad[n, d] * s * (ONE + z * (ONE - s))
                weight_grad[d] += g * h
                bias_grad[d] += g
                g *= weight[d]
                y[d] = g
                mean_grad += g
                along += g * h
            mean_grad /= np.float32(D)
            along /= np.float32(D)
            for d in range(D):
                y[d] = (y[d] - mean_grad - (inner[n, d] - mean) * inverse * along) * inverse
                tap_bias_grad[d] += y[d]
        x_grad[:] = ZERO
        for t in range(length):
            first, last = _reach(t, length, sizes[b], half)
            y = y_grad[t]
            for i in range(first, last):
                tap, read, sent, gathered = taps[i - t + half], x[i], x_grad[i], tap_grad[i - t + half]
                for d in range(D):
                    sent[d] += tap[d] * y[d]
                    gathered[d] += read[d] * y[d]
        for t in range(length):
            n = b * T + t
            for d in range(D):
                s = sigmoid(gates[n, D + d])
                g = x_grad[t, d] * s
                h = g * gates[n, d] * (ONE - s)
                out[n, d], out[n, D + d] = g, h
                total[d] += g
                total[D + d] += h
        for n in range(b * T + length, (b + 1) * T):
            for d in range(2 * D):
                out[n, d] = ZERO


convolve_chunks = compiled(_convolve_chunks, nogil=True)
convolve_chunks_back = compiled(_convolve_chunks_back, nogil=True)
