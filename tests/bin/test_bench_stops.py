"""A benchmark that is told to end leaves nothing running behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bin" / "bench"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_servers_end_with_the_benchmark(tmp_path, number):
    command = [sys.executable, BENCH, "serve", "--model", "tiny", "--clients", "1", "--seconds", "60", "--repeats", "0"]
    bench = subprocess.Popen([*command, "--no-plot", "--out", tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        while "ours" not in (line := bench.stdout.readline()):  # said when the server is there
            assert line or bench.poll() is None, "it ended early"
        servers = children(bench.pid)
        assert servers
        bench.send_signal(number)
        bench.wait(60)
    finally:
        bench.kill()
        bench.stdout.close()
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in servers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in servers if Path(f"/proc/{pid}").exists()]
