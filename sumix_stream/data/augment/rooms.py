"""Reverberation: impulse responses of random rooms, or recorded ones, that move no word in time.

The direct sound stays where it was, so the encoder frames at which tokens are learnt stay too. S samples at 16 kHz.
"""

import functools
from typing import NamedTuple

import numpy as np

from sumix_stream.data.augment.noise import SAMPLE_RATE, SILENCE, speech_power

SPEED_OF_SOUND = 343.0  # m/s
EARLY_SECONDS = 0.05  # after the direct sound: exact reflections; then a diffuse tail
_OVERLAP = EARLY_SECONDS / 5  # seconds in which the one fades into the other
_TAPS = 16  # of the interpolation that puts a reflection between two samples
_BLOCK = 1 << 14  # samples convolved at once
MAX_RESPONSE = _BLOCK  # samples of a response: a second


class Room(NamedTuple):
    """A box. `size` (3,), `source` and `microphone` (3,) in metres; `rt60` in seconds, of 60 dB of decay."""

    size: np.ndarray
    source: np.ndarray
    microphone: np.ndarray
    rt60: float

    @property
    def volume(self) -> float:
        return float(self.size.prod())

    @property
    def surface(self) -> float:
        return float(2 * (self.size * np.roll(self.size, 1)).sum())

    @property
    def reflection(self) -> float:
        """Amplitude left of a reflection, by Eyring's formula: rt60 = 24 ln(10) V / (-c S ln(reflection ** 2))."""
        exponent = 24 * np.log(10) * self.volume / (SPEED_OF_SOUND * self.surface * self.rt60)
        return float(np.exp(-exponent / 2))


def draw_room(rt60: float, rng: np.random.Generator) -> Room:
    """A room of 3 x 3 x 2.4 m to 10 x 8 x 4 m, speaker and microphone 0.3 to 3 m apart, half a metre from all walls."""
    size = rng.uniform((3.0, 3.0, 2.4), (10.0, 8.0, 4.0))
    while True:
        microphone, source = rng.uniform(0.5, size - 0.5, (2, 3))
        distance = np.linalg.norm(source - microphone)
        wanted = rng.uniform(0.3, min(3.0, distance)) if distance > 0.3 else 0.0
        if wanted:
            return Room(size, microphone + (source - microphone) * wanted / distance, microphone, rt60)


