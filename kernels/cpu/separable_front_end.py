"""The front end by eight while it streams: one chunk of some streams as one function.

B streams, T0 feature frames, M mel bins, H channels, T1, T2 and C = ceil(T0 / 8) frames after each stage, F1, F2 and F3
bins, F numbers of a stream's state, D channels of the encoder.
"""

import numpy as np

from sumix_kernels.cpu.compiled import ZERO, compiled
from sumix_kernels.cpu.front_end import enter
from sumix_kernels.cpu.layers import finish
from sumix_kernels.cpu.products import ROWS, filled_up, multiply
from sumix_kernels.cpu.training_separable import convolve_window


@compiled
def convolve_images(images, num_frames, num_bins, taps, bias, out):
    """out (num_frames num_bins or more, H) = the depthwise convolution of images (2 num_frames + 1 or more, F + 2, H),
    of which the first is the frame before the chunk; taps (9, H)."""
    H = images.shape[2]
    for t in range(num_frames):
        x0, x1, x2 = images[2 * t].reshape(-1), images[2 * t + 1].reshape(-1), images[2 * t + 2].reshape(-1)
        for f in range(num_bins):
            convolve_window(x0, x1, x2, 2 * f * H, H, taps, bias, out[t * num_bins + f])


@compiled
def place_images(rows, num_frames, num_valid, before, after, at, images):
    """images (1 + num_frames or more, F + 2, H): the frame before the chunk, `num_valid` frames of rows, zeros; each
    between zeros.

    Args:
        rows: (num_frames F or more, H or wider). before, after: (F',) states, `at`: of a stream's past frame (H, F).
    """
    F, H = images.shape[1] - 2, images.shape[2]
    for t in range(len(images)):
        for h in range(H):
            images[t, 0, h] = images[t, F + 1, h] = ZERO
    for f in range(F):
        for h in range(H):
            images[0, f + 1, h] = before[at + h * F + f]
    for t in range(len(images) - 1):
        for f in range(F):
            for h in range(H):
                images[t + 1, f + 1, h] = rows[t * F + f, h] if t < num_valid else ZERO
    for f in range(F):
        for h in range(H):
            after[at + h * F + f] = images[num_frames, f + 1, h]


def _step_separable_front_end(
    feats, lengths, mean, scale, before, after, feats_at, hidden_at, hidden2_at, taps, bias,
    stage2, stage3, out, out_bias, pair_width, norm_weight, norm_bias, eps, out_lengths, rows,
):  # fmt: skip
    """Frames of the encoder from feature frames (B, T0, M), into rows (B C, D); zero past each stream's length.

    Args:
        hidden2_at: in a state, of the last frame before the chunk after the second stage, (H, M / 4).
        stage2, stage3: taps (9, H) and bias (H,) of the depthwise convolution, weights and bias of the product, as of
            `panels` and `padded`. All else as of `step_front_end`.
    """
    B, T0, M = feats.shape
    F1, H, T1 = M // 2, taps.shape[2], (T0 + 1) // 2
    F2, T2 = (F1 + 1) // 2, (T1 + 1) // 2
    F3, C = (F2 + 1) // 2, (T2 + 1) // 2
    taps2, bias2, weights2, product_bias2 = stage2
    taps3, bias3, weights3, product_bias3 = stage3
    width, no_pairs = len(product_bias2), np.zeros((0, 0), np.int16)
    images = np.zeros((2 * T2 + 1, F1 + 2, H), np.float32)
    images2 = np.zeros((2 * C + 1, F2 + 2, H), np.float32)
    num_rows2 = filled_up(T2 * F2, ROWS)
    read2, y2 = np.zeros((num_rows2, H), np.float32), np.zeros((num_rows2, width), np.float32)
    read3, y3 = np.zeros((len(rows) * F3, H), np.float32), np.zeros((len(rows) * F3, width), np.float32)
    for b in range(B):
        enter(
            feats[b], lengths[b], mean, scale, before[b], after[b], feats_at, hidden_at, taps, bias, images
        )  # fmt: skip
        convolve_images(images, T2, F2, taps2, bias2, read2)
        multiply(read2, T2 * F2, weights2, product_bias2, 0, True, y2, no_pairs)
        place_images(y2, T2, (lengths[b] + 3) // 4, before[b], after[b], hidden2_at, images2)
        convolve_images(images2, C, F3, taps3, bias3, read3[b * C * F3 :])
    multiply(read3, B * C * F3, weights3, product_bias3, 0, True, y3, no_pairs)
    pairs = np.zeros((len(rows) if pair_width else 0, pair_width), np.int16)
    multiply(y3.reshape(len(rows), F3 * width), B * C, out, out_bias, 0, False, rows, pairs)
    finish(rows, out_lengths, C, norm_weight, norm_bias, eps, rows)


step_separable_front_end = compiled(_step_separable_front_end, nogil=True)
