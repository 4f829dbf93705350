"""What a CPU does between a conformer's products while it streams, and greedy search, compiled by Numba.

PyTorch takes some microseconds for each of the many small operators of a chunk, of which a lone stream has 16 frames:
more than for the work itself. Here what lies between two products is one function. Each frame and each stream is
computed by itself, so its bits do not depend on the batch. Arrays are C-contiguous NumPy arrays, fp32 but for lengths;
nothing is checked. Arithmetic is fp32 to a few units in the last place: tests compare with PyTorch's.

All in one file: Numba keeps compiled code until the file changes that it was written in.

B streams, C frames of a chunk, D channels, n = B C rows of frames, k taps, L kept chunks, F numbers of a stream's
state. T0 feature frames, M mel bins, H channels of the front end. V tokens, J joiner and P predictor channels, Y
predictor layers.
"""

import math
from collections.abc import Callable

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

_ZERO, _HALF, _ONE, _TWO = map(np.float32, (0, 0.5, 1, 2))
# exp: 2**k times a Taylor sum for |r| <= ln(2) / 2; ln(2) in two parts, the first exact in few bits.
_LEAST, _MOST, _LOG2_E = map(np.float32, (-87, 88, math.log2(math.e)))
_LN2 = np.float32(0.693359375)
_LN2_REST = np.float32(math.log(2) - 0.693359375)
_E2, _E3, _E4, _E5, _E6, _E7 = (np.float32(1 / math.factorial(k)) for k in range(2, 8))
# erf: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26; its error is below 1.5e-7.
_ERF_P, _A1, _A2, _A3, _A4, _A5 = map(
    np.float32, (0.3275911, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
)
_SQRT_HALF = np.float32(math.sqrt(0.5))
_BIAS, _MANTISSA = np.int32(127), np.int32(23)  # of fp32
# Sums may be reordered, so that they are done by vectors; NaN stays NaN.
_FAST = {"contract", "reassoc", "nsz", "arcp"}


def _compiled(function: Callable, *, nogil: bool = False) -> Callable:
    options = {"fastmath": _FAST, "error_model": "numpy", "nogil": nogil}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # nowhere to write: compiled anew in each process
        return numba.njit(function, **options)


_inlined = numba.njit(fastmath=_FAST, error_model="numpy", inline="always")


@intrinsic
def _as_float(typing_context, bits):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return numba.float32(numba.int32), generate


@_inlined
def _exp(x):
    x = min(max(x, _LEAST), _MOST)
    k = np.floor(x * _LOG2_E + _HALF)
    r = x - k * _LN2
    r = r - k * _LN2_REST
    y = ((((((_E7 * r + _E6) * r + _E5) * r + _E4) * r + _E3) * r + _E2) * r + _ONE) * r + _ONE
    return y * _as_float((np.int32(k) + _BIAS) << _MANTISSA)


@_inlined
def _sigmoid(x):
    return _ONE / (_ONE + _exp(-x))


@_inlined
def _tanh(x):
    return _TWO * _sigmoid(_TWO * x) - _ONE


@_inlined
def _gelu(x):
    z = abs(x) * _SQRT_HALF
    t = _ONE / (_ONE + _ERF_P * z)
    half_tail = _HALF * ((((_A5 * t + _A4) * t + _A3) * t + _A2) * t + _A1) * t * _exp(-z * z)
    return x * (_ONE - half_tail if x > _ZERO else half_tail)


@numba.njit(fastmath=False, error_model="numpy")  # in just this order; unsaid, it would be the caller's
def _two_sum(a, b):
    """a + b rounded, and exactly what the rounding dropped (Knuth, TAOCP vol. 2, 4.2.2, theorem B)."""
    total = a + b
    b_seen = total - a
    return total, (a - (total - b_seen)) + (b - b_seen)


@_inlined
def _normalise_row(x, n, weight, bias, eps, out):
    D = x.shape[1]
    total = _ZERO
    for d in range(D):
        total += x[n, d]
    mean = total / np.float32(D)
    squares = _ZERO
    for d in range(D):
        squares += (x[n, d] - mean) * (x[n, d] - mean)
    scale = _ONE / np.sqrt(squares / np.float32(D) + eps)
    for d in range(D):
        out[n, d] = (x[n, d] - mean) * scale * weight[d] + bias[d]


@_compiled
def normalise(x, count, weight, bias, eps, out):
    """LayerNorm of the first `count` rows of x (n, D)."""
    for n in range(count):
        _normalise_row(x, n, weight, bias, eps, out)


@_compiled
def summarise(
    projected, lengths, frames, before, after, sums_at, compensation_at, counts_at, kept, unlimited, local, mean
):  # fmt: skip
    """SummaryMixing's summary: `chunk_summary_step` with its GELU, and the GELU of the local features.

    Args:
        projected: (n, 2D), local features and summands. lengths: (B,) valid frames of C = `frames`.
        before, after: (B, F) states, of which `sums_at`, `compensation_at` and `counts_at` are the parts' places;
            `kept`: L. `unlimited`: sums are compensated.
        local, mean: (n, D) and (B, D), written.
    """
    D = local.shape[1]
    for b in range(len(lengths)):
        own = mean[b]
        for d in range(D):
            own[d] = _ZERO
        for t in range(frames):
            n = b * frames + t
            for d in range(D):
                local[n, d] = _gelu(projected[n, d])
            if t < lengths[b]:
                for d in range(D):
                    own[d] += _gelu(projected[n, D + d])
        count = np.float32(lengths[b])
        if unlimited:
            for d in range(D):
                total, error = _two_sum(before[b, sums_at + d], own[d])
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
        scale = _ONE / max(count, _ONE)
        for d in range(D):
            own[d] *= scale


@_compiled
def merge(rows, local, summary, count, frames, weight, bias, eps, out):
    """rows (n, D) += GELU(local (n, D) + summary (B, D) of their stream), C = `frames`; out = their LayerNorm."""
    D = rows.shape[1]
    for n in range(count):
        b = n // frames
        for d in range(D):
            rows[n, d] += _gelu(local[n, d] + summary[b, d])
        _normalise_row(rows, n, weight, bias, eps, out)


@_compiled
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
                x[half + t, d] = gates[n, d] * _sigmoid(gates[n, D + d])
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
                out[n, d] = y[0, d] * _sigmoid(y[0, d])


@_compiled
def finish(rows, lengths, frames, weight, bias, eps, out):
    """out = LayerNorm of rows (n, D), zero past each stream's length, C = `frames`."""
    D = rows.shape[1]
    for b in range(len(lengths)):
        for t in range(frames):
            n = b * frames + t
            if t < lengths[b]:
                _normalise_row(rows, n, weight, bias, eps, out)
            else:
                for d in range(D):
                    out[n, d] = _ZERO


@_compiled
def enter(feats, lengths, mean, scale, before, after, feats_at, hidden_at, taps, bias, images):
    """The front end up to its second convolution: normalisation, first convolution, SiLU.

    Args:
        feats: (B, T0, M) feature frames. lengths: (B,) valid ones. mean, scale: (M,).
        before, after: (B, F) states; `feats_at`, `hidden_at`: of the last frame before the chunk, normalised (M,) and
            after the first convolution (H, M / 2).
        taps, bias: (3, 3, H) over frames and bins, and (H,).
        images: (B, 1 + T1 or more, M / 2, H), written: the frame before the chunk, T1 = ceil(T0 / 2) frames, zeros.
    """
    T0, M = feats.shape[1:]
    num_frames, F1, H = images.shape[1:]
    x = np.zeros((2 * num_frames + 1, M + 2), np.float32)  # the frame before, T0 frames, zeros; a bin on either side
    for b in range(len(lengths)):
        for m in range(M):
            x[0, m + 1] = before[b, feats_at + m]
        for t in range(T0):
            for m in range(M):
                x[t + 1, m + 1] = (feats[b, t, m] - mean[m]) * scale[m] if t < lengths[b] else _ZERO
        for m in range(M):
            after[b, feats_at + m] = x[T0, m + 1]
        for f in range(F1):
            for h in range(H):
                images[b, 0, f, h] = before[b, hidden_at + h * F1 + f]
        num_valid = (lengths[b] + 1) // 2
        for t in range(num_frames - 1):
            for f in range(F1):
                if t >= num_valid:
                    for h in range(H):
                        images[b, t + 1, f, h] = _ZERO
                    continue
                i, j = 2 * t, 2 * f
                x00, x01, x02 = x[i, j], x[i, j + 1], x[i, j + 2]
                x10, x11, x12 = x[i + 1, j], x[i + 1, j + 1], x[i + 1, j + 2]
                x20, x21, x22 = x[i + 2, j], x[i + 2, j + 1], x[i + 2, j + 2]
                for h in range(H):
                    y = bias[h] + x00 * taps[0, 0, h] + x01 * taps[0, 1, h] + x02 * taps[0, 2, h]
                    y += x10 * taps[1, 0, h] + x11 * taps[1, 1, h] + x12 * taps[1, 2, h]
                    y += x20 * taps[2, 0, h] + x21 * taps[2, 1, h] + x22 * taps[2, 2, h]
                    images[b, t + 1, f, h] = y * _sigmoid(y)
        last = (T0 + 1) // 2
        for f in range(F1):
            for h in range(H):
                after[b, hidden_at + h * F1 + f] = images[b, last, f, h]


@_compiled
def cut_frames(samples, shift, preemphasis, window, frames):
    """Emphasised, windowed frames (T, N) in fp64, written: the first len(window) numbers of each, whose window begins
    with zero. samples (S,): frame t begins at t `shift`."""
    for t in range(len(frames)):
        begin = t * shift
        for i in range(1, len(window)):
            now, before = np.float64(samples[begin + i]), np.float64(samples[begin + i - 1])
            frames[t, i] = (now - preemphasis * before) * window[i]


@_compiled
def log_mel(spectrum, filters, bounds, floor, out):
    """Log-mel features (T, M), written, of spectra (T, K) in complex fp64; each filter (M, K) from bounds[m, 0] to
    bounds[m, 1]."""
    T, K = spectrum.shape
    power = np.empty(K, np.float32)
    for t in range(T):
        for k in range(K):
            value = spectrum[t, k]
            power[k] = value.real * value.real + value.imag * value.imag
        for m in range(len(filters)):
            total = _ZERO
            for k in range(bounds[m, 0], bounds[m, 1]):
                total += power[k] * filters[m, k]
            out[t, m] = math.log(max(total, floor))


@_inlined
def _dot(a, b):
    total = _ZERO
    for i in range(len(b)):
        total += a[i] * b[i]
    return total


@_compiled
def _predict(token, hidden, cell, projection, inputs, recurrent, between, between_bias, project):
    """The LSTM's step for one stream: its hidden and cell (Y, P) and its projection (J,) move."""
    P = hidden.shape[1]
    gates = inputs[token].copy()
    for y in range(len(hidden)):
        if y:
            for g in range(4 * P):
                gates[g] = between_bias[y - 1, g] + _dot(between[y - 1, g], hidden[y - 1])
        for g in range(4 * P):
            gates[g] += _dot(recurrent[y, g], hidden[y])
        for p in range(P):
            new = _sigmoid(gates[p]) * _tanh(gates[2 * P + p])
            cell[y, p] = _sigmoid(gates[P + p]) * cell[y, p] + new
            hidden[y, p] = _sigmoid(gates[3 * P + p]) * _tanh(cell[y, p])
    for j in range(len(projection)):
        projection[j] = _dot(project[j], hidden[-1])


def _search(
    enc, lengths, states, hidden_at, cell_at,
    inputs, recurrent, between, between_bias, project, output, output_bias,
    blank, blank_penalty, temperature, max_symbols,
):  # fmt: skip
    """Greedy transducer search, stream after stream, frame after frame.

    Args:
        enc: (B, T, J) projected encoder frames. lengths: (B,) valid ones.
        states: (B, F), moved: the predictor's output in the joiner (J,), and from `hidden_at` and `cell_at` the LSTM's
            state, (Y, P) each.
        inputs: (V, 4P) the first layer's part of the gates by token, biases included.
        recurrent, between, between_bias: (Y, 4P, P), (Y - 1, 4P, P) and (Y - 1, 4P) of the LSTM.
        project, output, output_bias: (J, P), (V, J) and (V,) of the joiner.
        blank_penalty, temperature, max_symbols: as of decode.options.SearchOptions.
    Returns:
        Tokens, their frames and their probabilities, stream after stream; and how many each stream emitted, (B,).
    """
    B, V, J = len(lengths), len(output), enc.shape[2]
    Y, P = recurrent.shape[0], recurrent.shape[2]
    logits, h = np.empty(V, np.float32), np.empty(J, np.float32)
    tokens, places, confidence = np.empty(64, np.int64), np.empty(64, np.int64), np.empty(64, np.float32)
    counts, size = np.zeros(B, np.int64), 0
    for b in range(B):
        projection = states[b, :J]
        hidden = states[b, hidden_at : hidden_at + Y * P].reshape(Y, P)
        cell = states[b, cell_at : cell_at + Y * P].reshape(Y, P)
        t, here = 0, 0
        while t < lengths[b]:
            for j in range(J):
                h[j] = _tanh(enc[b, t, j] + projection[j])
            for v in range(V):
                logits[v] = output_bias[v] + _dot(output[v], h)
            logits[blank] -= blank_penalty
            best = 0
            for v in range(V):
                if logits[v] > logits[best]:
                    best = v
            if best == blank:
                t, here = t + 1, 0
                continue
            total = _ZERO
            for v in range(V):
                total += _exp((logits[v] - logits[best]) / temperature)
            if size == len(tokens):
                tokens, places = np.concatenate((tokens, tokens)), np.concatenate((places, places))
                confidence = np.concatenate((confidence, confidence))
            tokens[size], places[size], confidence[size] = best, t, _ONE / total
            size, here = size + 1, here + 1
            counts[b] += 1
            _predict(best, hidden, cell, projection, inputs, recurrent, between, between_bias, project)
            if here == max_symbols:
                t, here = t + 1, 0
    return tokens[:size], places[:size], confidence[:size], counts


search_greedily = _compiled(_search, nogil=True)
