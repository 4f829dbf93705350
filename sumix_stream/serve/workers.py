"""Engines in processes of their own, each with a core's worth of threads.

Threads of one process wait for each other wherever they run Python, and a network's many small steps are Python between
short products: two such threads leave a third of two cores idle. Processes share a pipe, over which goes a message a
chunk each way. One that dies ends its own streams only, and is started again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from enum import Enum
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from sumix_stream.runtime.cpus import available_cpus
from sumix_stream.runtime.threads import get_num_threads
from sumix_stream.serve import protocol
from sumix_stream.serve.chunk_buffer import ChunkBuffer
from sumix_stream.serve.engine import Engine
from sumix_stream.serve.events import Event, Failed
from sumix_stream.serve.logs import set_up
from sumix_stream.serve.metrics import Metrics
from sumix_stream.serve.options import DEFAULTS, StreamOptions
from sumix_stream.serve.protocol import INTERNAL, ProtocolError
from sumix_stream.serve.session import MOST_COMMITS, Report, Session, Write, missing_samples
from sumix_stream.serve.supervision import TICK_SECONDS, WorkerProcess
from sumix_stream.serve.waiting import Waiting
from sumix_stream.serve.worker_factory import WorkerFactory, can_be_copied
from sumix_stream.serve.worker_metrics import WorkerMetrics
from sumix_stream.streaming.stream import StreamingRecognizer

_MOST_WORKERS = 8  # by default: each takes most of a gigabyte, and larger batches cost less a stream
_NOBODY = 0  # number of no session
_NICENESS = 3  # where cores are few the network goes first: packets that lie unread delay every stream
_MALLOPT = {-8: 1, -1: 1 << 30, -2: 1 << 26, -3: 1 << 25}  # one arena; bytes of trim threshold, top pad, mmap threshold


class Message(Enum):
    """What the network's process tells a worker: (message, number of the session, value)."""

    OPEN = "open"  # value: the sample rate in Hz, options, and what writes messages (a function of a module)
    AUDIO = "audio"  # value: samples (S,)
    COMMIT = "commit"
    END = "end"  # value: what then ends the stream, None = that all is said
    CLOSE = "close"
    STOP = "stop"
    PING = "ping"  # to be answered with anything


class Spawn(NamedTuple):
    """What worker processes are made of."""

    make: Callable[[], StreamingRecognizer]  # picklable; called in each process
    count: int


def default_workers(recognizer: StreamingRecognizer) -> int:
    """One for each core of the machine or of the container's quota, up to 8, on a CPU; one on a GPU, where one batch of
    all streams is best."""
    if recognizer.runtime.device != "cpu":
        return 1
    return min(_MOST_WORKERS, available_cpus())


