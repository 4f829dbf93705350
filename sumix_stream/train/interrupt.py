"""Ctrl-C and SIGTERM: finish the step, save, leave."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """While entered, SIGINT and SIGTERM only set `signum`; the second one raises KeyboardInterrupt at once.

    Outside the main thread Python allows no handlers: there nothing is caught.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._owner = os.getpid()
        self._immediate = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        try:
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._handle)
        except ValueError:
            self._previous = {}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Inside, the first signal raises KeyboardInterrupt: for work that can be dropped half way."""
        if self.signum is not None:
            raise KeyboardInterrupt
        self._immediate = True
        try:
            yield
        finally:
            self._immediate = False

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a data worker forked from here: the parent decides, and ends it by SIGTERM
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return
        again = self.signum is not None
        self.signum = signum
        if again or self._immediate:
            raise KeyboardInterrupt