def impulse_response(room: Room, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """The response (n,) of a room, its direct sound 1, and the sample where that is.

    Early reflections by the image-source method (Allen and Berkley, JASA 65, 1979), the reflection's sign negative as
    Lehmann and Johansson propose (JASA 124, 2008); then Gaussian noise that decays by 60 dB in `rt60`, at the level of
    the images it stands for: of density 4 pi c^3 t^2 / V at time t and power 1 / (4 pi c t)^2 each, so c / (4 pi V).
    """
    distances, gains = _images(room)
    direct = float(np.linalg.norm(room.source - room.microphone))
    delays = (distances - direct) / SPEED_OF_SOUND
    length = min(MAX_RESPONSE - _TAPS, int(SAMPLE_RATE * room.rt60)) + 1
    early_fade, late_fade = _fades(length)
    start = np.log(1e6) * direct / (SPEED_OF_SOUND * room.rt60)  # the decay began when the sound left the speaker
    decay = np.exp(-0.5 * (start + np.log(1e6) * np.arange(length) / (SAMPLE_RATE * room.rt60)))
    level = np.sqrt(SPEED_OF_SOUND / (4 * np.pi * room.volume * SAMPLE_RATE))
    response = _place(delays, gains, length)
    body = response[_TAPS // 2 :][:length]  # from the direct sound on
    body *= early_fade
    body += late_fade * decay * level * rng.standard_normal(length)
    response[_TAPS // 2 + length :] = 0
    return (response * 4 * np.pi * direct).astype(np.float32), _TAPS // 2


def _images(room: Room) -> tuple[np.ndarray, np.ndarray]:
    """Distances (m) and amplitudes of the source and its images that arrive until the early part ends."""
    reach = np.linalg.norm(room.source - room.microphone) + SPEED_OF_SOUND * (EARLY_SECONDS + _OVERLAP)
    squares, bounces = [], []
    for size, source, microphone in zip(room.size, room.source, room.microphone, strict=True):
        cells = np.arange(-int(reach / (2 * size)) - 1, int(reach / (2 * size)) + 2)
        same, mirrored = 2 * cells * size + source, 2 * cells * size - source
        squares.append((np.concatenate([same, mirrored]) - microphone) ** 2)
        bounces.append(np.concatenate([2 * np.abs(cells), np.abs(2 * cells - 1)]))
    square = (squares[0][:, None, None] + squares[1][:, None] + squares[2]).ravel()
    bounce = (bounces[0][:, None, None] + bounces[1][:, None] + bounces[2]).ravel()
    near = square < reach**2
    distances = np.sqrt(square[near])
    return distances, (-room.reflection) ** bounce[near] / (4 * np.pi * distances)


def _place(delays: np.ndarray, gains: np.ndarray, length: int) -> np.ndarray:
    """(length + _TAPS,) with a pulse of each gain at its delay (s) + _TAPS / 2, between samples by windowed sinc."""
    position = delays * SAMPLE_RATE
    inside = (position > -0.5) & (position < length - 1)
    position, gains = position[inside], gains[inside]
    first = np.ceil(position).astype(np.int64)  # tap j stands at sample first + j, in the shifted response
    offset = first[:, None] + np.arange(_TAPS) - _TAPS // 2 - position[:, None]
    pulses = np.sinc(offset) * np.cos(np.pi * offset / (_TAPS + 1)) ** 2 * gains[:, None]
    return np.bincount((first[:, None] + np.arange(_TAPS)).ravel(), pulses.ravel(), minlength=length + _TAPS)


@functools.lru_cache(maxsize=8)
def _fades(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Gains of the early part and of the tail, whose squares add up to 1 after the direct sound."""
    time = np.arange(length) / SAMPLE_RATE
    part = np.clip((time - EARLY_SECONDS + _OVERLAP) / _OVERLAP, 0, 1) * np.pi / 2
    return np.cos(part), np.sin(part)


def align(response: np.ndarray) -> tuple[np.ndarray, int]:
    """A recorded response (n,) as at most a second of it, its loudest sample 1, and where that is: the direct sound.

    Raises ValueError for one that is silent.
    """
    direct = int(np.abs(response).argmax()) if len(response) else 0
    if not len(response) or response[direct] == 0:
        raise ValueError("an impulse response must not be silent")
    begin = max(0, direct - _TAPS // 2)  # nothing arrives before the direct sound
    return (response[begin : begin + MAX_RESPONSE] / response[direct]).astype(np.float32), direct - begin


def reverberate(samples: np.ndarray, response: np.ndarray, direct: int) -> np.ndarray:
    """`samples` (S,) heard through `response` (n,), n at most MAX_RESPONSE -> (S,), as loud as they were.

    Sample `direct` of the response is time 0.
    """
    if not 0 <= direct < len(response) <= MAX_RESPONSE:
        raise ValueError(
            f"a response has 1 to {MAX_RESPONSE} samples and direct lies among them, got {len(response)} and {direct}"
        )
    wet = convolve(samples, response)[direct : direct + len(samples)]
    before, after = speech_power(samples), speech_power(wet)
    return wet * np.float32(np.sqrt(before / after)) if min(before, after) >= SILENCE else samples


def convolve(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """The full convolution (S + n - 1,) of (S,) and (n,), by overlapping blocks."""
    total = len(samples) + len(response) - 1
    num_blocks = max(1, -(-len(samples) // _BLOCK))
    blocks = np.zeros((num_blocks, _BLOCK), dtype=np.float32)
    blocks.reshape(-1)[: len(samples)] = samples
    spectra = np.fft.rfft(blocks, 2 * _BLOCK) * np.fft.rfft(response, 2 * _BLOCK)
    pieces = np.fft.irfft(spectra, 2 * _BLOCK).astype(np.float32)
    out = np.zeros((num_blocks + 1, _BLOCK), dtype=np.float32)
    out[:-1] = pieces[:, :_BLOCK]
    out[1:] += pieces[:, _BLOCK:]
    return out.reshape(-1)[:total]
