"""What the commands of bin/bench run: which benchmarks, one after another, and the page that sums them up."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sumix_kernels.bench import registry
from sumix_kernels.bench.gate import GateError
from sumix_kernels.bench.run import Settings, run
from sumix_stream.bench import goals

OPS = {name: f"sumix_kernels.bench.{name}" for name in registry.OPS if name != "loss"}
COMMANDS = {
    "kernels": list(OPS.values()),
    "loss": ["sumix_kernels.bench.loss"],
    "encoder": ["sumix_stream.bench.encoder"],
    "train-step": ["sumix_stream.bench.train_step"],
    "stream": ["sumix_stream.bench.stream"],
}

GRACE = 60  # seconds beyond its budget after which a benchmark that hangs is ended

# Of `all`, in this order: seconds that a benchmark may take, with what those before it left over.
SECONDS = {
    "sumix_kernels.bench.chunk_summary": 70,
    "sumix_kernels.bench.chunk_conv1d": 60,
    "sumix_kernels.bench.mixer": 80,
    "sumix_kernels.bench.loss": 100,
    "sumix_stream.bench.encoder": 60,
    "sumix_stream.bench.stream": 45,
    "sumix_stream.bench.train_step": 35,
    "sumix_kernels.bench.chunk_decay_mean": 30,
}


def main(name: str, out: Path, op: str | None, **options: Any) -> int:
    """Run a command of bin/bench and print its tables; the exit status: 1 for a wrong result, 2 for bad arguments."""
    try:
        settings = Settings(**options)
        if name == "all":
            path, failed = run_all(out, settings)
            print(path.read_text())
            for source in failed:
                print(f"bench: {source} failed", file=sys.stderr)
            return 1 if failed else 0
        for path in run_command(name, out, settings, op):
            print(f"\n{path.read_text()}\n{path}")
    except GateError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def run_command(
    command: str, out: Path, settings: Settings, op: str | None = None, say: Callable[[str], None] = print
) -> list[Path]:
    """Run the benchmarks of a command, or of `kernels` one op, in this process; the Markdown files.

    Raises GateError where a contender is wrong, ValueError for an unknown op or an impossible setting.
    """
    if op is not None and op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {op!r}")
    sources = COMMANDS[command] if op is None else [OPS[op]]
    return [run(registry.load(source), out, settings, say) for source in sources]


def run_all(out: Path, settings: Settings, say: Callable[[str], None] = print) -> tuple[Path, list[str]]:
    """Run everything, each benchmark in a process of its own, within `settings.budget` seconds (default: SECONDS).

    Writes goals.md beside the benchmarks' tables; returns its path, and the benchmarks that failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    stretch = (settings.budget or sum(SECONDS.values())) / sum(SECONDS.values())
    deadline, failed = time.monotonic(), []
    for source, seconds in SECONDS.items():
        deadline += stretch * seconds
        left = deadline - time.monotonic()
        part = settings._replace(budget=left)
        request = json.dumps({"source": source, "out": str(out), "settings": part._asdict()})
        say(f"{source}: {left:.0f} s at most")
        process = subprocess.Popen([sys.executable, "-m", "sumix_kernels.bench.run", request])
        try:
            status = process.wait(timeout=max(left, 0) + GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if status:
            failed.append(source)
    path = out / "goals.md"
    path.write_text(goals.table(out))
    return path, failed
