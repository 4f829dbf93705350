"""Gate, measure, report: every contender of a benchmark at every shape."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sumix_kernels.bench import report
from sumix_kernels.bench.gate import GateError, Verdict, check
from sumix_kernels.bench.registry import DTYPES, Benchmark, Contender, Shape, load


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
    rows, best = [], {}
    for dtype, contender in ((d, c) for d in dtypes_of(benchmark, device_type) for c in benchmark.contenders):
        if (dtype, contender.name) not in verdicts:
            continue
        if dtype not in best:
            best[dtype] = _ask({"dtype": dtype, "device": device}, 1, 120)[0]
        verdict = verdicts[dtype, contender.name]
        for shape, results in _results(benchmark, contender, dtype, shapes, verdict, settings, limit_bytes, deadline):
            words = [r.get("note") or f"{name} {r['ms_p50']:.3g} ms" for name, r in results.items()]
            figures = ", ".join(dict.fromkeys(words))
            say(f"  {contender.name}, {dtype}, {benchmark.axis} {shape[benchmark.axis]}: {figures}")
            for name, result in results.items():
                rows.append(_row(benchmark, contender, dtype, shape, name, result, verdict, best[dtype]))
    return report.write(out, benchmark, rows, environment(device, settings.command), settings.plot)


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


def _results(
    benchmark: Benchmark,
    contender: Contender,
    dtype: str,
    shapes: list[Shape],
    verdict: Verdict,
    settings: Settings,
    limit_bytes: float,
    deadline: float | None,
) -> Iterator[tuple[Shape, dict[str, dict]]]:
    """Of each shape, by pass. On a CPU a process measures one shape, so that its peak memory is of this shape alone."""

    def note(text: str) -> dict[str, dict]:
        return {name: {"note": text} for name in benchmark.pass_names}

    fitting = []
    for shape in filter(contender.at, shapes):
        needed = contender.working_bytes(shape, DTYPES[dtype].itemsize)
        if verdict.note:
            yield shape, note(verdict.note)
        elif needed > limit_bytes:
            limit = f"over the limit of {limit_bytes / 1e9:.3g} GB"
            yield shape, note(f"not run: needs {needed / 1e9:.3g} GB, {limit}")
        else:
            fitting.append(shape)
    request = {"source": benchmark.source, "contender": contender.name, "dtype": dtype, "device": settings.device}
    request["min_seconds"] = settings.min_seconds
    for part in [[shape] for shape in fitting] if settings.device == "cpu" else [fitting] if fitting else []:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            answers = [note("not run: no time left in the budget")] * len(part)
        else:
            failure = {name: {} for name in benchmark.pass_names}
            answers = _ask({**request, "shapes": [dict(shape) for shape in part]}, len(part), left, failure)
        yield from zip(part, answers)


def _ask(request: dict, count: int, seconds: float | None, failure: dict[str, dict] | None = None) -> list[dict]:
    """The `count` answers of a measuring process; those that it did not live to give are `failure` with a note."""
    command = [sys.executable, "-m", "sumix_kernels.bench.measure", json.dumps(request)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    timer = threading.Timer(seconds or 1e6, process.kill)
    timer.daemon = True
    timer.start()
    try:
        output, errors = process.communicate()
    finally:
        ended = timer.is_alive()
        timer.cancel()
        process.kill()  # nothing where it has ended
    answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if len(answers) < count:
        last = next(iter(reversed(errors.strip().splitlines())), f"the process ended with {process.returncode}")
        text = f"not run: {last}" if ended else "not run: no time left in the budget"
        if failure is None:
            raise RuntimeError(f"measuring failed: {text}\n{errors[-2000:]}")
        answers += [{name: {"note": text} for name in failure}] * (count - len(answers))
    return answers


def _row(
    benchmark: Benchmark,
    contender: Contender,
    dtype: str,
    shape: Shape,
    name: str,
    result: dict[str, Any],
    verdict: Verdict,
    best: dict[str, float],
) -> dict[str, Any]:
    row = {"benchmark": benchmark.name, "contender": contender.name, "dtype": dtype, "pass": name, **shape, **result}
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
        machine = f"{os.cpu_count()} CPU cores ({architecture}), {torch.get_num_threads()} of them used"
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
