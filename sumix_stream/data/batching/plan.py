"""Which utterances make each batch of an epoch: arrays, a function of the cuts' lengths and (seed, epoch) alone.

Lhotse's samplers go on in an epoch by drawing all of it again (1.33), or from a state that every rank saves, over
uncompressed manifests (2.0, pre-release). A plan has no state, and knows its largest batches beforehand.

Nothing is drawn but raw bits of PCG64 seeded by a SeedSequence, whose streams NumPy keeps from version to version.

N cuts, R utterances, G batches (of all ranks).
"""

import hashlib
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sumix_stream.config import DataConfig
from sumix_stream.timebase import Timebase

_SPEED, _ORDER, _BORDERS, _GROUPS, _RANKS = range(5)  # what bits are drawn for


class Lengths(NamedTuple):
    """Sizes of the N cuts of an epoch, speed perturbation included."""

    num_samples: np.ndarray  # (N,) int64, at 16 kHz
    num_tokens: np.ndarray  # (N,) int64
    speaker: np.ndarray  # (N,) uint32: equal for cuts of one speaker; 0: nobody is named


class Utterances(NamedTuple):
    """What batches are made of: one cut each, or several spoken one after the other."""

    cuts: np.ndarray  # (N,) int64: cuts of utterance 0, of utterance 1, ...
    starts: np.ndarray  # (R + 1,) int64: utterance r is cuts[starts[r] : starts[r + 1]]
    pauses: np.ndarray  # (N,) int64, samples of silence after each of `cuts`


Arrange = Callable[[Lengths, int, int], Utterances]  # of the cuts of an epoch, by (seed, epoch)


def one_cut_each(lengths: Lengths, seed: int, epoch: int) -> Utterances:
    """Every cut is an utterance of its own."""
    number = len(lengths.num_samples)
    return Utterances(np.arange(number), np.arange(number + 1), np.zeros(number, np.int64))


class Piece(NamedTuple):
    """A cut of an utterance."""

    cut: int  # its number in the index
    speed: float
    pause: int  # samples of silence after it


class Caps(NamedTuple):
    """What a batch of several utterances keeps below, all with padding; None = no limit. See `DataConfig`."""

    samples: int
    cells: int | None
    cuts: int | None


class Sizes(NamedTuple):
    """Of G batches, padding included, each (G,) int64."""

    num_utterances: np.ndarray
    num_samples: np.ndarray  # of the longest
    num_frames: np.ndarray  # of the encoder, of the longest
    num_tokens: np.ndarray  # of the one with the most

    @property
    def cells(self) -> np.ndarray:
        """Of the lattices: T x (U + 1) for each utterance."""
        return self.num_utterances * self.num_frames * (self.num_tokens + 1)


@dataclass(frozen=True)
class EpochPlan:
    """The batches of an epoch, of all ranks: rank r of W takes r, W + r, 2 W + r, ..."""

    epoch: int
    sizes: Sizes
    repeated: int  # utterances that occur twice, as there are too few for the ranks
    _batches: np.ndarray  # (G + 1,) batch g is utterances order[batches[g] : batches[g + 1]]
    _order: np.ndarray
    _utterances: Utterances  # cuts by their number in the index
    _speed: np.ndarray  # (N,) uint8, of each of utterances.cuts, into speeds
    _speeds: tuple[float, ...]

    def __len__(self) -> int:
        return len(self._batches) - 1

    def batch(self, index: int) -> list[list[Piece]]:
        """The utterances of batch `index`."""
        cuts, starts, pauses = self._utterances
        return [
            [
                Piece(int(cuts[i]), self._speeds[self._speed[i]], int(pauses[i]))
                for i in range(starts[row], starts[row + 1])
            ]
            for row in self._order[self._batches[index] : self._batches[index + 1]]
        ]

    @property
    def fingerprint(self) -> str:
        """Names the batches: other lengths of cuts, or other settings that batches are drawn by, give another."""
        digest = hashlib.sha256()
        for part in (self._batches, self._order, *self._utterances, self._speed):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:16]

    def worst(self, number: int) -> list[int]:
        """Batches that ask for the most memory: the `number` with the most frames, the longest utterances, the largest
        lattices and the most utterances, each batch once."""
        sizes = self.sizes
        measures = (sizes.num_utterances * sizes.num_frames, sizes.num_frames, sizes.cells, sizes.num_utterances)
        found = [int(index) for measure in measures for index in np.argsort(-measure, kind="stable")[:number]]
        return list(dict.fromkeys(found))


