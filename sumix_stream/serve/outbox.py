"""Messages on their way to one client, of which a slow reader can hold back only so many."""

import asyncio
from collections import deque

from sumix_stream.serve.events import Event, EventKind


class Outbox:
    """Final results wait in order; of what is provisional only the newest is kept. Used by the event loop alone.

    Args:
        max_unsent: final results that may wait.
    """

    def __init__(self, max_unsent: int) -> None:
        self.max_unsent = max_unsent
        self.overflowed = False
        self._kept: deque[Event] = deque()
        self._newest: Event | None = None
        self.ended = False  # nothing more is taken
        self._changed = asyncio.Event()

    def put(self, event: Event) -> None:
        """Add a message; after one with a close code, or `end`, nothing more is taken."""
        if self.ended:
            return
        if event.kind in (EventKind.PARTIAL, EventKind.PROGRESS):
            self._newest = event
        else:
            self._newest = None
            self._kept.append(event)
            self.overflowed = len(self._kept) > self.max_unsent
            self.ended = event.close_code is not None or self.overflowed
        self._changed.set()

    def end(self) -> None:
        """There is nobody to send to."""
        self.ended = True
        self._kept.clear()
        self._newest = None
        self._changed.set()

    async def get(self) -> Event | None:
        """The next message; None when there will be none."""
        while True:
            if self.overflowed:
                return None
            if self._kept:
                return self._kept.popleft()
            if self._newest is not None:
                event, self._newest = self._newest, None
                return event
            if self.ended:
                return None
            self._changed.clear()
            await self._changed.wait()
