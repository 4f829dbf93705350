"""A process that has the model ready, of which workers are copies: they share the pages of its weights.

On a CPU a chunk of a lone stream fetches every weight from memory. What several processes share is fetched once into
the cache that their cores share, and lies in memory once. A worker that died comes back in milliseconds.

Only what is made by one thread can be copied: a model on a GPU or in ONNX Runtime is made in each worker, and not here.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import reduction
from multiprocessing.connection import Connection

from sumix_stream.runtime.threads import set_num_threads
from sumix_stream.streaming.stream import StreamingRecognizer

START_SECONDS = 300.0  # where nothing is compiled yet, on a busy machine
_BLAS_THREADS = "OPENBLAS_NUM_THREADS"
_log = logging.getLogger(__name__)
_ANSWER_SECONDS = 20.0  # that a process takes at most to copy itself, or to notice that a copy has ended
_END_SECONDS = 5.0  # from a closed pipe to the process's end
RunWorker = Callable[[Connection, StreamingRecognizer], None]


class WorkerFactory:
    """Starts worker processes, one after the other, from any thread.

    Args:
        make: a recogniser; picklable.
        copied: make it once, here, as `can_be_copied` says of one like it.
        threads: of each worker's network.
        prepare: called first in the process, and so for each worker.
        run_worker: what a worker does from its start to its end, given its pipe and a recogniser that has warmed up.
            Like `prepare` a function of a module.
    """

    def __init__(
        self,
        make: Callable[[], StreamingRecognizer],
        copied: bool,
        threads: int,
        prepare: Callable[[], None],
        run_worker: RunWorker,
    ) -> None:
        self._arguments = make, copied, threads, prepare, run_worker
        self._lock = threading.Lock()
        self._process: multiprocessing.process.BaseProcess | None = None

    def spawn(self) -> tuple[Connection, int]:
        """A new worker's pipe and process number. Raises ChildProcessError where none can be had."""
        with self._lock:
            if self._process is None or not self._process.is_alive():
                self._begin()
            ours, theirs = multiprocessing.Pipe()
            try:
                self._control.send("spawn")
                reduction.send_handle(self._control, theirs.fileno(), self._process.pid)
                return ours, self._answer()
            except (EOFError, OSError) as fault:
                ours.close()
                raise ChildProcessError(f"no worker process could be begun ({fault!r}); see the log") from None
            finally:
                theirs.close()

    def reap(self, pid: int) -> int | None:
        """The exit code of a worker that has ended or will at once; None if nobody knows."""
        with self._lock, contextlib.suppress(EOFError, OSError):
            self._control.send(pid)
            return self._answer()
        return None

    def _answer(self) -> int | None:
        """Of the process, which is ended if it gives none. Raises EOFError or OSError then."""
        if not self._control.poll(_ANSWER_SECONDS):
            self._process.kill()
            self._process.join()
        return self._control.recv()

    def stop(self) -> None:
        """End this process. Workers go on until their pipes are closed."""
        with self._lock:
            if self._process is not None:
                self._control.close()
                self._process.join()

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._control, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, *self._arguments), name="sumix-factory", daemon=True)
        with _one_blas_thread():
            self._process.start()
        theirs.close()
        try:
            ready = self._control.poll(START_SECONDS) and self._control.recv() == "ready"
        except (EOFError, OSError):
            ready = False
            self._process.join(_END_SECONDS)
        if not ready:
            self._process.kill()
            self._process.join()
            code = self._process.exitcode
            raise ChildProcessError(f"a worker process did not start (exit code {code}); see the log")


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Processes begun inside import a NumPy whose BLAS starts no threads: they would be missing in copies.

    No runtime's network multiplies by that BLAS.
    """
    before = os.environ.get(_BLAS_THREADS)
    os.environ[_BLAS_THREADS] = "1"
    try:
        yield
    finally:
        del os.environ[_BLAS_THREADS]
        if before is not None:
            os.environ[_BLAS_THREADS] = before


def _run(
    control: Connection,
    make: Callable[[], StreamingRecognizer],
    copied: bool,
    threads: int,
    prepare: Callable[[], None],
    run_worker: RunWorker,
) -> None:
    """What the factory's process does; it ends when the server does, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the server
    prepare()
    set_num_threads(1)  # others would be missing in copies
    recognizer = _made(make) if copied else None
    if recognizer is not None and (num_threads := len(os.listdir("/proc/self/task"))) > 1:
        _log.warning("workers do not share the model's memory: its process has %d threads, not one", num_threads)
        recognizer = None
    control.send("ready")
    with contextlib.suppress(EOFError, OSError):
        while True:
            asked = control.recv()
            if asked != "spawn":
                control.send(_exit_code(asked))
                continue
            handle = reduction.recv_handle(control)
            pid = os.fork()
            if not pid:
                control.close()
                _start_worker(Connection(handle), recognizer, make, threads, run_worker)
            os.close(handle)
            control.send(pid)


def can_be_copied(recognizer: StreamingRecognizer) -> bool:
    """Whether copies of a process that has such a recogniser can use it; threads that it has begun forbid it too."""
    return recognizer.runtime.can_fork and sys.platform == "linux"


def _made(make: Callable[[], StreamingRecognizer]) -> StreamingRecognizer:
    recognizer = make()
    recognizer.warm_up()
    gc.collect()
    gc.freeze()  # a collection would hold up every stream, and write to what is shared
    return recognizer


def _start_worker(
    pipe: Connection,
    recognizer: StreamingRecognizer | None,
    make: Callable[[], StreamingRecognizer],
    threads: int,
    run_worker: RunWorker,
) -> None:
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # meant for the server, which lets streams finish
        set_num_threads(threads)
        run_worker(pipe, _made(make) if recognizer is None else recognizer)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def _exit_code(pid: int) -> int | None:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return None
