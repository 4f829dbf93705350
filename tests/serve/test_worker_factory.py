"""Copies of a process that has the model ready."""

import os
import signal
import sys
from pathlib import Path

import pytest
from serving import make_recognizer

from sumix_stream.runtime.threads import get_num_threads
from sumix_stream.serve.worker_factory import WorkerFactory

MAKER = 0  # the process that made the recogniser
linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")


def prepare() -> None:
    os.environ["PREPARED"] = "yes"


def live(pipe, recognizer) -> None:
    """Answer questions until there are no more."""
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        if asked == "die":
            raise RuntimeError("told to")
        stream = recognizer.create_stream()
        about = {
            "maker": MAKER,
            "parent": os.getppid(),
            "pid": os.getpid(),
            "threads": get_num_threads(),
            "prepared": os.environ.get("PREPARED"),
        }
        pipe.send(about | {"fresh": not stream.is_ready})


def make_one():
    """And note in which process."""
    global MAKER
    MAKER = os.getpid()
    return make_recognizer()


def make_with_a_thread():
    """As a library would whose threads a copy lacks."""
    import threading

    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return make_one()


def ask(pipe, question="who"):
    pipe.send(question)
    assert pipe.poll(60)
    return pipe.recv()


@linux
@pytest.mark.parametrize(("make", "copied"), [(make_one, True), (make_with_a_thread, True), (make_one, False)])
def test_workers_answer_whether_or_not_the_model_is_copied(make, copied, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")  # as many as the machine has where nothing is set
    factory = WorkerFactory(make, copied, 2, prepare, live)
    pipes, pids = zip(*(factory.spawn() for _ in range(2)), strict=True)
    try:
        assert len({os.getpid(), *pids}) == 3
        for pipe in pipes:
            assert pipe.recv() == "ready"
            about = ask(pipe)
            assert about["parent"] == factory._process.pid and about["threads"] == 2
            assert about["fresh"] and about["prepared"] == "yes"
            made_there = copied and make is make_one
            assert about["maker"] == (factory._process.pid if made_there else about["pid"])
        pipes[0].send(None)
        assert factory.reap(pids[0]) == 0 and factory.reap(pids[0]) is None
        pipes[1].send("die")
        assert factory.reap(pids[1]) == 1
    finally:
        factory.stop()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@linux
def test_it_is_begun_again_when_it_has_died_and_its_workers_live_on():
    factory = WorkerFactory(make_one, True, 1, prepare, live)
    (first, _), begun = factory.spawn(), factory._process.pid
    os.kill(begun, signal.SIGKILL)
    factory._process.join()
    assert factory.reap(begun) is None
    try:
        second, _ = factory.spawn()
        assert factory._process.pid != begun
        for pipe in (first, second):
            assert pipe.recv() == "ready" and ask(pipe)["fresh"]
        assert ask(second)["parent"] == factory._process.pid
        for pipe in (first, second):
            pipe.send(None)
    finally:
        factory.stop()


def test_what_cannot_be_made_is_said():
    factory = WorkerFactory(_failing, True, 1, prepare, live)
    with pytest.raises(ChildProcessError, match="did not start .exit code 1.; see the log"):
        factory.spawn()
    factory.stop()


def _failing():
    raise ValueError("no model here")
