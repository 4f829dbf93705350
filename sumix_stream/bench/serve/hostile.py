"""Healthy clients with and without hostile ones beside them: their texts, their latency, and the server's memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sumix_stream.bench.serve import speech as speaker
from sumix_stream.bench.serve import verdict
from sumix_stream.bench.serve.clients import Measured, Plan, flood, run_load
from sumix_stream.bench.serve.protocols import ServerProtocol
from sumix_stream.bench.serve.servers import ServerProcess

SPARE_STREAMS = 16  # of the server, beyond the healthy ones: what hostile clients can get hold of
PHASES = ("quiet", "hostile", "quiet again", "hostile again", "quiet at last")
LOWEST_PRIORITY = 19
_LONG = 4  # different utterances
_SETTLE_SECONDS = 8.0  # by then whoever is gone has been noticed


def hostile_rows(
    start: Callable[[int], ServerProcess],
    server_protocol: ServerProtocol,
    utterances: Sequence[np.ndarray],
    clients: int,
    seconds: float,
    say: Callable[[str], None],
    phases: Sequence[str] = PHASES,
    niceness: int = LOWEST_PRIORITY,
) -> list[dict[str, Any]]:
    """A row for each phase. Every healthy client has one stream of `seconds`; the hostile ones come when all speak.

    Args:
        start: a server that takes so many streams.
        niceness: of the hostile clients, which have machines of their own: what they compute should not slow the
            healthy ones. On a machine without a free core the lowest priority leaves them nothing to act with.
    """
    long = speaker.joined(utterances, seconds, _LONG)
    max_streams = clients + SPARE_STREAMS
    rows = []
    with start(max_streams) as server:
        references = [flood(server_protocol, server.port, [samples])[0][0] for samples in long]
        plan = Plan(clients, seconds, warm=min(4.0, seconds / 4), repeat=False, grace=5.0)
        for phase in phases:
            before = server.meter.rss_bytes()
            hostile = _start_hostile(server, max_streams, plan, niceness) if phase.startswith("hostile") else None
            let_loose = None if hostile is None else hostile.stdin.close
            measured = run_load(server_protocol, server.port, long, plan, server.meter, let_loose)
            outcomes, hostile_cpu = _result(hostile)
            left = _settle(server)
            row = _row(phase, measured, references, before, server.meter.rss_bytes(), left)
            rows.append(row | {"hostile_cpu_percent": 100 * hostile_cpu / seconds, "outcomes": outcomes})
            say(
                f"  {phase}: {row['texts_right']} of {clients} texts right, chunk p50 {row['chunk_ms_p50']:.0f} ms, "
                f"p99 {row['chunk_ms_p99']:.0f} ms, memory {row['rss_before_mb']:.0f} to {row['rss_most_mb']:.0f} to "
                f"{row['rss_after_mb']:.0f} MB, {sum(outcomes.values())} hostile acts"
            )
    return rows


def _row(
    phase: str, measured: Measured, references: Sequence[str], before: int, after: int, left: int
) -> dict[str, Any]:
    """A row of the table; memory in MB (10^6 bytes)."""
    right = len(measured.texts) - verdict.num_wrong(measured, references)
    row: dict[str, Any] = {"phase": phase, "clients": measured.clients, "texts_right": right}
    row |= {f"chunk_ms_p{q}": value for q, value in verdict.quantiles(measured.chunks).items()}
    row |= {f"final_ms_p{q}": value for q, value in verdict.quantiles(measured.finals).items()}
    memory = {"before": before, "most": max([before, *measured.server_rss]), "after": after}
    row |= {f"rss_{name}_mb": value / 1e6 for name, value in memory.items()}
    row |= {"streams_left": left, "server_cpu_percent": 100 * measured.server_cpu, "chunks": len(measured.chunks)}
    return row | {"faults": "; ".join(f"{count} {reason}" for reason, count in sorted(measured.faults.items()))}


def _start_hostile(server: ServerProcess, max_streams: int, plan: Plan, niceness: int) -> subprocess.Popen:
    """They come when their standard input is closed, and stay until the last healthy client has ended."""
    numbers = (server.port, max_streams, plan.seconds, json.dumps(server.other_ports), niceness)
    command = [sys.executable, "-m", "sumix_stream.bench.serve.hostile_clients", *map(str, numbers)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _result(hostile: subprocess.Popen | None) -> tuple[dict[str, int], float]:
    """What became of the hostile clients, and their seconds of the processor."""
    if hostile is None:
        return {}, 0.0
    output = hostile.stdout.read()
    hostile.wait()
    if hostile.returncode:
        raise RuntimeError(f"the hostile clients failed with status {hostile.returncode}")
    found = json.loads(output)
    return found["outcomes"], found["cpu_seconds"]


def _settle(server: ServerProcess) -> int:
    """Wait until the server has noticed who is gone, at most so long; the streams that it still counts."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=10) as response:
            streams = json.load(response)["streams"]
        if streams == 0 or time.monotonic() > deadline:
            return streams
        time.sleep(0.1)
