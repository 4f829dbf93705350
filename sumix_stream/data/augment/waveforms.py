"""What training hears: rooms, noise, telephones and levels, drawn for each utterance by (seed, epoch, id).

S samples at 16 kHz, float32.
"""

import logging
import zlib
from collections.abc import Sequence

import numpy as np
from lhotse import Recording
from lhotse.cut import Cut, MultiCut

from sumix_stream.config import DataConfig
from sumix_stream.data.augment import noise, rooms
from sumix_stream.data.manifests import SAMPLE_RATE, UtteranceError, load_cuts, load_samples

log = logging.getLogger(__name__)

_TRIES = 3  # recordings asked for before an utterance goes without
_BAND = ((200, 300, 3400, 3700), (0, 1, 1, 0))  # Hz of a telephone, and what passes
_MU = 255  # of G.711's compression


def utterance_rng(seed: int, epoch: int, id: str, purpose: str) -> np.random.Generator:
    """The generator of one utterance in one epoch for one purpose, so that what is drawn for others does not matter."""
    return np.random.default_rng([seed, epoch, zlib.crc32(id.encode()), zlib.crc32(purpose.encode()), len(id)])


class Recorded:
    """Recordings to draw from, noise or impulse responses: manifests of recordings or of cuts.

    Raises:
        ManifestError: a manifest is missing, damaged or empty.
    """

    def __init__(self, paths: Sequence[str]):
        found = load_cuts(paths)
        self._cuts = [item.to_cut() if isinstance(item, Recording) else item for item in found]

    def draw(self, num_samples: int | None, rng: np.random.Generator) -> np.ndarray | None:
        """A stretch of `num_samples` of a random recording, repeated where that is shorter (None: all of it).

        None when several in a row cannot be read; each is named in the log.
        """
        for _ in range(_TRIES):
            try:
                return self._read(self._cuts[rng.integers(len(self._cuts))], num_samples, rng)
            except UtteranceError as error:
                log.warning("not used as noise or room: %s", error)
        return None

    @staticmethod
    def _read(cut: Cut, num_samples: int | None, rng: np.random.Generator) -> np.ndarray:
        if isinstance(cut, MultiCut) and len(cut.channel) > 1:
            cut = cut.with_channels([int(rng.choice(cut.channel))])
        if num_samples is None:
            return load_samples(cut.truncate(duration=min(cut.duration, 2 * rooms.MAX_RESPONSE / SAMPLE_RATE)))
        spare = cut.duration - num_samples / SAMPLE_RATE
        if spare > 0.1:  # seconds: nothing is gained by cutting less
            offset = round(rng.uniform(0, spare - 0.05), 3)
            cut = cut.truncate(offset=offset, duration=cut.duration - spare + 0.05)
        return noise.repeat(load_samples(cut), num_samples, rng)


class WaveformAugment:
    """Reverberation, noise, telephone and level of a recipe, in the order in which sound meets them.

    No result has other length, NaN or infinity, or is clipped: what would be louder than full scale is scaled down.
    Utterances that get nothing are not touched. Babble is made of the other utterances of the batch.
    """

    def __init__(self, config: DataConfig, seed: int):
        self._config, self._seed = config, seed
        needs = ((config.noise, config.noise.recordings), (config.reverb, config.reverb.recordings))
        self._noises, self._responses = (
            Recorded(paths) if section.probability > 0 and paths else None for section, paths in needs
        )

    def __call__(self, epoch: int, ids: Sequence[str], waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Waveforms, each (S,), of the utterances of a batch -> the same number of the same lengths."""
        return [
            self._augment(epoch, id, samples, [*waveforms[:index], *waveforms[index + 1 :]])
            for index, (id, samples) in enumerate(zip(ids, waveforms, strict=True))
        ]

    def _augment(self, epoch: int, id: str, samples: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
        config, original = self._config, samples

        def chosen(purpose: str, probability: float) -> np.random.Generator | None:
            rng = utterance_rng(self._seed, epoch, id, purpose) if probability > 0 else None
            return rng if rng is not None and rng.random() < probability else None

        if rng := chosen("reverb", config.reverb.probability):
            samples = self._reverberate(_at_most_full_scale(samples), rng)
        if rng := chosen("noise", config.noise.probability):
            snr = rng.uniform(*config.noise.snr)
            sound = self._noise(len(samples), others, rng)
            samples = samples if sound is None else noise.mix(_at_most_full_scale(samples), sound, snr)
        if chosen("telephone", config.telephone):
            samples = telephone(samples)
        if any(config.gain):
            decibels = utterance_rng(self._seed, epoch, id, "gain").uniform(*config.gain)
            samples = samples * np.float32(10 ** (decibels / 20))
        return samples if samples is original else _at_most_full_scale(samples)

    def _reverberate(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self._responses is None:
            room = rooms.draw_room(rng.uniform(*self._config.reverb.rt60), rng)
            return rooms.reverberate(samples, *rooms.impulse_response(room, rng))
        response = self._responses.draw(None, rng)
        if response is None or not response.any():
            return samples
        return rooms.reverberate(samples, *rooms.align(response))

    def _noise(self, num_samples: int, others: list[np.ndarray], rng: np.random.Generator) -> np.ndarray | None:
        if self._noises is not None:
            return self._noises.draw(num_samples, rng)
        kinds = [kind for kind in self._config.noise.kinds if kind != "babble" or len(others) > 2]
        kind = rng.choice(kinds or ["pink"])
        if kind == "babble":
            return noise.babble(num_samples, others, rng)
        return noise.SIMULATED[kind](num_samples, rng)


def telephone(samples: np.ndarray) -> np.ndarray:
    """Samples (S,) through a telephone: 300 to 3400 Hz at a rate of 8 kHz, in the 8 bits of G.711's mu-law."""
    if not len(samples):
        return samples
    unit = 2 * noise.FRAME
    size = -(-(len(samples) + SAMPLE_RATE // 20) // unit) * unit  # with room for the filter to ring
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)[: size // 4 + 1]
    spectrum = np.fft.rfft(samples, size)[: size // 4 + 1] * np.interp(hertz, *_BAND).astype(np.float32)
    narrow = _at_most_full_scale(np.fft.irfft(spectrum, size // 2).astype(np.float32) / 2)
    log_mu = np.log1p(np.float32(_MU))
    steps = np.rint(np.log1p(_MU * np.abs(narrow)) / log_mu * 127) / np.float32(127)
    decoded = np.copysign(np.expm1(steps * log_mu) / _MU, narrow)
    return np.fft.irfft(2 * np.fft.rfft(decoded), size)[: len(samples)].astype(np.float32)


def _at_most_full_scale(samples: np.ndarray) -> np.ndarray:
    peak = max(samples.max(initial=0.0), -samples.min(initial=0.0))
    return samples / np.float32(peak) if peak > 1 else samples