class RemoteSession:
    """One client's stream in a worker process: for the network what `engine.Session` is.

    Audio waits here until it completes a chunk, so that few messages are sent.
    """

    def __init__(
        self,
        worker: _Worker,
        number: int,
        sample_rate: int,
        wanted: int,
        report: Report,
        write: Write = protocol.write,
    ) -> None:
        self.worker, self.number, self.sample_rate, self.report = worker, number, sample_rate, report
        self.write = write
        self.wanted = self._chunk = wanted  # samples that complete the next chunk, as far as is known; of a first one
        self.closed = False
        self._buffer = ChunkBuffer()
        self._num_sent = self._num_taken = 0
        self._num_committed = 0  # commits that have no result yet

    @property
    def num_pending(self) -> int:
        """Samples that wait, here or there."""
        return self._buffer.num_samples + self._num_sent - self._num_taken

    @property
    def pending_seconds(self) -> float:
        return self.num_pending / self.sample_rate

    def push(self, samples: np.ndarray) -> None:
        """Hand over samples (S,); never waits."""
        with self.worker.lock:
            self._buffer.add(samples)
            self._send_a_chunk()

    def commit(self) -> bool:
        """Make what was said so far final, and go on; whether there was room for one more commit."""
        with self.worker.lock:
            if self._num_committed >= MOST_COMMITS:
                return False
            self._num_committed += 1
            self._send_held()
            self.worker.send(Message.COMMIT, self.number)
        return True

    def end(self, fault: Failed | None = None) -> None:
        """No more audio: the last results will be reported, and then `done`, or a fault that ends the stream."""
        with self.worker.lock:
            self._send_held()
            self.worker.send(Message.END, self.number, fault)

    def close(self) -> None:
        """Forget this session; nothing more is reported."""
        with self.worker.lock:
            if not self.closed:
                self.closed = True
                self.worker.sessions.pop(self.number, None)
                self.worker.send(Message.CLOSE, self.number)

    def heard(self, num_taken: int, wanted: int, events: list[Event], num_commits: int = 0) -> None:
        """From the worker, which has seen to so many commits meanwhile."""
        with self.worker.lock:
            if self.closed:
                return
            self._num_taken, self.wanted = num_taken, wanted
            self._num_committed -= num_commits
            self._send_a_chunk()
            if any(event.close_code is not None for event in events):
                self.close()
        self.report(events)

    def _send_a_chunk(self) -> None:
        """What completes the chunk that the worker waits for; beyond that whole chunks only: it may be far behind."""
        lacks = self.wanted - (self._num_sent - self._num_taken)
        if self._buffer.num_samples >= (lacks if lacks > 0 else self._chunk):
            self._send_held()

    def _send_held(self) -> None:
        if self._buffer.num_samples:
            samples, _ = self._buffer.take()
            self.worker.send(Message.AUDIO, self.number, samples)
            self._num_sent += len(samples)


