"""Copies of a process that has the model ready."""

import os
import signal
import sys
from pathlib import Path

import pytest
from serving import make_recognizer

from sumix_stream.runtime.threads import get_num_threads
from sumix_stream.serve.nursery import Nursery

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
def test_workers_answer_whether_or_not_the_model_is_copied(make, copied):
    nursery = Nursery(make, copied, 2, prepare, live)
    pipes, pids = zip(*(nursery.bear() for _ in range(2)), strict=True)
    try:
        assert len({os.getpid(), *pids}) == 3
        for pipe in pipes:
            assert pipe.recv() == "ready"
            about = ask(pipe)
            assert about["parent"] == nursery._process.pid and about["threads"] == 2
            assert about["fresh"] and about["prepared"] == "yes"
            made_there = copied and make is make_one
            assert about["maker"] == (nursery._process.pid if made_there else about["pid"])
        pipes[0].send(None)
        assert nursery.bury(pids[0]) == 0 and nursery.bury(pids[0]) is None
        pipes[1].send("die")
        assert nursery.bury(pids[1]) == 1
    finally:
        nursery.stop()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@linux
def test_it_is_begun_again_when_it_has_died_and_its_workers_live_on():
    nursery = Nursery(make_one, True, 1, prepare, live)
    (first, _), begun = nursery.bear(), nursery._process.pid
    os.kill(begun, signal.SIGKILL)
    nursery._process.join()
    assert nursery.bury(begun) is None
    try:
        second, _ = nursery.bear()
        assert nursery._process.pid != begun
        for pipe in (first, second):
            assert pipe.recv() == "ready" and ask(pipe)["fresh"]
        assert ask(second)["parent"] == nursery._process.pid
        for pipe in (first, second):
            pipe.send(None)
    finally:
        nursery.stop()


def test_what_cannot_be_made_is_said():
    nursery = Nursery(_failing, True, 1, prepare, live)
    with pytest.raises(ChildProcessError, match="did not start .exit code 1.; see the log"):
        nursery.bear()
    nursery.stop()


def _failing():
    raise ValueError("no model here")
