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


@pytest.mark.parametrize(("streams", "period"), [(0, 0.0), (1, 0.001), (30, 0.03), (500, 0.32 / 6)])
def test_rounds_of_many_streams_follow_each_other_more_slowly(monkeypatch, streams, period):
    clock = Clock()
    monkeypatch.setattr(engine, "time", clock)
    rounds = Engine(make_recognizer(), Metrics())  # chunks of 320 ms
    for _ in range(streams):
        rounds.open(16_000, lambda events: None)
    assert rounds._seconds_to_gather() == 0  # after a quiet time
    assert rounds._seconds_to_gather() == pytest.approx(period)
    clock.now += period + 0.7 * period  # the second round began late, and has taken so long
    assert rounds._seconds_to_gather() == pytest.approx(0.3 * period)
    clock.now += 3 * period
    assert rounds._seconds_to_gather() == 0  # one that takes longer than that is followed at once
