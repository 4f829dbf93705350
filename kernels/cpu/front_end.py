"""The convolutional front end while it streams: one chunk of some streams as one function.

B streams, T0 feature frames, M mel bins, H channels, T1 = ceil(T0 / 2) and C = ceil(T0 / 4) frames, F numbers of a
stream's state, D channels of the encoder.
"""

import numpy as np

from sumix_kernels.cpu.compiled import ZERO, compiled, sigmoid
from sumix_kernels.cpu.layers import finish
from sumix_kernels.cpu.products import ROWS, apply_silu, convolve_rows, filled_up, multiply


@compiled
def enter(feats, length, mean, scale, before, after, feats_at, hidden_at, taps, bias, images):
    """The front end of one stream up to its second convolution: normalisation, first convolution, SiLU.

    Args:
        feats: (T0, M) feature frames. length: valid ones. mean, scale: (M,).
        before, after: (F,) states; `feats_at`, `hidden_at`: of the last frame before the chunk, normalised (M,) and
            after the first convolution (H, M / 2).
        taps, bias: (3, 3, H) over frames and bins, and (H,).
        images: (1 + T1 or more, M / 2 + 2, H), written: the frame before the chunk, T1 frames, zeros; each between
            zeros.
    """
    T0, M = feats.shape
    num_frames, F1, H = len(images), images.shape[1] - 2, images.shape[2]
    x = np.zeros((2 * num_frames + 1, M + 2), np.float32)  # the frame before, T0 frames, zeros; a bin on either side
    for m in range(M):
        x[0, m + 1] = before[feats_at + m]
    for t in range(length):
        for m in range(M):
            x[t + 1, m + 1] = (feats[t, m] - mean[m]) * scale[m]
    for m in range(M):
        after[feats_at + m] = x[T0, m + 1]
    for t in range(num_frames):
        for h in range(H):
            images[t, 0, h] = images[t, F1 + 1, h] = ZERO
    for f in range(F1):
        for h in range(H):
            images[0, f + 1, h] = before[hidden_at + h * F1 + f]
    num_valid = (length + 1) // 2
    for t in range(num_frames - 1):
        for f in range(F1):
            if t >= num_valid:
                for h in range(H):
                    images[t + 1, f + 1, h] = ZERO
                continue
            i, j = 2 * t, 2 * f
            x00, x01, x02 = x[i, j], x[i, j + 1], x[i, j + 2]
            x10, x11, x12 = x[i + 1, j], x[i + 1, j + 1], x[i + 1, j + 2]
            x20, x21, x22 = x[i + 2, j], x[i + 2, j + 1], x[i + 2, j + 2]
            for h in range(H):
                y = bias[h] + x00 * taps[0, 0, h] + x01 * taps[0, 1, h] + x02 * taps[0, 2, h]
                y += x10 * taps[1, 0, h] + x11 * taps[1, 1, h] + x12 * taps[1, 2, h]
                y += x20 * taps[2, 0, h] + x21 * taps[2, 1, h] + x22 * taps[2, 2, h]
                images[t + 1, f + 1, h] = y * sigmoid(y)
    last = (T0 + 1) // 2
    for f in range(F1):
        for h in range(H):
            after[hidden_at + h * F1 + f] = images[last, f + 1, h]


def _step_front_end(
    feats, lengths, mean, scale, before, after, feats_at, hidden_at, taps, bias,
    weights, biases, out, out_bias, pair_width, norm_weight, norm_bias, eps, out_lengths, rows,
):  # fmt: skip
    """Frames of the encoder from feature frames (B, T0, M), into rows (B C, D); zero past each stream's length.

    Args:
        lengths, out_lengths: (B,) valid frames of features and of the encoder. before, after: (B, F) states.
        weights, biases: of the second convolution, as of `convolve_rows`.
        out, out_bias: of the product after it, as of `panels` and `padded`, whose inputs are F2 bins of as many
            channels as the convolution's outputs are filled up to.
        pair_width: of that input in bfloat16; 0 in fp32.
        rows: filled up as `multiply` needs it. All else as of `enter`.
    """
    B, T0, M = feats.shape
    F1, H, C = M // 2, taps.shape[2], (T0 + 3) // 4
    F2, T1, width = (F1 + 1) // 2, (T0 + 1) // 2, biases.shape[1]
    num_images, size = 1 + T1 + T1 % 2, (F1 + 2) * H
    room = np.zeros(num_images * size + (2 * filled_up(F2, ROWS) + 1) * H, np.float32)
    images = room[: num_images * size].reshape(num_images, F1 + 2, H)
    y = np.zeros((len(rows) * F2 + ROWS, width), np.float32)
    for b in range(B):
        enter(
            feats[b], lengths[b], mean, scale, before[b], after[b], feats_at, hidden_at, taps, bias, images
        )  # fmt: skip
        for t in range(C):
            convolve_rows(images[2 * t : 2 * t + 3], weights, biases, F2, 2 * H, y[(b * C + t) * F2 :])
    apply_silu(y, B * C * F2)
    pairs = np.zeros((len(rows) if pair_width else 0, pair_width), np.int16)
    inputs = y[: len(rows) * F2].reshape(len(rows), F2 * width)
    multiply(inputs, B * C, out, out_bias, 0, False, rows, pairs)
    finish(rows, out_lengths, C, norm_weight, norm_bias, eps, rows)


step_front_end = compiled(_step_front_end, nogil=True)
