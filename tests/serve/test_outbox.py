"""What waits for a client, and how much of it."""

import asyncio

import pytest
from serving import run

from sumix_stream.serve.engine import Event, EventKind
from sumix_stream.serve.outbox import Outbox


def partial(text: str) -> Event:
    return Event(EventKind.PARTIAL, text)


def final(text: str) -> Event:
    return Event(EventKind.FINAL, text)


async def drain(outbox: Outbox) -> list[str]:
    found = []
    while (event := await outbox.get()) is not None:
        found.append(event.text)
    return found


CASES = {
    "in order": ([final("a"), final("b"), partial("c")], ["a", "b", "c"]),
    "the newest partial": ([partial("a"), partial("b"), Event(EventKind.PROGRESS, "c")], ["c"]),
    "a final makes its partials old": ([partial("a"), final("b")], ["b"]),
    "a partial of the next segment": ([final("a"), partial("b")], ["a", "b"]),
}


@pytest.mark.parametrize(("events", "expected"), CASES.values(), ids=CASES)
def test_order(events, expected):
    async def test():
        outbox = Outbox(10)
        for event in [*events, Event(EventKind.DONE, "done", 1000), final("too late")]:
            outbox.put(event)
        found = await drain(outbox)
        if events[-1].kind in ("partial", "progress"):  # what is provisional is overtaken by the end
            expected_here = [*expected[:-1], "done"]
        else:
            expected_here = [*expected, "done"]
        assert found == expected_here

    run(test)


@pytest.mark.parametrize(("events", "expected"), CASES.values(), ids=CASES)
def test_order_while_it_is_read(events, expected):
    async def test():
        outbox = Outbox(10)
        for event in events:
            outbox.put(event)
        found = [(await outbox.get()).text for _ in expected]
        assert found == expected
        waiting = asyncio.create_task(outbox.get())
        await asyncio.sleep(0)
        assert not waiting.done()
        outbox.put(final("more"))
        assert (await waiting).text == "more"

    run(test)


def test_a_full_outbox_gives_up():
    async def test():
        outbox = Outbox(3)
        for n in range(3):
            outbox.put(final(str(n)))
        assert not outbox.overflowed
        for n in range(1000):
            outbox.put(partial(str(n)))
        assert not outbox.overflowed
        outbox.put(final("one too many"))
        assert outbox.overflowed and await outbox.get() is None

    run(test)


def test_an_ended_outbox_says_so_to_who_waits():
    async def test():
        outbox = Outbox(3)
        waiting = asyncio.create_task(outbox.get())
        await asyncio.sleep(0)
        outbox.put(final("a"))
        outbox.end()
        assert await waiting is None

    run(test)
