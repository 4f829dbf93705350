"""Gate, measure, report: every contender of an op at every shape."""

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from sumix_kernels.bench import report
from sumix_kernels.bench.registry import Benchmark, Shape, check, find


def run(
    op: str,
    out: Path,
    *,
    device: str = "cpu",
    memory_limit_gb: float = 2.0,
    min_seconds: float = 1.0,
    max_frames: int | None = None,
    plot: bool = True,
    command: str = "",
    say: Callable[[str], None] = print,
) -> Path:
    """Write OP.csv, OP.md and OP.png to `out` and return the Markdown's path.

    A contender whose working memory would pass `memory_limit_gb` (10^9 bytes) is not started, and the report says so.
    Each measurement is repeated for `min_seconds`; shapes of more than `max_frames` frames are left out.

    Raises GateError, before anything is timed, where a contender's result is wrong; ValueError for an unknown op or
    device, no shape left, or a plot without matplotlib.
    """
    benchmark = find(op)
    shapes = [shape for shape in benchmark.shapes if max_frames is None or shape["T"] <= max_frames]
    if not shapes:
        least = min(shape["T"] for shape in benchmark.shapes)
        raise ValueError(f"max frames must be at least {least}, the smallest shape of {op}, got {max_frames}")
    if not (device == "cpu" or (device.startswith("cuda") and torch.cuda.is_available())):
        raise ValueError(f"device must be cpu, or cuda where there is a GPU that torch sees, got {device!r}")
    if plot:
        report.require_matplotlib()
    out.mkdir(parents=True, exist_ok=True)
    check(benchmark, device)
    say(f"{op}: every contender agrees with its fp64 reference; measuring")

    settings = {"device": device, "min_seconds": min_seconds}
    rows = []
    for contender in benchmark.contenders:
        for shape in shapes:
            needed_gb = contender.working_bytes(shape) / 1e9
            if needed_gb > memory_limit_gb:
                note = f"not run: needs {needed_gb:.3g} GB, over the limit of {memory_limit_gb:g} GB"
                results = {"forward": {"note": note}, "forward+backward": {"note": note}}
                say(f"  {contender.name}, T {shape['T']}: {note}")
            else:
                results = _measure_apart(benchmark, contender.name, shape, settings)
                times = ", ".join(f"{name} {result['ms_p50']:.2f} ms" for name, result in results.items())
                say(f"  {contender.name}, T {shape['T']}: {times}")
            rows += [
                {"op": op, "contender": contender.name, "pass": name, **shape, **result}
                for name, result in results.items()
            ]
    return report.write(out, op, rows, environment(device, command), plot)


def _measure_apart(benchmark: Benchmark, contender: str, shape: Shape, settings: dict) -> dict[str, dict]:
    """In a fresh process, so that its peak memory is of this contender alone."""
    request = json.dumps({"op": benchmark.op, "contender": contender, "shape": dict(shape), **settings})
    command = [sys.executable, "-m", "sumix_kernels.bench.measure", request]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{benchmark.op}: {contender} failed at {dict(shape)}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def environment(device: str, command: str) -> dict[str, str]:
    """What a figure depends on besides the code."""
    if device.startswith("cuda"):
        machine = torch.cuda.get_device_name(device)
    else:
        architecture = platform.machine().replace("_", "-")
        machine = f"{os.cpu_count()} CPU cores ({architecture}), {torch.get_num_threads()} of them used"
        machine += "" if torch.cuda.is_available() else ", no GPU"
    return {
        "machine": machine,
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        "load": f"{os.getloadavg()[0]:.1f}",
        "date": datetime.date.today().isoformat(),
        "command": command,
    }
