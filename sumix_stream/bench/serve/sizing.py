"""A table for planning: streams a core, and memory a worker and a stream, of our server by model and chunk.

Each row is written when it is measured, and not measured again: what was broken off goes on.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sumix_kernels.machine import instruction_set
from sumix_stream.bench.serve import commands, report, verdict
from sumix_stream.bench.serve.clients import Plan, flood, run_load
from sumix_stream.bench.serve.commands import Request, Say
from sumix_stream.bench.serve.servers import pinned

_KEY = ("model", "chunk", "left_context", "instruction_set", "cores")
_MEASURED = ("streams", "workers", "start_seconds", "server_pss_mb", "worker_pss_mb", "stream_pss_mb", "seconds")
Row = dict[str, Any]


def main(request: Request, models: Sequence[str], chunks: Sequence[str], say: Say = print) -> int:
    """Measure what is missing of the table, and print it; the exit status."""
    try:
        path = run(request, models, chunks, say)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    say(f"\n{path.read_text()}\n{path}")
    return 0


def run(
    request: Request,
    models: Sequence[str],
    chunks: Sequence[str],
    say: Say = print,
    measure: Callable[[Request, Say], Row] | None = None,
) -> Path:
    """Write sizing.csv and sizing.md to `request.out`; the Markdown's path. Raises as `commands.run`."""
    request.out.mkdir(parents=True, exist_ok=True)
    table = request.out / "sizing.csv"
    known = {_key(row): row for row in _read(table)}
    wanted = [replace(request, model=model, chunk=chunk) for model in models for chunk in chunks]
    rows = []
    for one in wanted:
        own = _key(_facts(one))
        if own not in known:
            known[own] = _facts(one) | (measure or measure_one)(one, say)
            _write(table, known.values())
        rows.append(known[own])
    return report.write_sizing(request.out, rows, request.seconds, request.command)


def measure_one(request: Request, say: Say) -> Row:
    """Figures of our server with one model and chunk. Memory is PSS in MB (10^6 bytes)."""
    setup, utterances, bound, _ = commands.prepare(request)
    plan = Plan(1, request.seconds, packets=request.packets, give_up=4 * bound, seed=request.seed)
    with pinned({setup.cores[-1]}), setup.start("ours", utterances, say)[0] as server:
        references = [flood(setup.ours, server.port, [samples])[0][0] for samples in utterances]
        idle = server.meter.pss_of_processes()
        speed = commands.speed(setup.ours, server, utterances)
        search, memory = verdict.searching(max(1, round(0.8 * speed)), request.most), {}
        number = next(search)
        try:
            while True:
                measured = run_load(setup.ours, server.port, utterances, replace(plan, clients=number), server.meter)
                row = verdict.figures(measured, references, bound)
                memory[number] = row["server_pss_mb"]
                say(f"  {request.model}, {request.chunk}, {number} streams: {row['note'] or 'in real time'}")
                number = search.send(row["real_time"] == "yes")
        except StopIteration as over:
            streams = over.value
        found: Row = {"streams": streams, "workers": setup.workers, "start_seconds": round(server.start_seconds, 2)}
    if idle is not None:
        workers = idle[-setup.workers :] if setup.workers > 1 else idle
        found |= {"server_pss_mb": sum(idle) / 1e6, "worker_pss_mb": sum(workers) / len(workers) / 1e6}
        if streams:
            found["stream_pss_mb"] = max(0.0, memory[streams] - sum(idle) / 1e6) / streams
    return found | {"seconds": request.seconds}


def _facts(request: Request) -> Row:
    left = "unlimited" if request.left_context is None else request.left_context
    own = (request.model, request.chunk, left, instruction_set(), len(commands.check_cores(request.cores)))
    return dict(zip(_KEY, own, strict=True))


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in _KEY)


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: Sequence[Row]) -> None:
    making = path.with_suffix(".part")
    with making.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*_KEY, *_MEASURED])
        writer.writeheader()
        writer.writerows(rows)
    making.replace(path)
