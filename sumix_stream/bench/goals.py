"""The goals on an H100 against what a run measured: a table made from the benchmarks' CSV files."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

NOT_MEASURED = "not measured"


class Goal(NamedTuple):
    """A figure of the benchmark's row with these values: at least `least`, or at most `most`; neither: reported."""

    benchmark: str
    where: Mapping[str, object]
    column: str
    least: float | None = None
    most: float | None = None


def _time_of(baseline: str) -> str:
    return f"time_of_{baseline}_over_own"


def _memory_of(baseline: str) -> str:
    return f"memory_of_{baseline}_over_own"


_OURS = {"contender": "triton", "dtype": "bf16"}
_FORWARD, _BOTH = {"pass": "forward"}, {"pass": "forward+backward"}
_BATCH, _LONG = {**_OURS, "B": 32, "T": 1500}, {**_OURS, "B": 32, "T": 16384}
_PRODUCT, _COMPILED, _UNFOLD = "(T, T) product", "torch, compiled", "unfold + conv1d"
_ENCODER, _STREAM = {"contender": "summary", "dtype": "bf16"}, {"contender": "summary, CUDA graph"}

GOALS = (
    Goal("chunk_summary", _BATCH | _FORWARD, "share_of_copy", 0.85),
    Goal("chunk_summary", _BATCH | _BOTH, "share_of_copy", 0.75),
    Goal("chunk_summary", _BATCH | _FORWARD, _time_of(_PRODUCT), 5),
    Goal("chunk_summary", _BATCH | _BOTH, _time_of(_PRODUCT), 5),
    Goal("chunk_summary", _LONG | _FORWARD, _time_of(_PRODUCT), 50),
    Goal("chunk_summary", _LONG | _BOTH, _time_of(_PRODUCT), 50),
    Goal("mixer", _BATCH | _BOTH, _time_of(_COMPILED), 2),
    Goal("mixer", _BATCH | _BOTH, _memory_of(_COMPILED), 2),
    Goal("chunk_conv1d", _BATCH | _FORWARD, "share_of_copy", 0.7),
    Goal("chunk_conv1d", _BATCH | _BOTH, _time_of(_UNFOLD), 4),
    Goal("chunk_conv1d", _BATCH | _BOTH, _memory_of(_UNFOLD), 4),
    *(Goal("loss", _OURS | {"V": V} | _BOTH, _time_of("fast_rnnt"), 2) for V in (500, 5000)),
    *(Goal("loss", _OURS | {"V": V} | _BOTH, _memory_of("fast_rnnt"), 3) for V in (500, 5000)),
    Goal("loss", _OURS | {"V": 500} | _BOTH, "gate_rms_error", most=0.02),
    Goal("encoder", _ENCODER | {"seconds": 30} | _BOTH, _time_of("attention"), 1.5),
    Goal("encoder", _ENCODER | {"seconds": 30} | _BOTH, _memory_of("attention"), 2),
    *(Goal("encoder", _ENCODER | {"seconds": s} | _BOTH, _time_of("attention")) for s in (10, 60, 120)),
    *(Goal("stream", _STREAM | {"S": S}, "ms_p50") for S in (1, 256)),
    *(Goal("stream", _STREAM | {"S": S}, "streams in real time") for S in (1, 256)),
)

_WORDS = {"share_of_copy": "share of copy bandwidth", "gate_rms_error": "relative RMS error", "ms_p50": "p50 in ms"}
_COMMANDS = {"loss": "loss --fast-rnnt DIR", "encoder": "encoder", "stream": "stream"}


def table(folder: Path) -> str:
    """Markdown: goal | measured | met | how to measure, from the CSV files in `folder`."""
    lines = ["| goal | measured | met | how to measure |", "|---|--:|---|---|"]
    for goal in GOALS:
        value = _value(goal, folder / f"{goal.benchmark}.csv")
        command = _COMMANDS.get(goal.benchmark, f"kernels --op {goal.benchmark}")
        measured = NOT_MEASURED if value is None else f"{value:.3g}"
        lines.append(
            f"| {_text(goal)} | {measured} | {_met(goal, value)} | `bin/bench {command} --device cuda --out OUT` |"
        )
    return "\n".join(lines) + "\n"


def _text(goal: Goal) -> str:
    place = [f"{key} {value}" for key, value in goal.where.items() if key in ("T", "V", "seconds", "S")]
    place += [str(goal.where["pass"])] if "pass" in goal.where else []
    column = _WORDS.get(goal.column, goal.column.replace("time_of_", "time of ").replace("memory_of_", "memory of "))
    limit = "" if goal.least is None else f" at least {goal.least:g}"
    limit += "" if goal.most is None else f" at most {goal.most:g}"
    return f"{goal.benchmark}, {', '.join(place)}: {column.replace('_over_own', ' over own')}{limit}"


def _value(goal: Goal, path: Path) -> float | None:
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if all(row.get(key) == str(value) for key, value in goal.where.items()) and row.get(goal.column):
                return float(row[goal.column])
    return None


def _met(goal: Goal, value: float | None) -> str:
    if value is None or (goal.least is None and goal.most is None):
        return ""
    return "yes" if (goal.least is None or value >= goal.least) and (goal.most is None or value <= goal.most) else "no"
