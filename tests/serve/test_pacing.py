"""How often the network wakes: told by a clock of its own."""

import socket

from sumix_stream.serve import pacing
from sumix_stream.serve.pacing import PacedSelector


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds


def test_sockets_are_looked_at_at_once_and_then_the_more_seldom_the_longer_it_took(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    ours, theirs = socket.socketpair()
    with ours, theirs, PacedSelector() as selector:
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
