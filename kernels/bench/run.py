"""Gate, measure, report: every contender of a benchmark at every shape."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sumix_kernels.bench import report
from sumix_kernels.bench.gate import GateError, Verdict, check
from sumix_kernels.bench.registry import DTYPES, Benchmark, Contender, Shape, load
from sumix_kernels.machine import instruction_set


class Settings(NamedTuple):
    """How to measure.

    memory_limit_gb: 10^9 bytes that a contender may need, else it is not started. None: 0.3 on a CPU, nine tenths
        of the memory on a GPU.
    min_seconds: how long each measurement is repeated for.
    most: shapes whose axis (frames, seconds...) is larger are left out.
    budget: seconds for the whole benchmark; what does not fit in is not run, and said so.
    """

    device: str = "cpu"
    memory_limit_gb: float | None = None
    min_seconds: float = 0.2
    most: int | None = None
    budget: float | None = None
    plot: bool = True
    command: str = ""


def run(benchmark: Benchmark, out: Path, settings: Settings, say: Callable[[str], None] = print) -> Path:
    """Write NAME.csv, NAME.md and NAME.png to `out` and return the Markdown's path.

    Raises GateError, before anything is timed, where a contender's result is wrong; ValueError for a device that is
    not there, no shape left, or a plot without matplotlib.
    """
    begin = time.monotonic()
    device, device_type = settings.device, settings.device.split(":")[0]
    if not (device == "cpu" or (device_type == "cuda" and torch.cuda.is_available())):
        raise ValueError(f"device must be cpu, or cuda where there is a GPU that torch sees, got {device!r}")
    shapes = _shapes(benchmark, device_type, settings.most)
    if settings.plot:
        report.require_matplotlib()
    out.mkdir(parents=True, exist_ok=True)

    verdicts = _verdicts(benchmark, device)
    say(f"{benchmark.name}: every contender that runs here agrees with its fp64 reference; measuring")
    limit_bytes = 1e9 * (settings.memory_limit_gb or _default_limit_gb(device))
    deadline = None if settings.budget is None else begin + settings.budget
    plan = _plan(benchmark, shapes, verdicts, limit_bytes)
    best = {}
    for dtype in dict.fromkeys(entry.dtype for entry in plan):
        (best[dtype],) = _ask({"device": device, "jobs": [{"ceilings": dtype}]}, 120)
    _measure(benchmark, plan, settings, deadline, say)
    rows = [
        _row(benchmark, entry, name, result, verdicts[entry.dtype, entry.contender.name], best[entry.dtype])
        for entry in plan
        for name, result in entry.results.items()
    ]
    return report.write(out, benchmark, rows, environment(device, settings.command), settings.plot)


@dataclass
class Entry:
    """One contender in one dtype at one shape, and its results by pass, once they are known."""

    contender: Contender
    dtype: str
    shape: Shape
    results: dict[str, dict] | None = None


def dtypes_of(benchmark: Benchmark, device_type: str) -> list[str]:
    """The benchmark's, and those that only its baselines are timed in."""
    named = [dtype for contender in benchmark.contenders for dtype in contender.dtypes or ()]
    return list(dict.fromkeys((*benchmark.dtypes[device_type], *named)))


def _shapes(benchmark: Benchmark, device_type: str, most: int | None) -> list[Shape]:
    every = benchmark.shapes[device_type]
    shapes = [shape for shape in every if most is None or shape[benchmark.axis] <= most]
    if not shapes:
        least = min(shape[benchmark.axis] for shape in every)
        raise ValueError(
            f"max size must be at least {least}, the smallest {benchmark.axis} of {benchmark.name}, got {most}"
        )
    return shapes


def _verdicts(benchmark: Benchmark, device: str) -> dict[tuple[str, str], Verdict]:
    """Of each (dtype, contender) that the benchmark times on this device."""
    device_type = device.split(":")[0]
    verdicts = {}
    for dtype in dtypes_of(benchmark, device_type):
        chosen = [c for c in benchmark.contenders if dtype in (c.dtypes or benchmark.dtypes[device_type])]
        obstacles = {c.name: c.obstacle(device_type) for c in chosen}
        runnable = tuple(c for c in chosen if obstacles[c.name] is None)
        found = check(benchmark, dtype, device, runnable)
        for contender in chosen:
            obstacle = obstacles[contender.name]
            verdict = Verdict(None, None, f"not run: {obstacle}") if obstacle else found[contender.name]
            verdicts[dtype, contender.name] = verdict
    if device_type == "cuda":
        torch.cuda.empty_cache()
    return verdicts


def _plan(
    benchmark: Benchmark, shapes: list[Shape], verdicts: dict[tuple[str, str], Verdict], limit_bytes: float
) -> list[Entry]:
    """Everything in the table's order; what is not to be started has its note already."""
    plan = []
    for dtype, name in verdicts:
        contender = benchmark.contender(name)
        for shape in filter(contender.at, shapes):
            needed = contender.working_bytes(shape, DTYPES[dtype].itemsize)
            note = verdicts[dtype, name].note
            if not note and needed > limit_bytes:
                note = f"not run: needs {needed / 1e9:.3g} GB, over the limit of {limit_bytes / 1e9:.3g} GB"
            plan.append(Entry(contender, dtype, shape, _noted(benchmark, note) if note else None))
    return plan


