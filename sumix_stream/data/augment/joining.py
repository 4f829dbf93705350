"""Longer training utterances: several of one speaker one after the other, and long pauses.

N cuts, R utterances.
"""

import numpy as np

from sumix_stream.config import DataConfig
from sumix_stream.data.augment.noise import noise_floor
from sumix_stream.data.batching.plan import Lengths, Utterances
from sumix_stream.timebase import Timebase

GAP = (0.1, 0.6)  # seconds between joined utterances; the least gives back the frames that rounding takes from each
_ORDER, _JOIN, _GAP, _PAUSE, _LENGTH, _PLACE = range(100, 106)  # what is drawn; below 100 draws the plan


class Joiner:
    """An `Arrange`: joins cuts as `data.concatenate` says, and adds the pauses of `data.pause`.

    Cuts are joined in random order, of a named speaker with those of the same speaker only. An utterance with a pause
    has one, after one of its cuts (for `spoken`: after the last can mean before the first), cut to what keeps it within
    the longest utterance that the recipe allows.
    """

    def __init__(self, config: DataConfig, timebase: Timebase):
        self._join, self._pause = config.concatenate, config.pause
        self._longest = timebase.num_samples(max(config.max_utterance, config.concatenate.max_duration))
        self._most = timebase.num_samples(config.concatenate.max_duration)
        self._gap = [timebase.num_samples(seconds) for seconds in GAP]
        self._seconds = [timebase.num_samples(seconds) for seconds in config.pause.seconds]

    def __call__(self, lengths: Lengths, seed: int, epoch: int) -> Utterances:
        number = len(lengths.num_samples)

        def uniform(purpose: int, size: int = number) -> np.ndarray:
            """In [0, 1), by bits that NumPy keeps from version to version."""
            return (np.random.PCG64(np.random.SeedSequence([seed, epoch, purpose])).random_raw(size) >> 11) * 2.0**-53

        cuts = np.lexsort((uniform(_ORDER), lengths.speaker)) if self._join.probability > 0 else np.arange(number)
        gaps = _between(self._gap, uniform(_GAP))
        joined = self._joined(lengths, cuts, gaps, uniform(_JOIN))
        starts = np.append(np.flatnonzero(~joined), number)
        pauses = np.where(np.append(joined[1:], False), gaps, 0)

        num_cuts = np.diff(starts)
        spare = self._longest - np.add.reduceat(lengths.num_samples[cuts] + pauses, starts[:-1])
        wanted = np.minimum(_between(self._seconds, uniform(_LENGTH, len(num_cuts))), spare)
        chosen = (uniform(_PAUSE, len(num_cuts)) < self._pause.probability) & (wanted >= max(1, self._seconds[0]))
        place = starts[:-1] + (uniform(_PLACE, len(num_cuts)) * num_cuts).astype(np.int64)
        pauses[place[chosen]] += wanted[chosen]
        return Utterances(cuts, starts, pauses)

    def _joined(self, lengths: Lengths, cuts: np.ndarray, gaps: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """(N,) bool: whether each of `cuts` follows the one before it in the same utterance."""
        joined = np.zeros(len(cuts), bool)
        if self._join.probability == 0:
            return joined
        wanted = (draws < self._join.probability) & (lengths.speaker[cuts] == np.roll(lengths.speaker[cuts], 1))
        total = 0
        samples = zip(wanted.tolist(), np.roll(gaps, 1).tolist(), lengths.num_samples[cuts].tolist(), strict=True)
        for i, (want, gap, length) in enumerate(samples):
            fits = i > 0 and want and total + gap + length <= self._most
            joined[i], total = fits, total + gap + length if fits else length
        return joined


def _between(ends: list[int], draws: np.ndarray) -> np.ndarray:
    """Whole numbers from the lowest to the highest, both included, by draws in [0, 1)."""
    return ends[0] + (draws * (ends[1] - ends[0] + 1)).astype(np.int64)


def spoken(parts: list[np.ndarray], pauses: list[int], rng: np.random.Generator) -> np.ndarray:
    """The samples of an utterance: each part (S,) and the pause after it, in samples of the part's own noise floor.

    What comes after the last part comes before the first instead, half of the times.
    """
    pieces = []
    for samples, pause in zip(parts, pauses, strict=True):
        pieces += [samples, noise_floor(samples, pause, rng)] if pause else [samples]
    if pauses and pauses[-1] and rng.random() < 0.5:
        pieces = [noise_floor(parts[0], pauses[-1], rng), *pieces[:-1]]
    return np.concatenate(pieces)
