"""Streams that are spoken go before recordings; recordings have the rest, and never less than real time."""

from types import SimpleNamespace

import numpy as np
import pytest
from serving import PCM, RATE, expected, make_recognizer

from sumix_stream.serve.engine import Engine, Session
from sumix_stream.serve.metrics import Metrics
from sumix_stream.serve.turns import Credit, Turns

CHUNK = 0.32  # seconds, of make_recognizer


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Someone:
    def __init__(self, engine: Engine) -> None:
        self.events = []
        self.session: Session = engine.open(RATE, self.events.extend)

    @property
    def num_chunks(self) -> int:
        stream = self.session.stream
        return 0 if stream is None else stream.num_encoded // self.session.engine.recognizer.context.chunk_size


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def engine(clock):
    return Engine(make_recognizer(), Metrics(), clock)


def recording(engine: Engine, seconds: float = 60.0) -> Someone:
    one = Someone(engine)
    one.session.push(np.resize(PCM, int(seconds * RATE)))
    return one


def turns_until_spent(engine: Engine, recordings: list[Someone]) -> None:
    while not all(one.session.credit.is_spent(engine.turns.clock()) for one in recordings):
        assert engine.turn()


@pytest.mark.parametrize("speed", [1.0, 1.01], ids=["exact", "a fast sound card"])
def test_who_speaks_always_has_credit(speed):
    credit, gaps = Credit(0.0), np.random.default_rng(0).uniform(0, 1, 2000)
    for chunk, gap in enumerate(gaps):
        now = (chunk * 0.64 + gap) / speed  # an hour and more; the network holds packets up by up to a second
        assert not credit.is_spent(now)
        credit.spend(0.64)


def test_a_recording_spends_it_and_real_time_gives_it_back():
    credit = Credit(0.0)
    for _ in range(7):
        assert not credit.is_spent(0.0)
        credit.spend(CHUNK)
    assert credit.is_spent(0.0) and credit.is_spent(0.1)
    assert not credit.is_spent(1.0)


def test_who_speaks_goes_first_and_recordings_have_the_rest(engine):
    files, live = [recording(engine) for _ in range(3)], Someone(engine)
    turns_until_spent(engine, files)
    before = [one.num_chunks for one in files]
    live.session.push(PCM[: int(0.4 * RATE)])
    assert engine.turn()
    assert live.num_chunks == 1 and [one.num_chunks for one in files] == before
    assert engine.turn()
    assert live.num_chunks == 1 and sum(one.num_chunks for one in files) > sum(before)


def test_while_somebody_may_speak_recordings_come_a_few_at_a_time_and_in_turn(engine):
    files, live = [recording(engine) for _ in range(6)], Someone(engine)
    turns_until_spent(engine, files)
    before = [one.num_chunks for one in files]
    for _ in range(3):
        engine.turns.took(0.08, 8)  # so that two of them take 20 ms
        engine.turn()
    assert [one.num_chunks - number for one, number in zip(files, before, strict=True)] == [1] * 6
    live.session.close()
    engine.turns.took(0.08, 8)
    engine.turn()
    assert [one.num_chunks - number for one, number in zip(files, before, strict=True)] == [2] * 6


def test_one_that_alone_takes_longer_goes_alone():
    clock = Clock()
    turns = Turns(clock)
    *due, speaker = [SimpleNamespace(credit=Credit(clock.now)) for _ in range(4)]
    for stream in due:
        stream.credit.spend(9.0)
    turns.took(0.5, 1)
    assert turns.choose(due, [*due, speaker]) == due[:1]
    assert turns.choose(due, due) == due


def test_under_overload_a_recording_keeps_the_pace_of_speech(engine, clock):
    file, live = recording(engine), Someone(engine)
    turns_until_spent(engine, [file])
    before, chunks = file.num_chunks, 40
    for _ in range(chunks):  # somebody who speaks is due at every turn
        clock.now += CHUNK
        live.session.push(PCM[: int(CHUNK * RATE)])
        engine.turn()
    assert live.num_chunks >= chunks - 2
    assert chunks <= file.num_chunks - before <= 1.2 * chunks


def test_tokens_do_not_depend_on_turns(engine, clock):
    file = Someone(engine)
    others = [recording(engine, 5.0) for _ in range(3)]
    file.session.push(PCM)
    file.session.end()
    turns_until_spent(engine, others)
    while file.events[-1].kind != "done":
        clock.now += CHUNK / 2
        Someone(engine).session.push(PCM[:6000])
        engine.turn()
    texts = [event.text for event in file.events if event.kind == "final"]
    alone = expected(PCM)
    assert len(texts) == len(alone)
    assert all(f'"{one.text}"' in text for one, text in zip(alone, texts, strict=True))
