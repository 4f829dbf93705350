"""A benchmark that is told to end leaves nothing running behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bin" / "bench"


def listing(pid: int) -> Path:
    return Path(f"/proc/{pid}/task/{pid}/children")


@pytest.mark.skipif(not listing(os.getpid()).exists(), reason="this system does not list children in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_servers_end_with_the_benchmark(tmp_path, number):
    command = [sys.executable, BENCH, "serve", "--model", "tiny", "--clients", "1", "--seconds", "60", "--repeats", "0"]
    bench = subprocess.Popen(
        [*command, "--no-plot", "--out", tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    try:
        while "ours" not in (line := bench.stdout.readline()):  # said when the server is there
            assert line or bench.poll() is None, "it ended early"
        servers = [int(child) for child in listing(bench.pid).read_text().split()]
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
