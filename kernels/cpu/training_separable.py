"""A depthwise convolution of 3 by 3 with strides of 2 in the front end, in training, forward and backward.

B utterances, T frames and F bins read, T2 = ceil(T / 2) and F2 = ceil(F / 2) written, H channels, P parts. An image
(B, T, F + 2, H) has channels last and a bin of zeros on either side, and is zero at and past its utterance's length.
"""

import numpy as np

from sumix_kernels.cpu.compiled import ONE, ZERO, compiled, inlined, sigmoid


@inlined
def convolve_window(x0, x1, x2, start, H, taps, bias, out):
    """out (H,) = bias + the sum of taps (9, H) times three bins from `start` of three flattened frames."""
    b, c = start + H, start + 2 * H
    for h in range(H):
        y = bias[h] + x0[start + h] * taps[0, h] + x0[b + h] * taps[1, h] + x0[c + h] * taps[2, h]
        y += x1[start + h] * taps[3, h] + x1[b + h] * taps[4, h] + x1[c + h] * taps[5, h]
        out[h] = y + x2[start + h] * taps[6, h] + x2[b + h] * taps[7, h] + x2[c + h] * taps[8, h]


def _convolve_depthwise(begin, end, part, images, taps, bias, out):
    """out (B, T2, F2, H) of utterances [begin, end); taps (9, H), bias (H,)."""
    T, H = images.shape[1], images.shape[3]
    T2, F2 = out.shape[1], out.shape[2]
    none = np.zeros(images.shape[2] * H, np.float32)
    for b in range(begin, end):
        for t in range(T2):
            x0 = images[b, 2 * t - 1].reshape(-1) if t else none
            x1 = images[b, 2 * t].reshape(-1)
            x2 = images[b, 2 * t + 1].reshape(-1) if 2 * t + 1 < T else none
            for f in range(F2):
                convolve_window(x0, x1, x2, 2 * f * H, H, taps, bias, out[b, t, f])


def _convolve_depthwise_back(begin, end, part, grad, images, taps, images_grad, tap_grads, bias_grads):
    """Adds to images_grad, as images, and to tap_grads (P, 9, H) and bias_grads (P, H) what grad (B, T2, F2, H)
    gives."""
    T, H = images.shape[1], images.shape[3]
    T2, F2 = grad.shape[1], grad.shape[2]
    tap_grad, bias_grad = tap_grads[part], bias_grads[part]
    for b in range(begin, end):
        for t in range(T2):
            for f in range(F2):
                g = grad[b, t, f]
                for h in range(H):
                    bias_grad[h] += g[h]
            for i in range(3):
                read = 2 * t - 1 + i
                if read < 0 or read >= T:
                    continue
                x, x_grad = images[b, read].reshape(-1), images_grad[b, read].reshape(-1)
                for f in range(F2):
                    g = grad[b, t, f]
                    for j in range(3):
                        start, tap, gathered = (2 * f + j) * H, taps[3 * i + j], tap_grad[3 * i + j]
                        for h in range(H):
                            gathered[h] += x[start + h] * g[h]
                            x_grad[start + h] += tap[h] * g[h]


def _activate_images(begin, end, part, rows, lengths, images):
    """Images of utterances [begin, end): SiLU of rows (B, T, F, H), zero at and past lengths (B,)."""
    T, F, H = rows.shape[1], rows.shape[2], rows.shape[3]
    for b in range(begin, end):
        for t in range(T):
            if t >= lengths[b]:
                images[b, t] = ZERO
                continue
            images[b, t, 0], images[b, t, F + 1] = ZERO, ZERO
            for f in range(F):
                x, y = rows[b, t, f], images[b, t, f + 1]
                for h in range(H):
                    y[h] = x[h] * sigmoid(x[h])


def _activate_images_back(begin, end, part, grad, rows, lengths, rows_grad, bias_grads):
    """rows_grad (B, T, F, H) from the images' gradient; its sum over rows is added to bias_grads (P, H)."""
    T, F, H = rows.shape[1], rows.shape[2], rows.shape[3]
    bias_grad = bias_grads[part]
    for b in range(begin, end):
        for t in range(T):
            if t >= lengths[b]:
                rows_grad[b, t] = ZERO
                continue
            for f in range(F):
                x, g, out = rows[b, t, f], grad[b, t, f + 1], rows_grad[b, t, f]
                for h in range(H):
                    s = sigmoid(x[h])
                    y = g[h] * s * (ONE + x[h] * (ONE - s))
                    out[h] = y
                    bias_grad[h] += y


convolve_depthwise = compiled(_convolve_depthwise, nogil=True)
convolve_depthwise_back = compiled(_convolve_depthwise_back, nogil=True)
activate_images = compiled(_activate_images, nogil=True)
activate_images_back = compiled(_activate_images_back, nogil=True)
