"""The front end's two convolutions of 3 by 3 with strides of 2 in training, forward and backward.

The first is computed as it stands, the second is a matrix product of patches, which are gathered here.

B utterances, T1 and T2 frames and F1 and F2 bins after the first and the second, H channels. An image
(B, T1, F1 + 2, H) holds what the second reads, channels last, with a bin of zeros on either side.
"""

import numpy as np

from sumix_kernels.cpu.compiled import ONE, ZERO, compiled, inlined, sigmoid


@inlined
def _convolve_at(x, b, t, f, taps, bias, out):
    """out (H,) = bias + taps (9, H) on the patch of x (B, ., .) from frame 2t and bin 2f."""
    x0, x1, x2 = x[b, 2 * t, 2 * f], x[b, 2 * t, 2 * f + 1], x[b, 2 * t, 2 * f + 2]
    x3, x4, x5 = x[b, 2 * t + 1, 2 * f], x[b, 2 * t + 1, 2 * f + 1], x[b, 2 * t + 1, 2 * f + 2]
    x6, x7, x8 = x[b, 2 * t + 2, 2 * f], x[b, 2 * t + 2, 2 * f + 1], x[b, 2 * t + 2, 2 * f + 2]
    for h in range(len(bias)):
        y = bias[h] + x0 * taps[0, h] + x1 * taps[1, h] + x2 * taps[2, h]
        y += x3 * taps[3, h] + x4 * taps[4, h] + x5 * taps[5, h]
        out[h] = y + x6 * taps[6, h] + x7 * taps[7, h] + x8 * taps[8, h]


def _convolve_features(begin, end, part, x, taps, bias, lengths, images):
    """Images of utterances [begin, end): SiLU of the first convolution of x, zero at and past lengths (B,).

    x (B, 2 T1 + 1 or more, 2 F1 + 1 or more) begins with a frame and a bin of zeros.
    """
    T1, F1, H = images.shape[1], images.shape[2] - 2, images.shape[3]
    for b in range(begin, end):
        for t in range(T1):
            if t >= lengths[b]:
                images[b, t] = ZERO
                continue
            images[b, t, 0], images[b, t, F1 + 1] = ZERO, ZERO
            for f in range(F1):
                y = images[b, t, f + 1]
                _convolve_at(x, b, t, f, taps, bias, y)
                for h in range(H):
                    y[h] *= sigmoid(y[h])


def _convolve_features_back(begin, end, part, grad, x, taps, bias, lengths, tap_grads, bias_grads):
    """Adds to tap_grads (P, 9, H) and bias_grads (P, H) what the images' gradient `grad` gives."""
    T1, F1, H = grad.shape[1], grad.shape[2] - 2, grad.shape[3]
    tap_grad, bias_grad = tap_grads[part], bias_grads[part]
    y = np.empty(H, np.float32)
    for b in range(begin, end):
        for t in range(min(T1, lengths[b])):
            for f in range(F1):
                _convolve_at(x, b, t, f, taps, bias, y)
                for h in range(H):
                    s = sigmoid(y[h])
                    y[h] = grad[b, t, f + 1, h] * s * (ONE + y[h] * (ONE - s))
                    bias_grad[h] += y[h]
                for i in range(3):
                    for j in range(3):
                        read, gathered = x[b, 2 * t + i, 2 * f + j], tap_grad[3 * i + j]
                        for h in range(H):
                            gathered[h] += read * y[h]


def _gather_patches(begin, end, part, images, first, T2, patches):
    """patches (n, F2, 3, 3 H): what the second convolution reads for frames `first` + [begin, end) of all B T2."""
    T1, F2, H = images.shape[1], patches.shape[1], images.shape[3]
    for row in range(begin, end):
        b, t = (first + row) // T2, (first + row) % T2
        for i in range(3):
            read = 2 * t - 1 + i
            if 0 <= read < T1:
                frame = images[b, read].reshape(-1)
                for f in range(F2):
                    start, own = 2 * f * H, patches[row, f, i]
                    for h in range(3 * H):
                        own[h] = frame[start + h]
            else:
                for f in range(F2):
                    patches[row, f, i] = ZERO


def _scatter_patches(count, patches, first, T2, images):
    """The transpose of `gather_patches`: adds the first `count` frames of patches to images."""
    T1, F2, H = images.shape[1], patches.shape[1], images.shape[3]
    for row in range(count):
        b, t = (first + row) // T2, (first + row) % T2
        for i in range(3):
            read = 2 * t - 1 + i
            if 0 <= read < T1:
                frame = images[b, read].reshape(-1)
                for f in range(F2):
                    start, own = 2 * f * H, patches[row, f, i]
                    for h in range(3 * H):
                        frame[start + h] += own[h]


convolve_features = compiled(_convolve_features, nogil=True)
convolve_features_back = compiled(_convolve_features_back, nogil=True)
gather_patches = compiled(_gather_patches, nogil=True)
scatter_patches = compiled(_scatter_patches, nogil=True)
