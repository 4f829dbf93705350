"""SummaryMixing in training, between its products: GELU, summaries of chunks, merging; forward and backward.

Each function takes utterances [begin, end), so that threads share them, and `part`: see `training`.

B utterances of T frames, N = B T rows, D channels, K chunks of the utterance that has most. `sizes` and `lefts` (B,)
are chunk sizes in frames, at most T, and left contexts in chunks, K or more for unlimited.
"""

import numpy as np

from sumix_kernels.cpu.compiled import HALF, ONE, ZERO, compiled, exp, gelu, inlined
from sumix_kernels.cpu.training import dropped

_ERF_P, _A1, _A2, _A3, _A4, _A5 = map(
    np.float32, (0.3275911, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
)
_SQRT_HALF, _DENSITY = np.float32(0.5**0.5), np.float32((2 * np.pi) ** -0.5)


@inlined
def gelu_slope(x):
    """Derivative of GELU: Phi(x) + x phi(x), of `compiled.gelu`'s approximation of the error function."""
    z = abs(x) * _SQRT_HALF
    t = ONE / (ONE + _ERF_P * z)
    bell = exp(-z * z)
    half_tail = HALF * ((((_A5 * t + _A4) * t + _A3) * t + _A2) * t + _A1) * t * bell
    return (ONE - half_tail if x > ZERO else half_tail) + x * _DENSITY * bell


def _summarise_chunks(begin, end, part, projected, lengths, sizes, lefts, T, local, mean):
    """local (N, D) = GELU of the first half of `projected` (N, 2D); mean (B, K, D) of the GELU of the second half over
    the valid frames that a chunk sees."""
    K, D = mean.shape[1:]
    sums = np.empty((K, D), np.float32)
    running = np.empty(D, np.float32)
    for b in range(begin, end):
        length, size, left = lengths[b], sizes[b], lefts[b]
        running[:] = ZERO
        for c in range(K):
            own = sums[c]
            own[:] = ZERO
            for t in range(c * size, min((c + 1) * size, T)):
                n = b * T + t
                for d in range(D):
                    local[n, d] = gelu(projected[n, d])
                if t < length:
                    for d in range(D):
                        own[d] += gelu(projected[n, D + d])
            if left >= K:
                for d in range(D):
                    running[d] += own[d]
            else:
                running[:] = ZERO
                for i in range(max(0, c - left), c + 1):
                    for d in range(D):
                        running[d] += sums[i, d]
            share = ONE / np.float32(_seen(c, length, size, left))
            for d in range(D):
                mean[b, c, d] = running[d] * share


@inlined
def _seen(c, length, size, left):
    """Valid frames that chunk c sees, at least 1."""
    return max(1, min((c + 1) * size, length) - min(max(0, c - left) * size, length))


def _summarise_chunks_back(
    begin, end, part, local_grad, mean_grad, projected, lengths, sizes, lefts, T, out, sums
):  # fmt: skip
    """out (N, 2D) = gradient by `projected`; sums (P, 2D) += its rows."""
    K, D = mean_grad.shape[1:]
    total = sums[part]
    shares, running = np.empty((K, D), np.float32), np.zeros(D, np.float32)
    for b in range(begin, end):
        length, size, left = lengths[b], sizes[b], lefts[b]
        running[:] = ZERO
        for c in range(K - 1, -1, -1):
            share = ONE / np.float32(_seen(c, length, size, left))
            for d in range(D):
                shares[c, d] = mean_grad[b, c, d] * share
            if left >= K:
                for d in range(D):
                    running[d] += shares[c, d]
            else:
                running[:] = ZERO
                for i in range(c, min(c + left + 1, K)):
                    for d in range(D):
                        running[d] += shares[i, d]
            for t in range(c * size, min((c + 1) * size, T)):
                n = b * T + t
                for d in range(D):
                    g = local_grad[n, d] * gelu_slope(projected[n, d])
                    out[n, d] = g
                    total[d] += g
                if t < length:
                    for d in range(D):
                        g = running[d] * gelu_slope(projected[n, D + d])
                        out[n, D + d] = g
                        total[D + d] += g
                else:
                    for d in range(D):
                        out[n, D + d] = ZERO


def _merge_chunks(begin, end, part, x, local, summary, lengths, sizes, T, drop, out):
    """out = x + dropout(GELU(local (N, D) + summary (B, K, D) of the frame's chunk)), x on padding."""
    key, second_key, threshold, scale = drop
    D = x.shape[1]
    for b in range(begin, end):
        for t in range(T):
            n = b * T + t
            if t < lengths[b]:
                own = summary[b, t // sizes[b]]
                for d in range(D):
                    y = gelu(local[n, d] + own[d])
                    out[n, d] = x[n, d] + dropped(y, n * D + d, key, second_key, threshold, scale)
            else:
                for d in range(D):
                    out[n, d] = x[n, d]


def _merge_chunks_back(begin, end, part, grad, local, summary, lengths, sizes, T, drop, local_grad, summary_grad):
    """Gradients by `local` (N, D) and `summary` (B, K, D); that by x is `grad`."""
    key, second_key, threshold, scale = drop
    D = grad.shape[1]
    for b in range(begin, end):
        summary_grad[b] = ZERO
        for t in range(T):
            n = b * T + t
            if t < lengths[b]:
                own, total = summary[b, t // sizes[b]], summary_grad[b, t // sizes[b]]
                for d in range(D):
                    g = dropped(grad[n, d], n * D + d, key, second_key, threshold, scale)
                    g *= gelu_slope(local[n, d] + own[d])
                    local_grad[n, d] = g
                    total[d] += g
            else:
                for d in range(D):
                    local_grad[n, d] = ZERO


summarise_chunks = compiled(_summarise_chunks, nogil=True)
summarise_chunks_back = compiled(_summarise_chunks_back, nogil=True)
merge_chunks = compiled(_merge_chunks, nogil=True)
merge_chunks_back = compiled(_merge_chunks_back, nogil=True)
