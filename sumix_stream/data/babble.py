"""Sound that is much like speech, without a corpus or a synthesiser."""

import numpy as np


def babble(rng: np.random.Generator, rate: int, seconds: float) -> np.ndarray:
    """Syllables of gliding harmonics under two formants, with pauses, hisses and background noise.

    Samples (S,) float32 in [-1, 1] at `rate` Hz; the same for the same state of `rng`.
    """
    result = rng.normal(0, 0.003, round(seconds * rate))
    start = 0.1
    while start < seconds:
        length = rng.uniform(0.1, 0.35)
        time = np.arange(round(length * rate)) / rate
        envelope = np.sin(np.pi * time / length) ** 0.7
        pitch = rng.uniform(90, 240) * (1 + rng.uniform(-0.3, 0.3) * time / length)
        formants = rng.uniform(300, 800), rng.uniform(900, 2500)
        phase = 2 * np.pi * np.cumsum(pitch) / rate
        voice = np.zeros_like(time)
        for harmonic in range(1, 30):
            frequency = harmonic * pitch.mean()
            gain = sum(np.exp(-(((frequency - formant) / 150) ** 2)) for formant in formants) + 0.02
            voice += gain * np.sin(harmonic * phase)
        hiss = np.diff(rng.normal(0, 1, len(time) + 1)) * (rng.random() < 0.3)
        sound = envelope * (0.1 * voice + 0.05 * hiss)
        first = round(start * rate)
        room = result[first : first + len(sound)]
        room += sound[: len(room)]
        start += length + rng.choice([0.0, 0.05, 0.4], p=[0.4, 0.4, 0.2])
    return np.clip(result, -1, 1).astype(np.float32)
