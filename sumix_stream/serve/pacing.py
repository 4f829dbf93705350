"""An event loop that lets what is to be done gather for a moment."""

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import TypeVar

Result = TypeVar("Result")

_SHARE = 0.2  # of its time that the loop is awake, while shorter pauses can make it so
_SHORTEST, _LONGEST = 0.001, 0.005  # seconds between wakings


class PacedSelector(selectors.DefaultSelector):
    """Wakes every one to five milliseconds, the more seldom the longer it took the last time; timers may be so late.

    Hundreds of streams bring thousands of packets a second. Woken for each, a process would spend more on waking, and
    on taking the processor from recognition and giving it back, than on the packets. What comes after a quiet moment is
    seen at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._woken = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        now = time.monotonic()
        rest = self._woken + min(_LONGEST, max(_SHORTEST, (now - self._woken) / _SHARE)) - now
        if rest > 0:
            time.sleep(rest)
            timeout = None if timeout is None else max(0.0, timeout - rest)
        found = super().select(timeout)
        self._woken = time.monotonic()
        return found


def run(main: Coroutine[object, object, Result]) -> Result:
    """As asyncio.run (which takes no loop before Python 3.12), in a loop of this kind."""
    loop = asyncio.SelectorEventLoop(PacedSelector())
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
