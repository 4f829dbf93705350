"""A worker process as a thing that can fail: begun, watched, ended when it answers nothing, and begun again."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from sumix_stream.serve.logs import log_event
from sumix_stream.serve.worker_factory import START_SECONDS, WorkerFactory

TICK_SECONDS = 1.0  # between two questions whether a worker still answers
RESTARTS = 3  # in a row, of a worker that dies before it has worked for _SOUND_SECONDS; then it counts as failed
_STOP_SECONDS = 5.0
_SEND_SECONDS = 1.0  # that a thread which sends takes at most to notice that nobody reads any more
_SOUND_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0  # seconds before a start that follows a failed one; doubled each time
_LATE_SECONDS = 5  # without an answer: such a worker gets no new streams, and /health says so
_GATHER_SECONDS = 0.0003  # that messages wait for others, to go to a worker together

_log = logging.getLogger(__name__)


class WorkerProcess:
    """One process, with a thread that reads from it and begins it again, and one that sends, so that nobody waits for
    a full pipe.

    Whoever uses it says what a message means (`handle`), asks for an answer (`ask`) and hears of its end (`lost`).

    Args:
        unresponsive_seconds: after which a process that sends nothing is ended.
    """

    def __init__(self, factory: WorkerFactory, unresponsive_seconds: float) -> None:
        self.factory = factory
        self.lock = threading.RLock()
        self.alive = False
        self.pid: int | None = None
        self._patience = unresponsive_seconds
        self._silent = 0.0  # seconds of ticks since its last message
        self._failures = 0  # starts in a row that did not last
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def handle(self, message: Any) -> None:
        """A message of the process."""
        raise NotImplementedError

    def ask(self) -> None:
        """Ask the process for any message."""
        raise NotImplementedError

    def ask_to_end(self) -> None:
        """Ask the process to end."""
        raise NotImplementedError

    def lost(self) -> int:
        """The process has ended; how many streams it had."""
        raise NotImplementedError

    @property
    def is_responsive(self) -> bool:
        return self.alive and self._silent < _LATE_SECONDS

    @property
    def has_failed(self) -> bool:
        """Whether it has been begun in vain so often that there is little hope."""
        return not self.alive and self._failures > RESTARTS

    def start(self) -> None:
        self._pipe, self.pid = self.factory.spawn()
        self._outgoing: queue.SimpleQueue = queue.SimpleQueue()
        self._began = time.monotonic()

    def wait_until_ready(self) -> None:
        """Raises ChildProcessError where it does not come up."""
        self._wait_until_ready()
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    def put(self, message: Any) -> None:
        """Send a message to the process; never waits."""
        self._outgoing.put(message)

    def tick(self) -> None:
        """`TICK_SECONDS` have passed. Ticks are counted, not time: a server that was stopped itself blames nobody."""
        with self.lock:
            if not self.alive:
                return
            self._silent += TICK_SECONDS
            if self._silent > self._patience:
                log_event(_log, "worker answers nothing", logging.ERROR, pid=self.pid, seconds=self._silent)
                self._kill()  # within the lock: until it is known to have ended, the number is its own
            else:
                self.ask()

    def ask_to_stop(self) -> None:
        with self.lock:
            self._stopping.set()
            if self.alive:
                self.ask_to_end()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
            if self._thread.is_alive():
                self._kill()
                self._thread.join()
        elif self.pid is not None:  # it has not come up
            self._kill()
            self.factory.reap(self.pid)

    def _wait_until_ready(self) -> None:
        ready = False
        try:
            ready = self._pipe.poll(START_SECONDS) and self._pipe.recv() == "ready"
        except (EOFError, OSError):
            pass  # it has ended
        else:
            if not ready:
                self._kill()
        if not ready:
            code = self.factory.reap(self.pid)
            raise ChildProcessError(f"a worker process did not start (exit code {code}); see the log")
        with self.lock:
            self._silent, self.alive = 0.0, True
        self._sender = threading.Thread(target=_send_all, args=(self._outgoing, self._pipe), daemon=True)
        self._sender.start()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def _run(self) -> None:
        going_on = True
        while going_on:
            self._read()
            self._ended()
            going_on = self._begin_again()

    def _read(self) -> None:
        while True:
            try:
                message = self._pipe.recv()
            except (EOFError, OSError):
                return
            self._silent = 0.0
            self.handle(message)

    def _ended(self) -> None:
        with self.lock:
            self.alive = False
            self._outgoing.put(None)
        streams = self.lost()
        self._sender.join(_SEND_SECONDS)
        if not self._sender.is_alive():
            self._pipe.close()
        exit_code = self.factory.reap(self.pid)
        self._failures = 0 if time.monotonic() - self._began > _SOUND_SECONDS else self._failures + 1
        if not self._stopping.is_set():
            log_event(_log, "worker died", logging.ERROR, exit_code=exit_code, streams=streams)

    def _begin_again(self) -> bool:
        """At once after a sound life, else after a pause that grows; whether it works again."""
        while not self._stopping.wait(self._pause()):
            try:
                self.start()
                self._wait_until_ready()
                return not self._stopping.is_set() or self._end_at_once()
            except OSError as fault:  # ChildProcessError, and too many open files
                self._failures += 1
                log_event(_log, "worker not begun", logging.ERROR, why=str(fault), again_in=self._pause())
        return False

    def _pause(self) -> float:
        return 0.0 if self._failures < 2 else min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(self._failures, 16))

    def _end_at_once(self) -> bool:
        """It came up while everything is being stopped: read to its end."""
        self.ask_to_end()
        return True


def _send_all(outgoing: queue.SimpleQueue, pipe: Connection) -> None:
    """Send what is put into the queue, until None: all that a moment brings as one list."""
    going_on = True
    while going_on:
        messages = [outgoing.get()]
        time.sleep(_GATHER_SECONDS)
        with contextlib.suppress(queue.Empty):
            while True:
                messages.append(outgoing.get_nowait())
        if going_on := None not in messages:
            try:
                pipe.send(messages)
            except OSError:
                return  # the reader sees it too
