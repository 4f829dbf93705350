"""Second passes of an engine's streams, in a thread of their own that gives way to chunks.

What is computed there releases Python's lock, and is done layer by layer where the runtime can: before each the thread
waits until no chunk is being recognised, but not for ever. A lower priority would not do: where other programs share
the cores the thread would stand still, and so would the streams whose results it has.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sumix_stream.streaming.second_pass import Final, Segment

_PATIENCE = 0.05  # seconds that a piece waits for a moment without chunks
Owner = TypeVar("Owner")


class SecondPasses:
    """One thread, begun with the first segment.

    Args:
        notify: called in that thread when something is done.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self.chunks_rest = threading.Event()  # while it is set, there is time
        self.chunks_rest.set()
        self._notify = notify
        self._pool: ThreadPoolExecutor | None = None
        self._done: deque[tuple] = deque()

    def submit(self, segment: Segment, owner: Owner) -> None:
        """Hear a segment again; `done` gives it back with its owner."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "second-pass")
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
            result: Final | Exception = segment.final(lambda: self.chunks_rest.wait(_PATIENCE))
        except Exception as fault:
            result = fault
        self._done.append((owner, result))
        self._notify()
