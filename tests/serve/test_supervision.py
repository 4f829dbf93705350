"""Worker processes that die, stop or cannot be begun: noticed, begun again, and told of."""

import asyncio
import contextlib
import errno
import json
import logging
import os
import queue
import resource
import signal
import threading
import time

import pytest
from serving import healthy, http, make_recognizer, run, until

from sumix_stream.serve import commands, supervision
from sumix_stream.serve.limits import Limits
from sumix_stream.serve.server import Server
from sumix_stream.serve.supervision import WorkerProcess
from sumix_stream.serve.workers import Spawn


class Pipe:
    """Our end of a pipe to a process that is only pretended."""

    def __init__(self):
        self.incoming, self.sent = queue.Queue(), []
        self.incoming.put("ready")

    def poll(self, seconds):
        return True

    def recv(self):
        if (message := self.incoming.get()) is None:
            raise EOFError
        return message

    def send(self, messages):
        self.sent += messages

    def close(self):
        pass


class Factory:
    """Starts nothing; `faults` are raised by the next starts, one after the other."""

    def __init__(self, faults=()):
        self.faults, self.pipes, self.reaped = list(faults), [], []

    def spawn(self):
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault
        self.pipes.append(Pipe())
        return self.pipes[-1], 1_000_000 + len(self.pipes)

    def reap(self, pid):
        self.reaped.append(pid)
        return -9


class Worker(WorkerProcess):
    def __init__(self, factory, patience=3.0):
        super().__init__(factory, patience)
        self.got, self.num_lost = [], 0

    def handle(self, message):
        self.got.append(message)

    def ask(self):
        self.put("ping")

    def ask_to_end(self):
        self.put("stop")
        self._pipe.incoming.put(None)

    def lost(self):
        self.num_lost += 1
        return 0


@pytest.fixture
def killed(monkeypatch):
    """Processes that were killed; nobody is."""
    found = []
    monkeypatch.setattr(supervision.os, "kill", lambda pid, number: found.append((pid, number)))
    return found


def wait(condition):
    until_when = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until_when, "it never came to that"
        time.sleep(0.002)


def test_a_restart_that_fails_is_tried_again(monkeypatch, killed, caplog):
    """Out of descriptors, then out of processes, then it works; pauses grow."""
    monkeypatch.setattr(supervision, "_FIRST_PAUSE", 0.001)
    pauses, pause = [], WorkerProcess._pause
    monkeypatch.setattr(WorkerProcess, "_pause", lambda self: pauses.append(pause(self)) or pauses[-1])
    factory = Factory([None, OSError(errno.EMFILE, "Too many open files"), ChildProcessError("none"), None])
    worker = Worker(factory)
    worker.start()
    worker.wait_until_ready()
    with caplog.at_level(logging.ERROR, "sumix_stream"):
        factory.pipes[0].incoming.put(None)
        wait(lambda: len(factory.pipes) == 2 and worker.alive)
    assert [record.getMessage() for record in caplog.records] == ["worker died", *["worker not begun"] * 2]
    assert worker.num_lost == 1 and factory.reaped == [1_000_001]
    assert pauses[0] == 0.0 and 0.0 < pauses[1] < pauses[-1]
    factory.pipes[1].incoming.put("a message")
    wait(lambda: worker.got == ["a message"])
    worker.ask_to_stop()
    worker.join()
    assert not worker.alive and len(factory.pipes) == 2 and not killed


def test_it_is_tried_for_ever_and_told_of_after_some_time(monkeypatch, killed):
    monkeypatch.setattr(supervision, "_FIRST_PAUSE", 1e-5)
    monkeypatch.setattr(supervision, "_LONGEST_PAUSE", 0.002)
    factory = Factory([None, *[ChildProcessError("none")] * 400])
    worker = Worker(factory)
    worker.start()
    worker.wait_until_ready()
    assert not worker.has_failed
    factory.pipes[0].incoming.put(None)
    wait(lambda: worker.has_failed)
    wait(lambda: worker.alive)
    assert not worker.has_failed
    worker.ask_to_stop()
    worker.join()


