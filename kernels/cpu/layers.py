"""A conformer's layers while it streams: one chunk of some streams as one function.

Each frame and each stream is computed by itself, so its bits do not depend on the batch.

B streams, C frames of a chunk, D channels, n = B C rows of frames, k taps, L kept chunks, F numbers of a state,
Y layers. Arrays of rows may be wider than what they hold, and have rows that fill them up (`products.multiply`).
"""

import numpy as np

from sumix_kernels.cpu.compiled import ONE, ZERO, compiled, gelu, inlined, sigmoid, two_sum
from sumix_kernels.cpu.products import ROWS, WIDTH, filled_up, multiply, part


@inlined
def _normalise_row(x, n, weight, bias, eps, out):
    D = len(weight)
    total = ZERO
    for d in range(D):
        total += x[n, d]
    mean = total / np.float32(D)
    squares = ZERO
    for d in range(D):
        squares += (x[n, d] - mean) * (x[n, d] - mean)
    scale = ONE / np.sqrt(squares / np.float32(D) + eps)
    for d in range(D):
        out[n, d] = (x[n, d] - mean) * scale * weight[d] + bias[d]


@compiled
def normalise(x, count, weight, bias, eps, out):
    """out = LayerNorm of the first `count` rows of x (n, D)."""
    for n in range(count):
        _normalise_row(x, n, weight, bias, eps, out)


@compiled
def summarise(
    projected, lengths, frames, before, after, sums_at, compensation_at, counts_at, kept, unlimited, D, local, mean
):  # fmt: skip
    """SummaryMixing's summary: `chunk_summary_step` with its GELU, and the GELU of the local features.

    Args:
        projected: (n, 2D), local features and summands. lengths: (B,) valid frames of C = `frames`.
        before, after: (B, F) states, of which `sums_at`, `compensation_at` and `counts_at` are the parts' places;
            `kept`: L. `unlimited`: sums are compensated.
        local, mean: (n, D) and (B, D), written.
    """
    for b in range(len(lengths)):
        own = mean[b]
        for d in range(D):
            own[d] = ZERO
        for t in range(frames):
            n = b * frames + t
            for d in range(D):
                local[n, d] = gelu(projected[n, d])
            if t < lengths[b]:
                for d in range(D):
                    own[d] += gelu(projected[n, D + d])
        count = np.float32(lengths[b])
        if unlimited:
            for d in range(D):
                total, error = two_sum(before[b, sums_at + d], own[d])
                error += before[b, compensation_at + d]
                after[b, sums_at + d], after[b, compensation_at + d] = total, error
                own[d] = total + error
            count += before[b, counts_at]
            after[b, counts_at] = count
        elif kept:
            last, own_count = sums_at + (kept - 1) * D, count
            for i in range((kept - 1) * D):
                after[b, sums_at + i] = before[b, sums_at + D + i]
            for d in range(D):
                after[b, last + d] = own[d]
            for j in range(kept):
                count += before[b, counts_at + j]
                for d in range(D):
                    own[d] += before[b, sums_at + j * D + d]
            for j in range(kept - 1):
                after[b, counts_at + j] = before[b, counts_at + j + 1]
            after[b, counts_at + kept - 1] = own_count
        scale = ONE / max(count, ONE)
        for d in range(D):
            own[d] *= scale


@compiled
def merge(rows, local, summary, count, frames, weight, bias, eps, out):
    """rows (n, D) += GELU(local (n, D) + summary (B, D) of their stream), C = `frames`; out = their LayerNorm."""
    D = len(weight)
    for n in range(count):
        b = n // frames
        for d in range(D):
            rows[n, d] += gelu(local[n, d] + summary[b, d])
        _normalise_row(rows, n, weight, bias, eps, out)


@compiled
def convolve(gates, lengths, frames, before, after, at, taps, tap_bias, weight, bias, eps, out):
    """The convolution module between its products: `chunk_conv1d_step` with its GLU, LayerNorm, SiLU.

    Args:
        gates: (n, 2D). lengths: (B,) valid frames of C = `frames`.
        before, after: (B, F) states; `at`: of the k//2 frames before the chunk.
        taps, tap_bias: (k, D) and (D,).
        out: (n, D), written.
    """
    k, D = taps.shape
    half = k // 2
    x = np.empty((frames + half, D), np.float32)
    y = np.empty((1, D), np.float32)
    for b in range(len(lengths)):
        length = lengths[b]
        for i in range(half):
            for d in range(D):
                x[i, d] = before[b, at + i * D + d]
        for t in range(length):
            n = b * frames + t
            for d in range(D):
                x[half + t, d] = gates[n, d] * sigmoid(gates[n, D + d])
        for i in range(half):
            for d in range(D):
                after[b, at + i * D + d] = x[length + i, d]
        for t in range(frames):
            n = b * frames + t
            for d in range(D):
                y[0, d] = tap_bias[d]
            for i in range(min(k, max(length + half - t, 0))):
                for d in range(D):
                    y[0, d] += taps[i, d] * x[t + i, d]
            _normalise_row(y, 0, weight, bias, eps, y)
            for d in range(D):
                out[n, d] = y[0, d] * sigmoid(y[0, d])


