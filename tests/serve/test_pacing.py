"""What gathers, and for how long: told by a clock of its own."""

import socket

import pytest
from serving import make_recognizer

from sumix_stream.serve import engine, pacing
from sumix_stream.serve.engine import Engine
from sumix_stream.serve.metrics import Metrics
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


def test_sockets_are_looked_at_at_once_and_then_every_five_milliseconds(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    ours, theirs = socket.socketpair()
    with ours, theirs, PacedSelector() as selector:
        selector.register(ours, 1)
        assert not selector.select(0) and not clock.slept
        theirs.send(b"x")
        assert selector.select(None) and not clock.slept  # the first after a quiet time
        clock.now += 0.002
        assert selector.select(None) and clock.slept == [0.003]
        assert selector.select(0) and clock.slept == [0.003]  # who has something to do does not wait
        assert selector.select(0.001) and clock.slept == [0.003, 0.005]  # a timer may be late
        clock.now += 1
        assert selector.select(0.001) and clock.slept == [0.003, 0.005]


@pytest.mark.parametrize(
    ("took", "pause"),
    [(0.007, 0.003), (0.035, 0.015), (0.05, 0.32 / 6 - 0.05), (0.054, 0.0), (0.3, 0.0)],
    ids=["7 of 10 ms", "35 of 50 ms", "as long as a sixth of a chunk allows", "longer than that", "overload"],
)
def test_after_a_long_round_streams_gather_for_longer(monkeypatch, took, pause):
    clock = Clock()
    monkeypatch.setattr(engine, "time", clock)
    rounds = Engine(make_recognizer(), Metrics(), after_round=lambda: clock.sleep(took / 2))  # chunks of 320 ms
    rounds._round = lambda: clock.sleep(took / 2)
    rounds._paced_round()
    assert clock.slept == [0, took / 2, took / 2]  # at once after a quiet time
    rounds._paced_round()
    assert clock.slept[3] == pytest.approx(pause, abs=2e-6)
    clock.now += 0.001  # a stream that is ready that much later waits that much less
    rounds._paced_round()
    assert clock.slept[6] == pytest.approx(max(0, pause - 0.001), abs=2e-6)