def test_who_stops_does_not_wait_for_a_pause(monkeypatch, killed):
    monkeypatch.setattr(supervision, "_FIRST_PAUSE", 1000.0)
    monkeypatch.setattr(supervision, "_LONGEST_PAUSE", 1000.0)
    factory = Factory([None, *[ChildProcessError("none")] * 40])
    worker = Worker(factory)
    worker.start()
    worker.wait_until_ready()
    factory.pipes[0].incoming.put(None)
    wait(lambda: len(factory.faults) < 40)
    worker.ask_to_stop()
    worker._thread.join(20)
    assert not worker._thread.is_alive() and not worker.alive


def test_a_worker_that_answers_nothing_is_ended(killed):
    worker = Worker(Factory(), patience=6.0)
    worker.tick()  # not begun: nothing to be asked
    worker.start()
    worker.wait_until_ready()
    pipe = worker.factory.pipes[0]
    for _ in range(20):  # it answers
        worker.tick()
        pipe.incoming.put("pong")
        wait(lambda: worker._silent == 0.0)
    assert worker.is_responsive and not killed
    for _ in range(5):
        worker.tick()
    assert worker.alive and not worker.is_responsive and not killed
    for _ in range(2):
        worker.tick()
    assert killed == [(1_000_001, signal.SIGKILL)]
    wait(lambda: "ping" in pipe.sent)
    pipe.incoming.put(None)
    wait(lambda: len(worker.factory.pipes) == 2 and worker.is_responsive)
    worker.ask_to_stop()
    worker.join()


def test_real_processes_that_stop_die_and_cannot_be_begun(monkeypatch):
    """One after the other on one server of two: health tells, others go on, all come back, and when none can any more
    the command ends, so that its supervisor begins it again."""
    monkeypatch.setattr("sumix_stream.serve.workers.TICK_SECONDS", 0.1)
    monkeypatch.setattr(supervision, "_LATE_SECONDS", 3)
    monkeypatch.setattr(supervision, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(commands, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(commands.gc, "freeze", lambda: None)

    async def stopped(server: Server, port: int) -> None:
        first, second = server._engine.pids
        os.kill(first, signal.SIGSTOP)
        await until(lambda: server.health == "degraded")
        status, _, body = await http(port, "/health")
        content = json.loads(body)
        assert (status, content["status"], content["workers_ok"], content["workers"]) == (200, "degraded", 1, 2)
        assert "\nsumix_workers_responsive 1.0\n" in (await http(port, "/metrics"))[2]
        assert server._engine._workers[0].pid == first, "noticed before it is replaced"
        await until(lambda: server.health == "ok" and server._engine.pids[0] != first)
        assert server._engine.pids[1] == second and not os.path.exists(f"/proc/{first}")

    async def without_descriptors(server: Server) -> None:
        worker, limits = server._engine._workers[0], resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, limits[1]))
        spare = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    spare.append(os.dup(0))
            failures = worker._failures
            os.kill(worker.pid, signal.SIGKILL)
            await until(lambda: not worker.alive and worker._failures >= failures + 2)
        finally:
            for number in spare:
                os.close(number)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await until(lambda: server.health == "ok")

    async def without_hope(server: Server) -> None:
        def no_more():
            raise ChildProcessError("no worker process could be begun")

        monkeypatch.setattr(server._engine._factory, "spawn", no_more)
        for pid in server._engine.pids:
            os.kill(pid, signal.SIGKILL)

    async def test():
        server = Server(make_recognizer(), Limits(unresponsive_seconds=8.0), spawn=Spawn(make_recognizer, 2))
        task = asyncio.create_task(commands._serve(server, "127.0.0.1", 0, None))
        await until(lambda: server._server is not None, 60)
        port = server._server.sockets[0].getsockname()[1]
        await stopped(server, port)
        await without_descriptors(server)
        await healthy(port)
        await without_hope(server)
        return await task

    assert run(test) == 1


def test_the_process_ends_when_the_thread_that_recognises_has(monkeypatch):
    monkeypatch.setattr(commands, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(commands.gc, "freeze", lambda: None)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    async def test():
        server = Server(make_recognizer(), Limits(drain_seconds=1000.0))
        task = asyncio.create_task(commands._serve(server, "127.0.0.1", 0, None))
        await until(lambda: server._server is not None)
        assert server.health == "ok"
        monkeypatch.setattr(server._engine, "turn", lambda: 1 / 0)
        server._engine.open(16_000, lambda events: None).end()
        return await task, server._engine.num_responsive

    assert run(test) == (1, 0)
