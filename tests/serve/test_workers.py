"""Processes that recognise: spread, limits, and what happens when one dies."""

import asyncio
import os
import signal
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from serving import RATE, make_recognizer, run, serving, uri
from talkative import sound
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from sumix_stream.serve.engine import Event, EventKind
from sumix_stream.serve.metrics import Metrics
from sumix_stream.serve.protocol import INTERNAL
from sumix_stream.serve.workers import Message, RemoteSession, Spawn, Workers


class Pipe:
    """A worker that only notes what it is sent."""

    def __init__(self):
        self.lock, self.sent, self.sessions = threading.RLock(), [], {}

    def send(self, kind, number=0, value=None):
        self.sent.append((kind, None if value is None else len(value)))


def test_audio_goes_a_chunk_at_a_time_and_waits_for_nothing():
    worker, heard, room = Pipe(), [], Event(EventKind.AUDIO_ACCEPTED)
    session = RemoteSession(worker, 1, RATE, 1000, heard.extend)
    worker.sessions[1] = session
    session.push(np.zeros(600, np.int16))
    assert worker.sent == []
    session.push(np.zeros(500, np.int16))
    assert worker.sent == [(Message.AUDIO, 1100)] and session.num_pending == 1100
    session.heard(1000, 900, [])
    session.push(np.zeros(700, np.int16))
    assert len(worker.sent) == 1 and session.num_pending == 800
    session.heard(1000, 800, [room])  # what is known of the worker's need may change after the audio came
    assert worker.sent[1:] == [(Message.AUDIO, 700)] and heard == [room]
    session.push(np.zeros(5, np.int16))
    session.end()
    assert worker.sent[2:] == [(Message.AUDIO, 5), (Message.END, None)]
    session.close()
    session.close()
    session.heard(1805, 800, [Event(EventKind.PROGRESS)])
    assert worker.sent[4:] == [(Message.CLOSE, None)] and heard == [room] and not worker.sessions


def test_a_worker_that_is_behind_gets_whole_chunks():
    worker = Pipe()
    session = RemoteSession(worker, 1, RATE, 1000, lambda events: None)
    for _ in range(16):
        session.push(np.zeros(200, np.int16))
    assert worker.sent == 3 * [(Message.AUDIO, 1000)]  # not a message a packet
    session.heard(1000, 1000, [])
    assert len(worker.sent) == 3
    session.heard(3000, 900, [])
    session.push(np.zeros(700, np.int16))
    assert worker.sent[3:] == [(Message.AUDIO, 900)] and session.num_pending == 900


def test_sessions_go_to_the_worker_with_the_fewest():
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        Workers(make_recognizer(), Spawn(make_recognizer, 0), Metrics())
    workers = Workers(make_recognizer(), Spawn(make_recognizer, 2), Metrics())
    workers.start()
    try:
        sessions = [workers.open(RATE, lambda events: None) for _ in range(5)]
        first, second = workers.pids
        of = [session.worker.pid for session in sessions]
        assert (of.count(first), of.count(second)) == (3, 2)
        sessions[0].close()
        sessions[2].close()
        assert workers.open(RATE, lambda events: None).worker.pid == first
        assert workers.num_sessions == 4
    finally:
        workers.stop()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in (first, second))


async def last_message(client) -> str:
    message = ""
    with suppress(ConnectionClosed):
        while True:
            message = await client.recv()
    return message


def failing():
    raise ValueError("no model here")


def test_a_worker_that_does_not_start_is_an_error():
    with pytest.raises(ChildProcessError, match="did not start"):
        Workers(make_recognizer(), Spawn(failing, 1), Metrics()).start()


def test_when_one_does_not_come_up_the_others_end_too(monkeypatch):
    workers = Workers(make_recognizer(), Spawn(make_recognizer, 2), Metrics())

    def too_late():
        raise ChildProcessError("a worker process did not start")

    monkeypatch.setattr(workers._workers[1], "wait_until_ready", too_late)
    with pytest.raises(ChildProcessError, match="did not start"):
        workers.start()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers.pids)


def test_a_killed_worker_ends_its_own_streams_and_comes_back():
    async def test():
        async with serving(workers=2) as (server, port):
            killed, kept = server._engine.pids
            packet = (sound(1.0, seed=3) * 32767).astype(np.int16).tobytes()
            async with connect(uri(port)) as one, connect(uri(port)) as other:
                for client in (one, other):
                    await client.send(packet)
                while server.num_sessions < 2:
                    await asyncio.sleep(0.01)
                os.kill(killed, signal.SIGKILL)
                last = await last_message(one)
                assert '"internal"' in last and "Traceback" not in last
                assert one.close_code == INTERNAL
                assert server.num_sessions == 1
                await other.send('{"type": "end"}')
                assert '"done"' in await last_message(other)
            until = time.monotonic() + 40
            while not all(worker.alive for worker in server._engine._workers) and time.monotonic() < until:
                await asyncio.sleep(0.05)
            assert server._engine.pids[0] != killed and server._engine.pids[1] == kept
            clients = [await connect(uri(port)).__aenter__() for _ in range(2)]
            for client in clients:
                await client.send(packet)
                await client.send('{"type": "end"}')
                assert '"done"' in await last_message(client)

    run(test)
