"""One channel of several: one of them, or their average, with a warning where they cancel each other."""

import logging
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from sumix_stream.audio.samples import AudioError, check_samples

MIX = "mix"
Channel = int | str  # from 0, or MIX
_NAMES = {"left": 0, "right": 1, MIX: MIX}
# Of the power that the average of independent channels would have. Speech on one of two channels is at 1, channels
# whose correlation is below -0.9 are below this.
_CANCELLED = 0.1
_SURE_SECONDS = 5.0  # of audio, after which it is said; before only at the end

_log = logging.getLogger(__name__)


def parse_channel(text: str) -> Channel:
    """0, 1, ..., left, right or mix. Raises AudioError for anything else."""
    if text in _NAMES:
        return _NAMES[text]
    if text.isascii() and text.isdigit():
        return int(text)
    raise AudioError(f"a channel is 0, 1, ..., left, right or mix, got {text!r}")


def check_channel(channel: Channel, num_channels: int) -> None:
    """Raises AudioError for one that is not there."""
    if channel != MIX and not (isinstance(channel, int) and 0 <= channel < num_channels):
        raise AudioError(f"there is no channel {channel} among its {num_channels} (the first is 0)")


class Power(NamedTuple):
    """Mean square of the channels, of their average, and of how many samples."""

    channels: float
    average: float
    num_samples: int

    def cancelled(self, num_channels: int) -> bool:
        return num_channels > 1 and self.average * num_channels < _CANCELLED * self.channels


class OneChannel:
    """Makes one channel of blocks (n, C), and tells the log once where averaging leaves nearly nothing.

    Args:
        name: of the recording, for the log.
    """

    def __init__(self, channel: Channel, num_channels: int, sample_rate: int, name: str) -> None:
        check_channel(channel, num_channels)
        self.channel, self.num_channels, self.sample_rate, self.name = channel, num_channels, sample_rate, name
        self._num_samples, self._power, self._average = 0, 0.0, 0.0
        self._said = False
        if channel == MIX and num_channels > 1:
            _log.info("%s: the average of its %d channels is used", name, num_channels)

    def accept(self, block: np.ndarray) -> np.ndarray:
        """Samples (n,), checked. Raises AudioError for NaN, infinity and integers that nobody scaled."""
        one = block.mean(axis=1) if self.channel == MIX else np.ascontiguousarray(block[:, self.channel])
        one = check_samples(one, self.sample_rate, self._num_samples)
        self._num_samples += len(one)
        if self.channel == MIX and self.num_channels > 1:
            self._power += float(np.einsum("ij,ij->", block, block)) / self.num_channels
            self._average += float(np.dot(one, one))
            if self._num_samples >= _SURE_SECONDS * self.sample_rate:
                self._warn()
        return one

    def finish(self) -> None:
        """No more blocks."""
        self._warn()

    def _warn(self) -> None:
        count = max(1, self._num_samples)
        power = Power(self._power / count, self._average / count, self._num_samples)
        if self._said or not power.cancelled(self.num_channels):
            return
        self._said = True
        decibels = 10 * math.log10(power.channels / max(power.average, 1e-30))
        by = "silent" if decibels > 100 else f"{decibels:.0f} dB below them"
        _log.warning(
            "%s: its %d channels cancel each other, their average is %s: use one of them (--channel left)",
            *(self.name, self.num_channels, by),
        )


def one_channel(blocks: Iterable[np.ndarray], mixed: OneChannel) -> Iterator[np.ndarray]:
    """Blocks (n, C) -> (n,)."""
    for block in blocks:
        yield mixed.accept(block)
    mixed.finish()
