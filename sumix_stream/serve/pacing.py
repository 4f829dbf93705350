"""An event loop that lets what is to be done gather for a moment."""

import asyncio
import selectors
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

_SHARE = 0.2  # of its time that the loop is awake, while shorter pauses can make it so
_SHORTEST, _LONGEST = 0.001, 0.005  # seconds between wakings


class PacedSelector(selectors.DefaultSelector):
    """Wakes every one to five milliseconds, the more seldom the longer it took the last time; timers may be so late.

    Hundreds of streams bring thousands of packets a second. Woken for each, a process would spend more on waking, and
    on taking the processor from recognition and giving it back, than on the packets. What comes after a quiet moment is
    seen at once, and so is what another thread asks for: results, which are few.
    """

    def __init__(self) -> None:
        super().__init__()
        self._woken = 0.0
        self._hurry = threading.Event()

    def interrupt(self) -> None:
        """End the present pause, or leave the next one out. From any thread."""
        self._hurry.set()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        now = time.monotonic()
        rest = self._woken + min(_LONGEST, max(_SHORTEST, (now - self._woken) / _SHARE)) - now
        if rest > 0:
            self._hurry.wait(rest)
            timeout = None if timeout is None else max(0.0, timeout - rest)
        self._hurry.clear()  # before looking: what is asked for from now on may be missed, and shortens the next pause
        found = super().select(timeout)
        self._woken = time.monotonic()
        return found


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._paced = PacedSelector()
        super().__init__(self._paced)

    def call_soon_threadsafe(self, *args: Any, **options: Any) -> asyncio.Handle:
        handle = super().call_soon_threadsafe(*args, **options)
        self._paced.interrupt()
        return handle


def run(main: Coroutine[object, object, Result]) -> Result:
    """As asyncio.run (which takes no loop before Python 3.12), in a loop of this kind."""
    loop = _Loop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        asyncio.set_event_loop(None)
        loop.close()
