"""How often the network wakes: told by a clock of its own."""

import asyncio
import socket
import threading
import time

from sumix_stream.serve import pacing
from sumix_stream.serve.pacing import PacedSelector


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, []

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        """For the selector's event."""
        self.slept.append(round(seconds, 6))
        self.now += seconds

    def clear(self) -> None:
        pass


def test_sockets_are_looked_at_at_once_and_then_the_more_seldom_the_longer_it_took(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    ours, theirs = socket.socketpair()
    with ours, theirs, PacedSelector() as selector:
        monkeypatch.setattr(selector, "_hurry", clock)
        selector.register(ours, 1)
        assert not selector.select(0) and not clock.slept
        theirs.send(b"x")
        assert selector.select(None) and not clock.slept  # the first after a quiet time
        for took, pause in ((0.0001, 0.0009), (0.0005, 0.002), (0.0008, 0.0032), (0.002, 0.003)):
            clock.now += took
            assert selector.select(None) and clock.slept.pop() == pause
        clock.now += 0.006
        assert selector.select(None) and not clock.slept  # it took longer than any pause
        assert selector.select(0) and not clock.slept  # who has something to do does not wait
        assert selector.select(0.0001) and clock.slept == [0.001]  # a timer may be late


def test_what_another_thread_asks_for_ends_a_pause(monkeypatch):
    """With pauses of a minute, hundreds of calls from another thread are answered before one is over."""
    monkeypatch.setattr(pacing, "_SHORTEST", 60.0)
    monkeypatch.setattr(pacing, "_LONGEST", 60.0)
    count = 300

    async def test() -> list[int]:
        loop, asked, answered = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        seen = []

        def answer(number: int) -> None:
            seen.append(number)
            answered.set()
            if number == count - 1:
                asked.set()

        def ask() -> None:
            for number in range(count):
                answered.clear()
                loop.call_soon_threadsafe(answer, number)
                answered.wait(30)

        thread = threading.Thread(target=ask)
        thread.start()
        await asked.wait()
        thread.join()
        return seen

    began = time.monotonic()
    assert pacing.run(test()) == list(range(count))
    assert time.monotonic() - began < 30
