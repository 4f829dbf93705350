"""A whole recording through a session, at the pace of recognition: for protocols that take files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import numpy as np

from sumix_stream.serve.events import Done, Event, EventKind, Failed, Happened, carry
from sumix_stream.serve.options import StreamOptions
from sumix_stream.serve.reading import Mailbox
from sumix_stream.serve.session import Session

_MOST_UNREAD = 64  # events that may wait for who reads them; then no more audio is taken


class Recording:
    """A session that waits where recognition is behind, so that no more than a few seconds of audio are in memory.

    Args:
        open_session: as `Engine.open`.
        most_pending: seconds of audio that may wait for recognition.
    """

    def __init__(
        self,
        open_session: Callable[..., Session],
        mailbox: Mailbox,
        sample_rate: int,
        options: StreamOptions,
        most_pending: float,
    ) -> None:
        self._mailbox, self._most_pending = mailbox, most_pending
        self._unread: asyncio.Queue[Happened | Exception] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._session = open_session(sample_rate, self._report, options, write=carry)

    async def push(self, samples: np.ndarray) -> None:
        """Hand over samples (S,), once there is room."""
        while self._is_full():
            self._changed.clear()
            await self._changed.wait()
        self._session.push(samples)

    def end(self) -> None:
        """There is no more."""
        self._session.end()

    def fail(self, error: Exception) -> None:
        """There is no more, and `happened` raises this."""
        self._unread.put_nowait(error)

    def close(self) -> None:
        """Forget it, at any time."""
        self._session.close()

    async def happened(self) -> AsyncIterator[Happened]:
        """What happens, to the end: `Done` or `Failed`."""
        while True:
            one = await self._unread.get()
            self._changed.set()
            if isinstance(one, Exception):
                raise one
            yield one
            if isinstance(one, Done | Failed):
                return

    def _is_full(self) -> bool:
        if self._session.closed:
            return False
        return self._session.pending_seconds > self._most_pending or self._unread.qsize() > _MOST_UNREAD

    def _report(self, events: list[Event]) -> None:
        """From another thread."""
        self._mailbox.send(self._take, events)

    def _take(self, events: list[Event]) -> None:
        self._changed.set()
        for event in events:
            if event.kind is not EventKind.AUDIO_ACCEPTED:
                self._unread.put_nowait(event.happened)
