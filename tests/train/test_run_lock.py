"""One run a folder: the living are respected, on this machine and elsewhere; the dead are in nobody's way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from train.fakes import FakeLoader, FakeModel, FakeTokenizer, fake_recipe

from sumix_stream.train import run_lock
from sumix_stream.train.loop import Trainer
from sumix_stream.train.run_lock import NAME, FolderInUse, RunLock

OTHER = """
import sys, time
from pathlib import Path
from sumix_stream.train.run_lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder's lock."""
    process = subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def quick(exp_dir):
    return RunLock(exp_dir, heartbeat=0.02, stale=0.5)


def holder_elsewhere(exp_dir, **changes):
    """A lock file as a process of another machine leaves it."""
    mine = run_lock._describe_self()
    content = mine | {"machine": "another", "host": "node7", "token": "t", "pid": 77} | changes
    (exp_dir / NAME).write_text(json.dumps(content))


def test_a_second_run_is_refused_until_the_first_gives_the_folder_back(tmp_path):
    first, second = quick(tmp_path), quick(tmp_path)
    first.acquire()
    with pytest.raises(FolderInUse, match=rf"process {os.getpid()} on .* trains in this folder already: stop it"):
        second.acquire()
    first.require()
    first.release()
    assert not list(tmp_path.iterdir())
    second.acquire()
    second.release()


def test_another_process_is_respected_and_its_killing_noticed_at_once(tmp_path, other):
    with pytest.raises(FolderInUse, match=f"process {other.pid} on"):
        RunLock(tmp_path).acquire()
    other.send_signal(signal.SIGKILL)  # not waited for: a zombie is dead too
    deadline = time.monotonic() + 30
    while run_lock._process_start(other.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    began = time.monotonic()
    lock = RunLock(tmp_path)
    lock.acquire()
    assert time.monotonic() - began < run_lock.STALE / 2  # nobody waited for a heartbeat
    lock.release()


def test_a_process_of_the_same_id_is_another(tmp_path):
    lock = quick(tmp_path)
    (tmp_path / NAME).write_text(json.dumps(run_lock._describe_self() | {"start": "earlier"}))
    lock.acquire()
    lock.release()


def test_a_run_elsewhere_is_alive_while_it_touches_the_file(tmp_path):
    holder_elsewhere(tmp_path)
    stop = threading.Event()

    def touch():
        while not stop.wait(0.02):
            os.utime(tmp_path / NAME)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(FolderInUse, match="process 77 on node7"):
            quick(tmp_path).acquire()
    finally:
        stop.set()
        thread.join()
    lock = quick(tmp_path)  # now it is silent
    lock.acquire()
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    lock.release()


def test_the_owner_touches_the_file(tmp_path):
    lock = quick(tmp_path)
    lock.acquire()
    os.utime(tmp_path / NAME, (0, 0))
    deadline = time.monotonic() + 30
    while (tmp_path / NAME).stat().st_mtime == 0:
        assert time.monotonic() < deadline, "no heartbeat"
        time.sleep(0.01)
    lock.release()


@pytest.mark.parametrize(("run", "restart", "taken"), [("job", 1, True), ("job", 0, False), ("none", 1, False)])
def test_torchruns_restart_takes_over_from_the_processes_it_ended(tmp_path, monkeypatch, run, restart, taken):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", run)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    holder_elsewhere(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))
    waited = []
    lock = RunLock(tmp_path, stale=5.0)
    monkeypatch.setattr(run_lock.time, "sleep", waited.append)
    monkeypatch.setattr(run_lock.time, "monotonic", lambda: 100.0 * len(waited))
    lock.acquire()
    assert (run_lock._POLL not in waited) == taken
    lock.release()


def test_who_was_taken_for_dead_stops_writing(tmp_path):
    lock = quick(tmp_path)
    lock.acquire()
    holder_elsewhere(tmp_path)
    with pytest.raises(FolderInUse, match="process 77 on node7 took this folder over"):
        lock.require()
    lock.release()
    assert (tmp_path / NAME).exists()  # the other's


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}"])
def test_a_damaged_lock_is_taken_over_when_nobody_touches_it(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    lock = quick(tmp_path)
    lock.acquire()
    lock.require()
    lock.release()


def test_file_systems_without_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError("no hard links")

    monkeypatch.setattr(run_lock.os, "link", no_links)
    first = quick(tmp_path)
    first.acquire()
    with pytest.raises(FolderInUse):
        quick(tmp_path).acquire()
    first.release()


def test_one_of_many_gets_a_dead_runs_lock(tmp_path):
    holder_elsewhere(tmp_path, machine=run_lock._machine(), pid=2**22 + 1)  # beyond Linux's largest id
    locks, refused = [quick(tmp_path) for _ in range(6)], []

    def acquire(lock):
        try:
            lock.acquire()
        except FolderInUse:
            refused.append(lock)

    threads = [threading.Thread(target=acquire, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == len(locks) - 1
    for lock in locks:
        lock.release()
    assert not list(tmp_path.iterdir())


def trainer(exp_dir, **settings):
    return Trainer(fake_recipe(exp_dir, **settings), FakeModel(), FakeTokenizer(), FakeLoader())


def test_training_holds_its_folder_and_gives_it_back(tmp_path, other):
    with pytest.raises(FolderInUse, match=f"process {other.pid}"):
        trainer(tmp_path, max_steps=2).fit()
    assert [path.name for path in tmp_path.iterdir()] == [NAME]  # nothing else was written or moved
    with pytest.raises(FolderInUse, match=f"process {other.pid}"):
        trainer(tmp_path, max_steps=2).fit(resume=False)
    other.kill()
    other.wait()
    assert trainer(tmp_path, max_steps=2).fit().step == 2
    assert not (tmp_path / NAME).exists()


def test_training_stops_before_it_overwrites_another_run(tmp_path):
    def hook(epoch, index):
        if (epoch, index) == (0, 1):
            holder_elsewhere(tmp_path)

    run = Trainer(fake_recipe(tmp_path, save_interval=3), FakeModel(), FakeTokenizer(), FakeLoader(hook=hook))
    with pytest.raises(FolderInUse, match="took this folder over"):
        run.fit()
    assert not (tmp_path / "checkpoints").exists()