def make_plan(
    config: DataConfig,
    timebase: Timebase,
    usable: np.ndarray,
    lengths: Lengths,
    arrange: Arrange = one_cut_each,
    *,
    seed: int,
    epoch: int,
    step_batches: int = 1,
) -> EpochPlan:
    """Draw the batches of an epoch.

    Utterances are put in order of length, coarsely: into `config.num_buckets` buckets of equal duration together, whose
    borders move from epoch to epoch, and at random in each. Of this row batches are filled one after the other up to
    the caps. `step_batches` neighbours, as similar as can be, are what all ranks together take for a step; these groups
    come in random order. Their number is whole: the largest batches are halved until it is.

    Args:
        usable: (N,) numbers of the cuts in the index.
        lengths: of them, unperturbed.
        arrange: joins cuts to utterances.
        step_batches: batches of a step over all ranks: ranks x accumulated ones.
    """

    def bits(purpose: int, size: int) -> np.ndarray:
        return np.random.PCG64(np.random.SeedSequence([seed, epoch, purpose])).random_raw(size)

    speeds = (1.0, *(factor for factor in config.speed_perturb if factor != 1.0))
    speed = (bits(_SPEED, len(usable)) % len(speeds)).astype(np.uint8)
    num_samples = _perturbed(config, timebase, lengths, speeds, speed)
    lengths = lengths._replace(num_samples=num_samples)
    utterances = arrange(lengths, seed, epoch)
    _check(utterances, len(usable))
    cuts, starts, pauses = utterances
    samples = np.add.reduceat(num_samples[cuts] + pauses, starts[:-1])
    tokens = np.add.reduceat(lengths.num_tokens[cuts], starts[:-1])

    order = _similar_neighbours(
        samples, config.num_buckets, bits(_ORDER, len(samples)), int(bits(_BORDERS, 1)[0]) / 2**64
    )
    caps = Caps(timebase.num_samples(config.max_duration), config.max_lattice, config.max_cuts)
    frames = _encoder_frames(timebase, samples)
    borders = _fill(samples[order], frames[order], tokens[order], caps)
    borders = _halve_to_multiple(borders, step_batches)
    missing = -(len(borders) - 1) % step_batches
    if missing:  # fewer utterances than batches that are needed: each is one, and the first come again
        order = np.resize(order, len(order) + missing)
        borders = np.arange(len(order) + 1)

    number = len(borders) - 1
    groups = np.argsort(bits(_GROUPS, number // step_batches), kind="stable")
    within = np.argsort(bits(_RANKS, number).reshape(-1, step_batches), axis=1, kind="stable")
    batch = (groups[:, None] * step_batches + within).reshape(-1)
    counts = np.diff(borders)[batch]
    ends = np.concatenate([[0], np.cumsum(counts)])
    order = order[np.repeat(borders[:-1][batch] - ends[:-1], counts) + np.arange(ends[-1])]
    longest = np.maximum.reduceat(samples[order], ends[:-1])
    return EpochPlan(
        epoch=epoch,
        sizes=Sizes(counts, longest, _encoder_frames(timebase, longest), np.maximum.reduceat(tokens[order], ends[:-1])),
        repeated=missing,
        _batches=ends,
        _order=order.astype(np.int32),
        _utterances=Utterances(usable[cuts].astype(np.int32), starts, pauses),
        _speed=speed[cuts],
        _speeds=speeds,
    )


def usable_cuts(config: DataConfig, timebase: Timebase, duration: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
    """(N,) bool: what `CutFilter` keeps, from durations in seconds (N,) and numbers of tokens (N,)."""
    inside = (config.min_utterance <= duration) & (duration <= config.max_utterance)
    return inside & (num_tokens > 0) & (num_tokens <= _encoder_frames(timebase, samples_of(timebase, duration)))


def samples_of(timebase: Timebase, duration: np.ndarray) -> np.ndarray:
    """`Timebase.num_samples` of seconds (N,) -> (N,) int64."""
    return np.floor(duration * timebase.sample_rate + 0.5).astype(np.int64)


def _encoder_frames(timebase: Timebase, num_samples: np.ndarray) -> np.ndarray:
    return timebase.num_encoder_frames(timebase.num_feature_frames(num_samples))


def _perturbed(
    config: DataConfig, timebase: Timebase, lengths: Lengths, speeds: Sequence[float], speed: np.ndarray
) -> np.ndarray:
    """Samples (N,) at the speeds drawn; where one would make an utterance unusable, `speed` becomes 0, that is 1.0."""
    exact = np.round(lengths.num_samples / np.array(speeds)[speed], 8)
    # Halves are rounded as Lhotse rounds them: up when faster, down when slower.
    samples = np.where(np.array(speeds)[speed] >= 1, np.floor(exact + 0.5), np.ceil(exact - 0.5)).astype(np.int64)
    bad = (speed > 0) & ~usable_cuts(config, timebase, samples / timebase.sample_rate, lengths.num_tokens)
    speed[bad] = 0
    return np.where(bad, lengths.num_samples, samples)


def _check(utterances: Utterances, number: int) -> None:
    cuts, starts, pauses = utterances
    whole = starts[0] == 0 and starts[-1] == len(cuts) == len(pauses) and (np.diff(starts) > 0).all()
    if not whole or not np.array_equal(np.sort(cuts), np.arange(number)) or pauses.min() < 0:
        raise ValueError(
            f"an arrangement must have each of the {number} cuts once, in utterances of at least one, with pauses of "
            f"at least 0 samples; got {len(cuts)} cuts in {len(starts) - 1} utterances"
        )


def _similar_neighbours(samples: np.ndarray, num_buckets: int, bits: np.ndarray, shift: float) -> np.ndarray:
    """(R,) utterances in order of their bucket, at random in each; `shift` of a bucket moves the borders."""
    by_length = np.lexsort((bits, samples))
    lengths = samples[by_length]
    middle = (np.cumsum(lengths) - lengths / 2) / lengths.sum()
    bucket = np.floor(middle * num_buckets + shift).astype(np.int64)
    return by_length[np.lexsort((bits[by_length], bucket))]


def _fill(samples: np.ndarray, frames: np.ndarray, tokens: np.ndarray, caps: Caps) -> np.ndarray:
    """(G + 1,) borders of batches of neighbours within the caps; one utterance is a batch whatever its size."""
    max_cells, max_cuts = caps.cells or np.inf, caps.cuts or np.inf
    borders, start, longest, most_frames, most_tokens = [0], 0, 0, 0, 0
    for i, (length, frame, token) in enumerate(zip(samples.tolist(), frames.tolist(), tokens.tolist(), strict=True)):
        count = i + 1 - start
        longest, most_frames, most_tokens = max(longest, length), max(most_frames, frame), max(most_tokens, token)
        fits = (
            count * longest <= caps.samples
            and count <= max_cuts
            and count * most_frames * (most_tokens + 1) <= max_cells
        )
        if not fits and count > 1:
            borders.append(i)
            start, longest, most_frames, most_tokens = i, length, frame, token
    return np.array([*borders, len(samples)])


def _halve_to_multiple(borders: np.ndarray, multiple: int) -> np.ndarray:
    """Halve the batches with the most utterances until their number is a multiple, or each is one utterance."""
    sizes = [(int(start - end), int(start), int(end)) for start, end in pairwise(borders)]
    heapq.heapify(sizes)  # the smallest of the negative sizes is the largest batch
    while len(sizes) % multiple and sizes[0][0] < -1:
        _, start, end = heapq.heappop(sizes)
        middle = (start + end) // 2
        heapq.heappush(sizes, (start - middle, start, middle))
        heapq.heappush(sizes, (middle - end, middle, end))
    return np.array(sorted(start for _, start, _ in sizes) + [int(borders[-1])])
