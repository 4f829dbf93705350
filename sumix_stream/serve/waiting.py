"""What a worker process waits for: messages, and second passes of its own that are done."""

from __future__ import annotations

import contextlib
import os
import selectors
from multiprocessing.connection import Connection


class Waiting:
    """Lets a worker wait for messages and for its own second passes at once."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._awake, self._wake = os.pipe()
        os.set_blocking(self._awake, False)
        os.set_blocking(self._wake, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(pipe, selectors.EVENT_READ)
        self._selector.register(self._awake, selectors.EVENT_READ)

    def wake(self) -> None:
        """End the present wait, or the next. From any thread."""
        with contextlib.suppress(BlockingIOError):  # enough lie there
            os.write(self._wake, b"1")

    def has_message(self, wait: bool) -> bool:
        """Whether there is a message; with `wait`, only once there is one, or the worker was woken."""
        ready = self._selector.select(None if wait else 0)
        with contextlib.suppress(BlockingIOError):
            if any(key.fileobj == self._awake for key, _ in ready):
                os.read(self._awake, 4096)
        return any(key.fileobj is self._pipe for key, _ in ready)