@compiled
def finish(rows, lengths, frames, weight, bias, eps, out):
    """out = LayerNorm of rows (n, D), zero past each stream's length, C = `frames`."""
    D = len(weight)
    for b in range(len(lengths)):
        for t in range(frames):
            n = b * frames + t
            if t < lengths[b]:
                _normalise_row(rows, n, weight, bias, eps, out)
            else:
                for d in range(D):
                    out[n, d] = ZERO


def _step_layers(
    rows, lengths, frames, before, after, places, kept, unlimited,
    weights, biases, parts, pair_width, norms, eps, taps, tap_bias,
):  # fmt: skip
    """All layers on rows (n, D), in place, C = `frames`; frames past a stream's length become zero.

    Args:
        lengths: (B,) valid frames. before, after: (B, F) states.
        places: (Y, 4), in a state: where a layer's sums, compensation and counts begin, and its convolution's past.
        kept, unlimited: as of `summarise`.
        weights, biases, parts: as of `in_a_row`, a layer's products in the order of use: the first feed-forward
            module's first and half its second; the mixer's projection, merge_summary and merge_local; the convolution's
            expand and out; the second feed-forward module's.
        pair_width: of the widest input in bfloat16; 0 in fp32.
        norms: (Y, 6, 2, D), weights and biases before the first feed-forward module, the mixer and the convolution,
            in it, before the second feed-forward module, last. eps: (Y, 6).
        taps, tap_bias: (Y, k, D) and (Y, D).
    """
    B, D, count, num_rows, width = len(lengths), norms.shape[3], len(lengths) * frames, len(rows), rows.shape[1]
    normal, local = np.zeros((num_rows, width), np.float32), np.zeros((num_rows, width), np.float32)
    hidden = np.empty((num_rows, parts[0, 1] * WIDTH), np.float32)
    wide = np.empty((num_rows, parts[2, 1] * WIDTH), np.float32)
    mean, summary = np.zeros((filled_up(B, ROWS), width), np.float32), np.empty((filled_up(B, ROWS), width), np.float32)
    pairs = np.zeros((num_rows if pair_width else 0, pair_width), np.int16)
    for y in range(len(taps)):
        norm, small, at = norms[y], eps[y], places[y]
        w, b = weights[y], biases[y]
        normalise(rows, count, norm[0, 0], norm[0, 1], small[0], normal)
        multiply(normal, count, *part(w, b, parts[0]), 0, True, hidden, pairs)
        multiply(hidden, count, *part(w, b, parts[1]), 1, False, rows, pairs)

        normalise(rows, count, norm[1, 0], norm[1, 1], small[1], normal)
        multiply(normal, count, *part(w, b, parts[2]), 0, False, wide, pairs)
        summarise(
            wide, lengths, frames, before, after, at[0], at[1], at[2], kept, unlimited, D, local, mean
        )  # fmt: skip
        multiply(mean, B, *part(w, b, parts[3]), 0, False, summary, pairs)
        multiply(local, count, *part(w, b, parts[4]), 0, False, normal, pairs)
        merge(rows, normal, summary, count, frames, norm[2, 0], norm[2, 1], small[2], local)

        multiply(local, count, *part(w, b, parts[5]), 0, False, wide, pairs)
        convolve(
            wide, lengths, frames, before, after, at[3], taps[y], tap_bias[y], norm[3, 0], norm[3, 1], small[3], normal
        )  # fmt: skip
        multiply(normal, count, *part(w, b, parts[6]), 1, False, rows, pairs)

        normalise(rows, count, norm[4, 0], norm[4, 1], small[4], normal)
        multiply(normal, count, *part(w, b, parts[7]), 0, True, hidden, pairs)
        multiply(hidden, count, *part(w, b, parts[8]), 1, False, rows, pairs)
        finish(rows, lengths, frames, norm[5, 0], norm[5, 1], small[5], rows)


step_layers = compiled(_step_layers, nogil=True)