def _measure(
    benchmark: Benchmark, plan: list[Entry], settings: Settings, deadline: float | None, say: Callable[[str], None]
) -> None:
    """Fill in the results. On a CPU each entry has a process of its own, so that its peak memory is its own; on a GPU
    they share one, the goals' shapes first, and a process that dies takes down one entry."""

    def done(entry: Entry, results: dict[str, dict]) -> None:
        entry.results = results
        words = [r.get("note") or f"{name} {r['ms_p50']:.3g} ms" for name, r in results.items()]
        size = f"{benchmark.axis} {entry.shape[benchmark.axis]}"
        say(f"  {entry.contender.name}, {entry.dtype}, {size}: {', '.join(dict.fromkeys(words))}")

    every = benchmark.shapes[settings.device.split(":")[0]]
    pending = sorted((entry for entry in plan if entry.results is None), key=lambda entry: every.index(entry.shape))
    request = {"source": benchmark.source, "device": settings.device, "min_seconds": settings.min_seconds}
    while pending:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            for entry in pending:
                done(entry, _noted(benchmark, "not run: no time left in the budget"))
            return
        part = pending[:1] if settings.device == "cpu" else pending
        jobs = [{"contender": e.contender.name, "dtype": e.dtype, "shape": dict(e.shape)} for e in part]
        told = iter(part)
        try:
            _ask({**request, "jobs": jobs}, left, lambda results: done(next(told), results))  # noqa: B023
        except MeasuringError as error:
            done(next(told), _noted(benchmark, f"not run: {error}"))
        pending = [entry for entry in pending if entry.results is None]


def _noted(benchmark: Benchmark, note: str) -> dict[str, dict]:
    return {name: {"note": note} for name in benchmark.pass_names}


class MeasuringError(Exception):
    """A measuring process ended before its last answer."""


def _ask(request: dict, seconds: float | None, tell: Callable[[dict], None] = lambda answer: None) -> list[dict]:
    """The answers of a measuring process to the request's jobs, each told as it comes. Raises MeasuringError."""
    command = [sys.executable, "-m", "sumix_kernels.bench.measure", json.dumps(request)]
    answers, late = [], threading.Event()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        timer = threading.Timer(seconds or 1e6, lambda: (late.set(), process.kill()))
        timer.daemon = True
        timer.start()
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    answers.append(json.loads(line))
                    tell(answers[-1])
            process.wait()
        finally:
            timer.cancel()
            process.kill()  # nothing where it has ended
            process.wait()
        errors.seek(0)
        last = next(iter(reversed(errors.read().strip().splitlines())), f"the process ended with {process.returncode}")
    if len(answers) < len(request["jobs"]):
        raise MeasuringError("no time left in the budget" if late.is_set() else last)
    return answers


def _row(
    benchmark: Benchmark, entry: Entry, name: str, result: dict[str, Any], verdict: Verdict, best: dict[str, float]
) -> dict[str, Any]:
    shape, dtype = entry.shape, entry.dtype
    row = {"benchmark": benchmark.name, "contender": entry.contender.name, "dtype": dtype, "pass": name}
    row |= {**shape, **result}
    row |= {"gate_max_error": verdict.max_error, "gate_rms_error": verdict.rms_error, **best}
    work = benchmark.work(shape, DTYPES[dtype].itemsize).get(name)
    if work is not None:
        row |= {"least_bytes": work.bytes, "flops": work.flops}
    if row.get("ms_p50"):
        seconds = 1e-3 * row["ms_p50"]
        if work is not None:
            row |= {"gb_per_s": 1e-9 * work.bytes / seconds, "tflops": 1e-12 * work.flops / seconds}
            row["share_of_copy"] = row["gb_per_s"] / best["copy_gb_per_s"]
            row["share_of_matmul"] = row["tflops"] / best["matmul_tflops"]
        row |= benchmark.figures(shape, name, row)
    return row


def _default_limit_gb(device: str) -> float:
    if device == "cpu":
        return 0.3
    return 0.9e-9 * torch.cuda.get_device_properties(device).total_memory


def environment(device: str, command: str) -> dict[str, str]:
    """What a figure depends on besides the code."""
    versions = f"torch {torch.__version__}, {_version('triton')}, Python {platform.python_version()}"
    if device.startswith("cuda"):
        machine = torch.cuda.get_device_name(device)
        versions += f", CUDA {torch.version.cuda}, driver {_driver()}"
    else:
        architecture = platform.machine().replace("_", "-")
        machine = (
            f"{os.cpu_count()} CPU cores ({architecture}, {instruction_set()}), {torch.get_num_threads()} of them used"
        )
        machine += "" if torch.cuda.is_available() else ", no GPU"
    return {
        "machine": machine,
        "versions": versions,
        "load": f"{os.getloadavg()[0]:.1f}",
        "date": datetime.date.today().isoformat(),
        "command": command,
    }


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"


def _driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _main(request: dict[str, Any]) -> None:
    """One benchmark, in a process of its own: a GPU that one has spoilt is whole for the next."""
    settings = Settings(**request["settings"])
    run(load(request["source"]), Path(request["out"]), settings, lambda line: print(line, flush=True))


if __name__ == "__main__":
    try:
        _main(json.loads(sys.argv[1]))
    except (GateError, ValueError, OSError) as error:
        sys.exit(f"bench: {error}")
