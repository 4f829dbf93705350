"""Two nodes: separate network namespaces, which share nothing but a cable and the folder of the run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from train import division_run
from train.test_division import LOSS_TOLERANCE, TESTS, largest_difference, measures, weights

ADDRESSES = ("10.213.77.1", "10.213.77.2")


def ip(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


@pytest.fixture
def nodes():
    """Names of two network namespaces with a cable between them."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the command `ip` (iproute2)")
    names = [f"sumix-{os.getpid()}-{n}" for n in (0, 1)]
    cables = [f"sx{os.getpid() % 10**8}{end}" for end in "ab"]
    try:
        for name in names:
            if (made := ip("netns", "add", name)).returncode:
                pytest.skip(f"network namespaces are not permitted here: {made.stderr.strip()}")
        if (made := ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])).returncode:
            pytest.skip(f"virtual cables are not permitted here: {made.stderr.strip()}")
        for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
            assert ip("link", "set", cable, "netns", name).returncode == 0
            for command in (f"link set {cable} name cable", f"addr add {address}/24 dev cable", "link set cable up"):
                assert ip("-n", name, *command.split()).returncode == 0
            assert ip("-n", name, "link", "set", "lo", "up").returncode == 0
        yield names
    finally:
        for name in names:
            kill(name)
            ip("netns", "del", name)


def kill(node: str) -> None:
    """As if its power were cut."""
    for pid in ip("netns", "pids", node).stdout.split():
        os.kill(int(pid), signal.SIGKILL)


def launch(node: int, name: str, folder: Path, *options: str, run: str, conf: Sequence[str] = ()) -> subprocess.Popen:
    """torchrun on a node, two processes. The first node is where the nodes meet."""
    command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:29400", "--rdzv-id", "test"]
    meeting = ",".join([f"is_host={int(node == 0)}", *conf])
    command += [
        "--rdzv-conf",
        meeting,
        "--local-addr",
        ADDRESSES[node],
        *options,
        str(TESTS / "train" / "division_run.py"),
        str(folder),
        run,
    ]
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"}
    with (folder / f"node{node}.log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def finish(node: subprocess.Popen, folder: Path, number: int) -> None:
    assert node.wait(timeout=400) == 0, (folder / f"node{number}.log").read_text()[-3000:]


@pytest.mark.slow
def test_two_nodes_compute_what_one_process_computes(nodes, tmp_path):
    alone = division_run.train(tmp_path / "alone", "straight").model.state_dict()
    running = [launch(n, name, tmp_path, "--nnodes", "2", run="straight") for n, name in enumerate(nodes)]
    for number, node in enumerate(running):
        finish(node, tmp_path, number)
    expected = measures(tmp_path / "alone" / "straight", "loss")
    assert measures(tmp_path / "straight", "loss") == pytest.approx(expected, rel=LOSS_TOLERANCE)
    assert largest_difference(weights(tmp_path / "straight", 4), alone) < 4e-6


@pytest.mark.slow
def test_when_a_node_dies_the_other_goes_on_from_the_last_save(nodes, tmp_path):
    """The second node hangs in its 7th step until it is killed; the first ends the run with half the processes."""
    division_run.train(tmp_path / "alone", "elastic")
    options = ("--nnodes", "1:2", "--max-restarts", "3", "--monitor-interval", "0.2")
    conf = ("join_timeout=300", "last_call_timeout=20", "keep_alive_interval=1")
    first, second = (launch(n, name, tmp_path, *options, run="elastic", conf=conf) for n, name in enumerate(nodes))
    metrics = tmp_path / "elastic" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() or len(metrics.read_text().splitlines()) < division_run.HANGS_IN_STEP:
        assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "node0.log").read_text()[-3000:]
        time.sleep(0.1)
    kill(nodes[1])
    assert second.wait(timeout=60) == -signal.SIGKILL
    finish(first, tmp_path, 0)
    log = (tmp_path / "elastic" / "train.log").read_text()
    assert "x 4;" in log and "x 2;" in log  # devices before and after
    assert "resuming after step 6" in log and "drawn anew" not in log
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    expected = measures(tmp_path / "alone" / "elastic", "loss")
    assert measures(tmp_path / "elastic", "loss") == pytest.approx(expected, rel=3 * LOSS_TOLERANCE)
