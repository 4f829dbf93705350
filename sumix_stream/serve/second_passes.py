"""Second passes of an engine's streams, in a thread of lower priority: they take the time that chunks leave.

What is computed there releases Python's lock, so that chunks do not wait for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sumix_stream.streaming.second_pass import Final, Segment

_NICENESS = 10  # more than the engine's
Owner = TypeVar("Owner")


class SecondPasses:
    """One thread, begun with the first segment.

    Args:
        notify: called in that thread when something is done.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._pool: ThreadPoolExecutor | None = None
        self._done: deque[tuple] = deque()

    def submit(self, segment: Segment, owner: Owner) -> None:
        """Hear a segment again; `done` gives it back with its owner."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "second-pass", _be_nice)
        self._pool.submit(self._run, segment, owner)

    def done(self) -> list[tuple[Owner, Final | Exception]]:
        """What has been done since the last time."""
        found = []
        while self._done:
            found.append(self._done.popleft())
        return found

    @property
    def any_done(self) -> bool:
        return bool(self._done)

    def stop(self) -> None:
        """What has not begun is left undone."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, segment: Segment, owner: Owner) -> None:
        try:
            result: Final | Exception = segment.final()
        except Exception as fault:
            result = fault
        self._done.append((owner, result))
        self._notify()


def _be_nice() -> None:
    if sys.platform == "linux":  # where a thread has a priority of its own
        with contextlib.suppress(OSError):
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + _NICENESS)
