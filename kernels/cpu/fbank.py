"""The filter bank around a Fourier transform.

T frames, N samples of a transform, K frequencies, M mel bins.
"""

import math

import numpy as np

from sumix_kernels.cpu.compiled import ZERO, compiled


@compiled
def cut_frames(samples, shift, preemphasis, window, frames):
    """Emphasised, windowed frames (T, N) in fp64, written: the first len(window) numbers of each, whose window begins
    with zero. samples (S,): frame t begins at t `shift`."""
    for t in range(len(frames)):
        begin = t * shift
        for i in range(1, len(window)):
            now, before = np.float64(samples[begin + i]), np.float64(samples[begin + i - 1])
            frames[t, i] = (now - preemphasis * before) * window[i]


@compiled
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
            total = ZERO
            for k in range(bounds[m, 0], bounds[m, 1]):
                total += power[k] * filters[m, k]
            out[t, m] = math.log(max(total, floor))
