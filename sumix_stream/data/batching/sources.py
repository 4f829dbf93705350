"""Training sources with weights: which cuts of each an epoch takes, so that their shares of the audio are those asked.

Lhotse's `CutSet.mux` draws the source of every next cut, so its shares hold on average and going on means drawing all
of it again. Here the cuts of an epoch are a function of (seed, epoch), as everything else in its plan.

N cuts of S sources.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

_ROTATION = 50  # what bits are drawn for; plan.py's are below, joining.py's above


class Share(NamedTuple):
    """What is taken of a source; samples as recorded, before any change of speed."""

    total: int  # samples
    each_epoch: Fraction  # samples, at most `total`


class WeightedSources:
    """The cuts of each epoch.

    Each source's cuts are put into one random order and laid on a circle, as long as its audio. An epoch is the next
    arc of every circle; the arcs are to each other as the weights, and the longest possible: of the source that is
    spent first an epoch takes the whole circle, so that no cut comes twice in an epoch. A cut belongs to the arc in
    which it starts: after any number of epochs the audio taken of a source differs from its share by less than a cut.

    Args:
        weights: (S,) above 0; only their proportions matter.
        source: (N,) int, which source each cut is of.
        num_samples: (N,) int64.

    Raises:
        ValueError: a source has no cut.
    """

    def __init__(self, weights: Sequence[float], source: np.ndarray, num_samples: np.ndarray, seed: int):
        members = [np.flatnonzero(source == number) for number in range(len(weights))]
        if empty := [number for number, cuts in enumerate(members) if not len(cuts)]:
            raise ValueError(f"sources {empty} have no cuts")
        totals = [int(num_samples[cuts].sum()) for cuts in members]
        scale = min(total / Fraction(weight) for total, weight in zip(totals, weights, strict=True))
        self.shares = [Share(total, scale * Fraction(w)) for total, w in zip(totals, weights, strict=True)]
        self._circles = [
            _laid_out(cuts, num_samples, seed, number) for number, cuts in enumerate(members)
        ]  # (cuts, their starts) of each source

    def epoch(self, epoch: int) -> np.ndarray:
        """Numbers of the cuts of an epoch, counted from 0, in ascending order."""
        taken = []
        for share, (cuts, starts) in zip(self.shares, self._circles, strict=True):
            first, end = (share.each_epoch * n // 1 for n in (epoch, epoch + 1))
            taken.append(cuts[(starts - first % share.total) % share.total < end - first])
        return np.sort(np.concatenate(taken))


def _laid_out(cuts: np.ndarray, num_samples: np.ndarray, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    bits = np.random.PCG64(np.random.SeedSequence([seed, number, _ROTATION])).random_raw(len(cuts))
    cuts = cuts[np.argsort(bits, kind="stable")]
    lengths = num_samples[cuts]
    return cuts, np.cumsum(lengths) - lengths


def describe(names: Sequence[str], shares: Sequence[Share], sample_rate: int) -> str:
    """A line for the log: share, hours, and in how many epochs each source is heard once."""
    together = sum(share.each_epoch for share in shares)
    parts = []
    for name, share in zip(names, shares, strict=True):
        epochs = float(share.total / share.each_epoch)
        once = "all of it each epoch" if epochs == 1 else f"once in {epochs:.1f} epochs"
        hours = share.total / sample_rate / 3600
        parts.append(f"{name} {float(share.each_epoch / together):.1%} ({hours:.2f} h, {once})")
    return f"shares of the training audio: {', '.join(parts)}; an epoch is {float(together) / sample_rate / 3600:.2f} h"
