"""Noise: coloured, mains hum and babble, made here or recorded, mixed in at a signal-to-noise ratio; and more of the
noise floor that a recording has.

S samples at 16 kHz, float32. Every draw comes from the generator that is given.
"""

from collections.abc import Callable, Sequence

import numpy as np

from sumix_stream.timebase import Timebase

SAMPLE_RATE = Timebase().sample_rate
LOWEST_HZ = 30  # of coloured noise: brown noise would spend its power below what is heard
FRAME = SAMPLE_RATE // 50  # samples over which a level is taken
PAUSE_BELOW = 0.01  # of the mean power: frames below it (-20 dB) are pauses
SILENCE = 1e-20  # mean power: what has less has no level
MAX_SWELL_DB = 10.0  # how far noise that comes and goes falls
_FLOOR_BLOCK = 4096  # samples of the quietest stretch whose sound a floor takes


def frame_powers(samples: np.ndarray) -> np.ndarray:
    """Mean power of each 20 ms of (S,), float64; what is left over at the end counts with the last."""
    if len(samples) < FRAME:
        return np.square(samples, dtype=np.float64).mean(keepdims=True) if len(samples) else np.zeros(1)
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    return np.einsum("ij,ij->i", frames, frames, dtype=np.float64) / FRAME


def speech_power(samples: np.ndarray) -> float:
    """Mean power of (S,) without its pauses, however long they are; 0 for silence."""
    powers = frame_powers(samples)
    return float(powers[powers >= PAUSE_BELOW * powers.mean()].mean())


def mix(samples: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """`samples` (S,) and `noise` (S,), scaled: `speech_power(samples)` is `snr` dB over the noise's mean power.

    Silence has no level to set the noise by and digital silence is no noise: `samples` come back as they are.
    """
    if samples.shape != noise.shape or samples.ndim != 1:
        raise ValueError(f"samples and noise must be (S,) of one length, got {samples.shape} and {noise.shape}")
    speech, power = speech_power(samples), float(np.square(noise, dtype=np.float64).mean()) if len(noise) else 0.0
    if min(speech, power) < SILENCE:
        return samples
    return samples + np.float32(np.sqrt(speech / power) * 10 ** (-snr / 20)) * noise


def coloured(num_samples: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise (S,) whose power falls with frequency ** `exponent`: 0 white, 1 pink, 2 brown."""
    if exponent == 0:
        return rng.standard_normal(num_samples, dtype=np.float32)
    size = max(1, -(-num_samples // FRAME)) * FRAME  # a length that the transform likes
    white = rng.standard_normal((2, size // 2 + 1), dtype=np.float32)
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    shape = np.where(hertz >= LOWEST_HZ, np.maximum(hertz, LOWEST_HZ) ** (-exponent / 2), 0).astype(np.float32)
    return np.fft.irfft((white[0] + 1j * white[1]) * shape, size)[:num_samples].astype(np.float32)


def hum(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Mains hum (S,): 50 or 60 Hz and its harmonics up to 1 kHz, in a mix of their own."""
    period = SAMPLE_RATE // 10  # holds whole periods of both
    base = int(rng.choice((50, 60)))
    harmonics = np.arange(1, 1000 // base + 1)
    gains = rng.uniform(0, 1, len(harmonics)) / harmonics
    phases = (
        2 * np.pi * (np.outer(np.arange(period) * base / SAMPLE_RATE, harmonics) + rng.uniform(size=len(harmonics)))
    )
    return repeat((np.sin(phases) @ gains).astype(np.float32), num_samples, rng)


def babble(num_samples: int, voices: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """3 to 7 voices (S,) talking at once, equally loud, each from a random place on, again and again.

    Fewer are there where fewer `voices` are given; without any: silence.
    """
    total = np.zeros(num_samples, dtype=np.float32)
    for index in rng.permutation(len(voices))[: rng.integers(3, 8)]:
        power = speech_power(voices[index])
        if power >= SILENCE:
            total += repeat(voices[index], num_samples, rng) / np.float32(np.sqrt(power))
    return total


def repeat(sound: np.ndarray, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """`sound` (n,) from a random place on, again and again, to (S,)."""
    if not len(sound):
        return np.zeros(num_samples, dtype=np.float32)
    return np.take(sound, np.arange(num_samples) + rng.integers(len(sound)), mode="wrap")


def swell(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Gains (S,) at most 1 that wander, within MAX_SWELL_DB, from one random level to the next every half second."""
    num_levels = num_samples // (SAMPLE_RATE // 2) + 2
    levels = 10 ** (-rng.uniform(0, MAX_SWELL_DB, num_levels) / 20)
    return np.interp(np.arange(num_samples), np.arange(num_levels) * (SAMPLE_RATE // 2), levels).astype(np.float32)


def _swelling(exponent: float) -> Callable[[int, np.random.Generator], np.ndarray]:
    def make(num_samples: int, rng: np.random.Generator) -> np.ndarray:
        noise = coloured(num_samples, exponent, rng)
        return noise * swell(num_samples, rng) if rng.random() < 0.5 else noise

    return make


# What can be made of nothing; babble needs voices.
SIMULATED: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "white": _swelling(0.0),
    "pink": _swelling(1.0),
    "brown": _swelling(2.0),
    "hum": hum,
}


def noise_floor(samples: np.ndarray, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """A pause (S,) that belongs to a recording: noise with the level and spectrum of its quietest quarter second.

    The spectrum's magnitudes with new random phases, in overlapping blocks. Digital silence stays that.
    """
    quiet = _quietest(samples)
    quiet = quiet - quiet.mean(dtype=np.float64) if len(quiet) else quiet  # an offset is no noise
    power = float(np.square(quiet, dtype=np.float64).mean()) if len(quiet) else 0.0
    if power < SILENCE or num_samples == 0:
        return np.zeros(num_samples, dtype=np.float32)
    size = max(2, len(quiet) // 2 * 2)
    half, window = size // 2, np.sin(np.pi * (np.arange(size) + 0.5) / size)
    magnitudes = np.abs(np.fft.rfft(np.resize(quiet, size) * window))
    phases = rng.uniform(0, 2 * np.pi, (num_samples // half + 2, half + 1))
    blocks = np.fft.irfft(magnitudes * np.exp(1j * phases), size, axis=1) * window
    floor = (blocks[:-1, half:] + blocks[1:, :half]).reshape(-1)[:num_samples]
    made = np.square(floor).mean()
    return (floor * np.sqrt(power / made)).astype(np.float32) if made >= SILENCE else np.zeros(num_samples, np.float32)


def _quietest(samples: np.ndarray) -> np.ndarray:
    if len(samples) <= _FLOOR_BLOCK:
        return samples
    num_frames = _FLOOR_BLOCK // FRAME
    sums = np.convolve(frame_powers(samples), np.ones(num_frames), "valid")
    begin = int(sums.argmin()) * FRAME
    return samples[begin : begin + num_frames * FRAME]
