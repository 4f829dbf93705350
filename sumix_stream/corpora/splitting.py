"""Which utterances train, which validate, which test: speakers kept apart where they are known."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PARTS = ("train", "valid", "test")
MOST_SECONDS = {"valid": 3600.0, "test": 5 * 3600.0}  # a validation set is decoded again and again
_KNOWN = 0.95  # share of the audio whose speaker is named, from which on speakers decide


class Split(NamedTuple):
    """`parts` (N,): index into PARTS; `notes` tell how it was done."""

    parts: np.ndarray
    notes: list[str]


def split(
    seconds: np.ndarray,
    speakers: Sequence[int],
    given: np.ndarray,
    *,
    valid: float = 0.05,
    test: float = 0.05,
    seed: int = 0,
) -> Split:
    """Divide N utterances.

    Args:
        seconds: (N,) of each utterance.
        speakers: (N,) number of each one's speaker; -1: not known.
        given: (N,) index into PARTS of what the source says; -1: nothing. It is kept, but that training utterances fill
            a part which no source names.
        valid, test: share of the audio below 1 (at most MOST_SECONDS), or a number of utterances; 0: none.

    Raises:
        ValueError: nothing would be left to train on.
    """
    for name, value in (("valid", valid), ("test", test)):
        if not 0 <= value or (1 < value != int(value)):
            raise ValueError(f"--{name} {value:g}: must be a share below 1, or a number of utterances")
    speakers = np.asarray(speakers)
    parts, notes = np.where(given < 0, 0, given).astype(np.int8), []
    rng = np.random.default_rng(seed)
    for name, value in (("test", test), ("valid", valid)):
        number = PARTS.index(name)
        if (given == number).any():
            notes.append(f"{name}: as the sources say")
            continue
        pool = np.flatnonzero(parts == 0)
        if value == 0 or len(pool) < 2:
            notes.append(f"{name}: none")
            continue
        chosen, how = _draw(seconds[pool], speakers[pool], _wanted(name, value, seconds[pool]), rng)
        parts[pool[chosen]] = number
        notes.append(f"{name}: {how}")
    if not (parts == 0).any():
        raise ValueError("no utterance is left to train on: all belong to valid and test; see --valid, --test")
    return Split(parts, notes)


def _wanted(name: str, value: float, seconds: np.ndarray) -> float:
    """Seconds."""
    if value >= 1:
        return value * float(seconds.mean())
    return min(value * float(seconds.sum()), MOST_SECONDS[name])


def _draw(seconds: np.ndarray, speakers: np.ndarray, wanted: float, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Places of utterances that make about `wanted` seconds: of whole speakers, else any."""
    known = speakers >= 0
    if seconds[known].sum() < _KNOWN * seconds.sum():
        return _any(seconds, wanted, rng), "utterances drawn at random (speakers are not known; training hears them)"
    numbers, index = np.unique(speakers[known], return_inverse=True)
    totals = np.bincount(index, weights=seconds[known])
    chosen, total = [], 0.0
    for speaker in rng.permutation(len(numbers)):
        if total + totals[speaker] <= 1.5 * wanted:
            chosen.append(numbers[speaker])
            total += totals[speaker]
        if total >= wanted:
            break
    if total < 0.5 * wanted:
        how = f"utterances drawn at random (training hears their speakers: the corpus has {len(numbers)})"
        return _any(seconds, wanted, rng), how
    return np.flatnonzero(np.isin(speakers, chosen)), f"{len(chosen)} speakers that training does not hear"


def _any(seconds: np.ndarray, wanted: float, rng: np.random.Generator) -> np.ndarray:
    order = rng.permutation(len(seconds))
    number = int(np.searchsorted(np.cumsum(seconds[order]), wanted)) + 1
    return np.sort(order[: min(number, len(seconds) // 2)])
