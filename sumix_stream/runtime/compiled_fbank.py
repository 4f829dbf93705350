"""The filter bank of recognition by `sumix_kernels.cpu`: what a chunk takes of PyTorch is the Fourier transform.

Whole utterances and streams share it, so that their features are the same bits.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sumix_stream.features import BLOCK, FFT_SIZE, FLOOR, NUM_BINS, PREEMPHASIS, FbankStream, hann_window, mel_filters
from sumix_stream.runtime.compiled_steps import compiled_kernels
from sumix_stream.timebase import Timebase


@functools.cache
def compiled_log_mel() -> Callable[[np.ndarray, int], Tensor] | None:
    """What `features.FbankStream` takes as `log_mel`; None without Numba."""
    kernels = compiled_kernels()
    if kernels is None:
        return None
    window, filters, shift = hann_window().numpy(), np.ascontiguousarray(mel_filters().T), Timebase().frame_shift
    inside = [np.flatnonzero(row) for row in filters]
    bounds = np.array([[bins[0], bins[-1] + 1] for bins in inside])
    floor = np.float32(FLOOR)

    def log_mel(extended: np.ndarray, num_frames: int) -> Tensor:
        feats = torch.empty(num_frames, NUM_BINS)
        for begin in range(0, num_frames, BLOCK):
            block = feats[begin : begin + BLOCK]
            frames = torch.zeros(len(block), FFT_SIZE, dtype=torch.float64)
            kernels.cut_frames(extended[begin * shift :], shift, PREEMPHASIS, window, frames.numpy())
            kernels.log_mel(torch.fft.rfft(frames).numpy(), filters, bounds, floor, block.numpy())
        return feats

    return log_mel


def whole_fbank(samples: np.ndarray) -> Tensor:
    """`features.fbank` (T, M) of float samples (S,): the same bits as a stream's, whatever its packets."""
    stream = FbankStream(compiled_log_mel())
    return torch.cat([stream.accept(samples), stream.finish()])
