"""Samples and their rate, checked."""

import math

import numpy as np

from sumix_stream.timebase import Timebase

MODEL_RATE = Timebase().sample_rate
MIN_RATE, MAX_RATE = 4_000, 192_000  # Hz
_MAX_PEAK = 32.0  # floats beyond this are integers that nobody scaled


class AudioError(ValueError):
    """Audio that cannot be used; the message names the file or the samples' fault, and the remedy."""


def check_samples(samples: np.ndarray, rate: int, first: int = 0) -> np.ndarray:
    """Samples as 1-D float32 in [-1, 1]; int16 is scaled, other integers are refused as ambiguous.

    Samples (S, 1) are one channel too; errors count them from `first`. Raises AudioError for another shape or type,
    NaN or infinity, unscaled integers, and for a rate that is not an integer in 4000..192000 Hz.
    """
    check_rate(rate)
    samples = np.asarray(samples)
    if samples.ndim == 2 and samples.shape[1] == 1:  # a block of sounddevice's
        samples = samples[:, 0]
    if samples.ndim != 1:
        raise AudioError(f"samples must be one-dimensional (one channel), got shape {samples.shape}; average channels")
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / 32768
    if samples.dtype.kind != "f":
        raise AudioError(f"samples must be float in [-1, 1] or int16, got {samples.dtype}; convert them")
    samples = samples.astype(np.float32, copy=False)
    if len(samples) == 0:
        return samples
    peak = max(samples.max(), -samples.min())  # NaN if any is
    if not math.isfinite(peak):
        where = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise AudioError(f"sample {first + where} is {samples[where]}; samples must be finite: repair the recording")
    if peak > _MAX_PEAK:
        raise AudioError(f"samples must be in [-1, 1], got a peak of {peak:g}; divide 16-bit values by 32768")
    return samples


def check_rate(rate: float) -> int:
    """A sample rate in Hz as an integer; 16000.0 is one. Raises AudioError for one outside 4000..192000."""
    number = isinstance(rate, int | float | np.integer | np.floating) and not isinstance(rate, bool)
    if number and MIN_RATE <= rate <= MAX_RATE and int(rate) == rate:
        return int(rate)
    raise AudioError(f"sample rate must be an integer in {MIN_RATE}..{MAX_RATE} Hz, got {rate!r}")
