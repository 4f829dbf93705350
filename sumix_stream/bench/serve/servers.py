"""Servers in processes of their own, ours and sherpa-onnx's: started, pinned, paused, measured and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

STOCK_SERVER = "sherpa-onnx-online-websocket-server"
_START_SECONDS = 300.0
NEVER = 1e6  # seconds of silence or speech: no endpoints, so that texts can be compared as a whole


class Meter:
    """Processor time and memory of a process and its children, from /proc. RSS counts what they share for each.

    Raises ValueError where there is no such thing.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        if not Path(f"/proc/{pid}/statm").is_file():
            raise ValueError(f"process {pid} cannot be measured: it has ended, or this is no Linux with /proc")
        self._page, self._tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")

    def cpu_seconds(self) -> float:
        """Of all their threads, since they began."""
        return sum(map(self._cpu_seconds, self._family()))

    def rss_bytes(self) -> int:
        return sum(map(self._rss_bytes, self._family()))

    def pss_bytes(self) -> int | None:
        """Resident memory in which what several processes share counts once; None where the kernel does not tell."""
        found = [self._pss_bytes(pid) for pid in self._family()]
        return None if None in found else sum(found)

    def pss_of_processes(self) -> list[int] | None:
        """The same of each process, parents before children; None where the kernel does not tell."""
        found = list(map(self._pss_bytes, self._family()))
        return None if None in found else found

    def _cpu_seconds(self, pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / self._tick

    def _rss_bytes(self, pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * self._page

    def _pss_bytes(self, pid: int) -> int | None:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
        return None

    def _family(self) -> list[int]:
        found = [self._pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        return found


class ServerProcess:
    """A running server on the loopback interface; a context manager, at whose end it is stopped."""

    def __init__(self, name: str, process: subprocess.Popen, port: int, start_seconds: float) -> None:
        self.name, self.process, self.port = name, process, port
        self.start_seconds = start_seconds  # from its start until it listens
        self.other_ports: dict[str, int] = {}  # where it speaks other protocols, by their names
        self.meter = Meter(process.pid)

    def pause(self) -> None:
        """Let it use no processor until `resume`."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


@contextlib.contextmanager
def pinned(cores: Collection[int]) -> Iterator[None]:
    """Processes begun inside run on these cores alone, and so does this thread until the end."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def check_cores(cores: Sequence[int] | None) -> list[int]:
    """The cores that may be used, or those named if they may. Raises ValueError otherwise."""
    allowed = sorted(os.sched_getaffinity(0))
    if cores is None:
        return allowed
    if not cores or not set(cores) <= set(allowed):
        raise ValueError(f"cores must be some of {', '.join(map(str, allowed))}, got {', '.join(map(str, cores))}")
    return sorted(set(cores))


def start_ours(
    name: str, arguments: Sequence[str], folder: Path, cores: Collection[int], threads: int
) -> ServerProcess:
    """Our server on any free port; its log goes to `folder`.

    arguments: what Python is given, the command and its options.

    Raises RuntimeError with the log's end when it does not listen.
    """
    log = folder / f"{name}.log"
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, *arguments, "--port", "0"]
    process = _start(command, log, cores, environment)
    others: dict[str, int] = {}

    def port() -> int | None:
        for line in log.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict) and message.get("event") == "listening":
                    named = {name: message[name] for name in ("wyoming", "vosk", "sherpa") if name in message}
                    others.update({name: int(where.rpartition(":")[2]) for name, where in named.items()})
                    return int(message["url"].rstrip("/").rpartition(":")[2])
        return None

    server = _once_it_listens(name, process, log, port)
    server.other_ports = others
    return server


def start_stock(
    name: str, bundle: Path, flags: Sequence[str], folder: Path, cores: Collection[int], threads: int
) -> ServerProcess:
    """The unmodified C++ server of PyPI's sherpa-onnx-bin with a bundle of ours.

    Raises ValueError where it is not installed, RuntimeError when it does not listen.
    """
    beside = Path(sys.executable).with_name(STOCK_SERVER)
    program = str(beside) if beside.is_file() else shutil.which(STOCK_SERVER)
    if program is None:
        raise ValueError(f"{STOCK_SERVER} is not installed: pip install sherpa-onnx-bin, or leave out --against sherpa")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    parts = {part: bundle / f"{part}.onnx" for part in ("encoder", "decoder", "joiner")} | {
        "tokens": bundle / "tokens.txt"
    }
    if missing := [str(path) for path in parts.values() if not path.is_file()]:
        raise ValueError(f"{bundle} is no sherpa-onnx bundle ({missing[0]} is missing): make one with bin/export")
    fixed = ["--enable-endpoint=false", "--end-tail-padding=0.001", f"--log-file={folder / name}-own.log"]
    command = [program, f"--port={number}", *(f"--{part}={path}" for part, path in parts.items())]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    log = folder / f"{name}.log"
    process = _start([*command, *fixed, *flags], log, cores, environment)

    def port() -> int | None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", number), 1):
            return number
        return None

    return _once_it_listens(name, process, log, port)


def _start(command: Sequence[str], log: Path, cores: Collection[int], environment: dict[str, str]) -> subprocess.Popen:
    with log.open("wb") as file, pinned(cores):
        return subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment)


def _once_it_listens(name: str, process: subprocess.Popen, log: Path, find_port) -> ServerProcess:
    began = time.monotonic()
    deadline = began + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if (port := find_port()) is not None:
            return ServerProcess(name, process, port, time.monotonic() - began)
        time.sleep(0.05)
    process.kill()
    process.wait()
    end = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
    raise RuntimeError(f"{name} does not listen:\n" + "\n".join(end))
