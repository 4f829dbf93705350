"""Whose turn it is: streams that are spoken go before recordings that are sent faster than they were spoken."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar

_GAIN = 1.1  # seconds of audio a second: more than a second, as no two clocks agree
_MOST = 2.0  # seconds of audio: as much may come at once after a gap of the network
_SHORT = 0.02  # seconds that recordings may take while somebody speaks


class Credit:
    """Seconds of audio that a stream may have recognised ahead of others; a token bucket that time fills again.

    Who speaks never spends it all. A recording does, and from then on has what time the others leave, but never less
    than it would have if it were spoken.
    """

    def __init__(self, now: float) -> None:
        self._seconds, self._since = _MOST, now

    def spend(self, seconds: float) -> None:
        self._seconds -= seconds

    def is_spent(self, now: float) -> bool:
        self._seconds = min(_MOST, self._seconds + _GAIN * (now - self._since))
        self._since = now
        return self._seconds < 0


class HasCredit(Protocol):
    credit: Credit


Streams = TypeVar("Streams", bound=HasCredit)


class Turns:
    """Chooses who is recognised next.

    Args:
        clock: the time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._each = 0.0  # seconds that a stream's share of a batch took the last time

    def took(self, seconds: float, streams: int) -> None:
        """A batch of so many streams has taken so long."""
        self._each = seconds / streams

    def choose(self, due: Sequence[Streams], everybody: Collection[Streams]) -> Sequence[Streams]:
        """Of `due`, all that have credit; if none has, a few, or all where nobody who could speak would wait."""
        now = self.clock()
        spoken = [stream for stream in due if not stream.credit.is_spent(now)]
        if spoken:
            return spoken
        if self._each > 0 and any(not stream.credit.is_spent(now) for stream in everybody):
            return due[: max(1, int(_SHORT / self._each))]
        return due