class Workers:
    """Worker processes; a new session goes to the one that has the fewest.

    Args:
        recognizer: like the workers' own; it says what a chunk is.
        spawn: how many, and what makes their recognisers.
        metrics: are kept up to date.
        unresponsive_seconds: after which one that answers nothing is ended and begun again.
    """

    def __init__(
        self, recognizer: StreamingRecognizer, spawn: Spawn, metrics: Metrics, unresponsive_seconds: float = 20.0
    ) -> None:
        if spawn.count < 1:
            raise ValueError(f"workers must be at least 1, got {spawn.count}")
        self._recognizer = recognizer
        threads = max(1, get_num_threads() // spawn.count)
        self._factory = WorkerFactory(spawn.make, can_be_copied(recognizer), threads, _prepare, _run_worker)
        self._workers = [_Worker(self._factory, metrics, unresponsive_seconds) for _ in range(spawn.count)]
        self._stopped = threading.Event()

    def start(self) -> None:
        """Raises ChildProcessError for a worker that does not come up."""
        try:
            for worker in self._workers:
                worker.start()
            for worker in self._workers:
                worker.wait_until_ready()
        except OSError:
            self.stop()
            raise
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        while not self._stopped.wait(TICK_SECONDS):
            for worker in self._workers:
                worker.tick()

    def stop(self) -> None:
        self._stopped.set()
        for worker in self._workers:
            worker.ask_to_stop()
        for worker in self._workers:
            worker.join()
        self._factory.stop()

    def open(
        self, sample_rate: int, report: Report, options: StreamOptions = DEFAULTS, *, write: Write = protocol.write
    ) -> RemoteSession:
        """A new session for audio of `sample_rate` Hz; `write` is picklable."""
        context = options.context or self._recognizer.context
        wanted = missing_samples(self._recognizer.timebase, context.chunk_size, sample_rate)
        worker = min(
            self._workers, key=lambda worker: (not worker.alive, not worker.is_responsive, len(worker.sessions))
        )
        return worker.open(sample_rate, wanted, report, options, write)

    @property
    def num_sessions(self) -> int:
        return sum(len(worker.sessions) for worker in self._workers)

    @property
    def num_workers(self) -> int:
        return len(self._workers)

    @property
    def num_responsive(self) -> int:
        """Of them that recognise and answer."""
        return sum(worker.is_responsive for worker in self._workers)

    @property
    def has_failed(self) -> bool:
        """Whether none works and all have been begun again in vain."""
        return all(worker.has_failed for worker in self._workers)

    @property
    def pids(self) -> list[int]:
        """Of the processes, in order."""
        return [worker.pid for worker in self._workers]


class _Worker(WorkerProcess):
    """One process as the network's process sees it."""

    def __init__(self, factory: WorkerFactory, metrics: Metrics, unresponsive_seconds: float) -> None:
        super().__init__(factory, unresponsive_seconds)
        self.metrics = metrics
        self.sessions: dict[int, RemoteSession] = {}
        self._number = 0

    def open(
        self, sample_rate: int, wanted: int, report: Report, options: StreamOptions, write: Write
    ) -> RemoteSession:
        with self.lock:
            self._number += 1
            session = RemoteSession(self, self._number, sample_rate, wanted, report, write)
            if not self.alive:
                self._fail(session)
                return session
            self.sessions[session.number] = session
            self.send(Message.OPEN, session.number, (sample_rate, options, write))
        return session

    def send(self, kind: Message, number: int = 0, value: Any = None) -> None:
        self.put((kind, number, value))

    def ask(self) -> None:
        self.send(Message.PING)

    def ask_to_end(self) -> None:
        self.send(Message.STOP)

    def handle(self, message: Any) -> None:
        reports, counts = message
        for name, labels, method, value in counts:
            metric = getattr(self.metrics, name)
            getattr(metric.labels(**labels) if labels else metric, method)(value)
        for number, *what in reports:
            session = self.sessions.get(number)
            if session is not None:
                session.heard(*what)

    def lost(self) -> int:
        """Streams that it had end with an error."""
        with self.lock:
            sessions, self.sessions = list(self.sessions.values()), {}
        for session in sessions:
            self._fail(session)
        return len(sessions)

    def _fail(self, session: RemoteSession) -> None:
        session.closed = True
        error = ProtocolError("internal", "recognition failed; open a new stream", INTERNAL)
        self.metrics.errors.labels(code=error.code).inc()
        if (event := session.write(error.failed)) is not None:
            session.report([event])


def _keep_memory() -> None:
    """Ask glibc's allocator to keep what a batch gives back for the next one: else each asks the system for its pages
    anew."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOPT.items():
            mallopt(parameter, value)


def _prepare() -> None:
    set_up()
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    _keep_memory()


def _run_worker(pipe: Connection, recognizer: StreamingRecognizer) -> None:
    """What a worker process does. It ends when the other side of the pipe does, however that ended."""
    reports: list[tuple] = []
    counts: list[tuple] = []
    engine = Engine(recognizer, WorkerMetrics(counts))
    waiting = Waiting(pipe)
    engine.on_heard_again = waiting.wake
    pipe.send("ready")
    sessions: dict[int, Session] = {}
    more = False
    with contextlib.suppress(EOFError, OSError):  # the server is gone
        while True:
            while waiting.has_message(wait=not more):
                if not _handle(pipe.recv(), engine, sessions, reports):
                    return
                more = True
            more = engine.turn()
            if reports or counts:
                pipe.send((reports, counts))
                reports.clear()
                counts.clear()


def _handle(messages: list[tuple], engine: Engine, sessions: dict[int, Session], reports: list[tuple]) -> bool:
    """Handle messages of the network's process; whether to go on."""
    for kind, number, value in messages:
        if kind is Message.STOP:
            return False
        if kind is Message.PING:
            reports.append((_NOBODY,))
        if kind is Message.OPEN:
            sessions[number] = _open(engine, number, value, reports)
        elif number in sessions and kind is Message.AUDIO:
            sessions[number].push(value)
        elif number in sessions and kind is Message.COMMIT:
            sessions[number].commit()
        elif number in sessions and kind is Message.END:
            sessions[number].end(value)
        elif number in sessions and kind is Message.CLOSE:
            sessions.pop(number).close()
    return True


def _open(engine: Engine, number: int, asked: tuple[int, StreamOptions, Write], reports: list[tuple]) -> Session:
    seen = 0

    def report(events: list[Event]) -> None:
        nonlocal seen
        new, seen = session.num_commits - seen, session.num_commits
        reports.append((number, session.num_taken, session.wanted, events, new))

    sample_rate, options, write = asked
    session = engine.open(sample_rate, report, options, write=write)
    return session
