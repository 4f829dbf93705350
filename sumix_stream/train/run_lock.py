"""One run at a time in an experiment folder: two would overwrite each other's checkpoints without a word.

A file says who trains here, and its owner touches it every few seconds. A process of this machine is asked for by its
id and start, one elsewhere (another node, another container) is given `STALE` seconds to touch the file: so a run that
was killed, or whose machine is gone, is in nobody's way. Locks of the operating system (fcntl) would do on a local
disk; over NFS they are often missing, or kept by the server when their owner has gone.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

NAME = "run.lock"
HEARTBEAT = 10.0  # seconds between touches
STALE = 60.0  # seconds without a touch after which a run elsewhere counts as dead; NFS may show a touch late
_POLL = 0.5  # seconds
_SETTLE = 0.2  # seconds after which the last of two who took a lock over is known
log = logging.getLogger("sumix_stream")


class FolderInUse(ValueError):
    """Another run trains in the experiment folder; the message names it and the remedy."""


@contextmanager
def one_run(fabric: Fabric, exp_dir: Path) -> Iterator["RunLock"]:
    """Hold the folder for all processes of a run, by the first of them. Raises FolderInUse, in each."""
    lock, fault = RunLock(exp_dir), None
    if fabric.is_global_zero:
        try:
            lock.acquire()
        except FolderInUse as error:
            fault = str(error)
    fault = fabric.broadcast(fault)
    if fault is not None:
        raise FolderInUse(fault)
    try:
        yield lock
    finally:
        lock.release()


class RunLock:
    """The lock of one folder, `exp_dir/run.lock`.

    Args:
        heartbeat, stale: seconds; see HEARTBEAT and STALE.
    """

    def __init__(self, exp_dir: Path, heartbeat: float = HEARTBEAT, stale: float = STALE) -> None:
        self.path = Path(exp_dir) / NAME
        self._heartbeat, self._stale = heartbeat, stale
        self._mine: dict[str, Any] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock, from a dead run too. Raises FolderInUse while another one is alive."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mine = _describe_self()
        while not self._create(mine):
            holder, touched = self._read()
            if holder is None and touched is None:
                continue  # it has just gone
            if self._is_alive(holder, touched, mine):
                who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}" if holder else "a run"
                raise FolderInUse(
                    f"{self.path.parent}: {who} trains in this folder already: stop it, or give this run another "
                    f"--exp-dir (if nothing runs there, remove {self.path})"
                )
            if self._take_over(holder, mine):
                log.info("%s: left by a run that has ended (%s); taken over", self.path, _name(holder))
                break
        self._mine = mine
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Raises FolderInUse where another run has taken the lock over: this process was taken for dead."""
        if self._mine is None:
            return
        holder, _ = self._read()
        if holder is not None and holder != self._mine:
            raise FolderInUse(
                f"{self.path.parent}: {_name(holder)} took this folder over, as this run seemed dead for "
                f"{self._stale:g} s; this run stops and writes no more"
            )

    def release(self) -> None:
        """Give the lock back if it is held."""
        if self._mine is None:
            return
        self._stop.set()
        self._thread.join()
        if self._read()[0] == self._mine:
            with suppress(OSError):
                self.path.unlink()
        self._mine = None

    def _create(self, mine: dict[str, Any]) -> bool:
        """Whether the file could be made, which one of many can: a link is that on every file system that has it."""
        aside = self._written(mine)
        try:
            os.link(aside, self.path)
        except FileExistsError:
            return False
        except OSError:  # no hard links here
            try:
                with open(self.path, "x", encoding="utf-8") as file:
                    json.dump(mine, file)
            except FileExistsError:
                return False
        finally:
            aside.unlink()
        return True

    def _written(self, mine: dict[str, Any]) -> Path:
        aside = self.path.with_name(f".{NAME}.{mine['token']}")
        aside.write_text(json.dumps(mine), encoding="utf-8")
        return aside

    def _read(self) -> tuple[dict[str, Any] | None, float | None]:
        """Who holds the lock and when it was touched (s); (None, None) without a file. Opened, so that NFS looks."""
        try:
            with open(self.path, encoding="utf-8") as file:
                touched, content = os.fstat(file.fileno()).st_mtime, file.read()
        except FileNotFoundError:
            return None, None
        try:
            holder = json.loads(content)
            return (holder if {"token", "pid", "host", "since"} <= holder.keys() else None), touched
        except (ValueError, AttributeError):
            return None, touched

    def _is_alive(self, holder: dict[str, Any] | None, touched: float | None, mine: dict[str, Any]) -> bool:
        if holder is not None:
            if holder["run"] is not None and holder["run"] == mine["run"] and holder["restart"] < mine["restart"]:
                return False  # torchrun has ended it and started this one in its place
            if holder["machine"] == mine["machine"]:
                return _process_start(holder["pid"]) == holder["start"]
        log.info("%s: waiting up to %g s to see whether %s is alive", self.path, self._stale, _name(holder))
        deadline = time.monotonic() + self._stale
        while time.monotonic() < deadline:
            time.sleep(min(_POLL, self._heartbeat))
            found = self._read()
            if found == (None, None):
                return False
            if found != (holder, touched):
                return True
        return False

    def _take_over(self, holder: dict[str, Any] | None, mine: dict[str, Any]) -> bool:
        if self._read()[0] != holder:
            return False  # somebody was quicker
        os.replace(self._written(mine), self.path)
        time.sleep(_SETTLE)
        return self._read()[0] == mine

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat):
            with suppress(OSError):
                if self._read()[0] == self._mine:
                    os.utime(self.path)


def _describe_self() -> dict[str, Any]:
    pid, run = os.getpid(), os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return {
        "token": uuid.uuid4().hex,
        "pid": pid,
        "start": _process_start(pid),
        "host": socket.gethostname(),
        "machine": _machine(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "run": None if run == "none" else run,  # torchrun's --rdzv-id
        "restart": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    }


def _machine(proc: Path = Path("/proc")) -> str:
    """Names the machine since it was started and, of containers, the one: where a process id means one process."""
    try:
        boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(proc / 'self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode():x}"


def _process_start(pid: int) -> str | None:
    """When a process began, as a word that its successor of the same id does not have; None: there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return "unknown"
    return None if fields[0] in "ZX" else fields[19]


def _name(holder: dict[str, Any] | None) -> str:
    return "its owner" if holder is None else f"process {holder['pid']} on {holder['host']}"
