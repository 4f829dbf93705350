"""A limit of time for what is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def within(seconds: float, awaited: Coroutine) -> Any:
    """What `awaited` returns. Raises asyncio.TimeoutError when it takes longer, and what it raises.

    As `asyncio.wait_for`, except that nothing is logged where it fails at the moment when nobody waits any more: a
    client that goes away ends both the read and the one who waits for it.
    """
    task = asyncio.ensure_future(awaited)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.wait_for(task, seconds)
