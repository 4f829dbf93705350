"""Rows of a benchmark as CSV (complete), Markdown (to read) and PNG (to see the growth)."""

import csv
import importlib.util
import math
from pathlib import Path

PASSES = ("forward", "forward+backward")
_RESULTS = ("ms_p20", "ms_p50", "ms_p80", "repeats", "peak_extra_mb", "note")


def require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the plot needs matplotlib: pip install matplotlib, or leave the plot out with --no-plot")


def write(out: Path, op: str, rows: list[dict], environment: dict[str, str], plot: bool) -> Path:
    """Write OP.csv, OP.md and, if wanted, OP.png; return the Markdown's path."""
    shape = [key for key in rows[0] if key not in ("op", "contender", "pass", *_RESULTS)]
    with (out / f"{op}.csv").open("w", newline="") as file:
        columns = ["op", "contender", "pass", *shape, *_RESULTS, *environment]
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **environment} for row in rows)
    path = out / f"{op}.md"
    path.write_text(_markdown(op, rows, shape, environment, plot))
    if plot:
        _plot(out / f"{op}.png", op, rows)
    return path


def growth(rows: list[dict], figure: str, least_frames: int = 4096) -> float | None:
    """Exponent e of figure ~ T^e, fitted to the rows of at least `least_frames` frames; None for fewer than two."""
    points = [
        (math.log(row["T"]), math.log(row[figure])) for row in rows if row["T"] >= least_frames and row.get(figure)
    ]
    if len(points) < 2:
        return None
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def _markdown(op: str, rows: list[dict], shape: list[str], environment: dict[str, str], plot: bool) -> str:
    fixed = ", ".join(f"{letter} {rows[0][letter]}" for letter in shape if letter != "T")
    lines = [
        f"# {op}",
        "",
        f"{environment['machine']}, load average {environment['load']} before; {environment['versions']}; "
        f"{environment['date']}; fp32; {fixed}.",
        "",
        f"    {environment['command']}",
        "",
        "Median (20 % to 80 % quantile) of the wall clock in ms; peak memory beyond the input in MB (10^6 bytes: on a",
        "CPU the growth of resident memory in a fresh process, on a GPU torch's allocator).",
        "",
        "| contender | T | forward, ms | forward + backward, ms | forward, MB | forward + backward, MB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(row["contender"] for row in rows):
        own = [row for row in rows if row["contender"] == name]
        for T in dict.fromkeys(row["T"] for row in own):
            forward, both = (next(r for r in own if r["T"] == T and r["pass"] == name_) for name_ in PASSES)
            if "note" in forward:
                cells = [forward["note"], "", "", ""]
            else:
                cells = [_time(forward), _time(both), _memory(forward), _memory(both)]
            lines.append(f"| {name} | {T} | {' | '.join(cells)} |")
    lines += ["", "Growth from 4096 frames on (1 = linear):", ""]
    for name in dict.fromkeys(row["contender"] for row in rows):
        both = [row for row in rows if row["contender"] == name and row["pass"] == "forward+backward"]
        exponents = {"time": growth(both, "ms_p50"), "memory": growth(both, "peak_extra_mb")}
        words = [f"{figure} ~ T^{value:.2f}" for figure, value in exponents.items() if value is not None]
        lines.append(f"- {name}, forward + backward: {', '.join(words) or 'not enough shapes'}")
    lines += ["", f"![time and memory of {op} against the number of frames]({op}.png)"] if plot else []
    return "\n".join(lines) + "\n"


def _time(row: dict) -> str:
    return f"{row['ms_p50']:.2f} ({row['ms_p20']:.2f} to {row['ms_p80']:.2f})"


def _memory(row: dict) -> str:
    return "not measured" if row["peak_extra_mb"] is None else f"{row['peak_extra_mb']:.1f}"


def _plot(path: Path, op: str, rows: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for column, (name, unit) in enumerate((("ms_p50", "ms"), ("peak_extra_mb", "MB beyond the input"))):
        for color, contender in enumerate(dict.fromkeys(row["contender"] for row in rows)):
            for pass_, line in zip(PASSES, ("--", "-")):
                points = [
                    (row["T"], row[name])
                    for row in rows
                    if row["contender"] == contender and row["pass"] == pass_ and row.get(name)
                ]
                if points:
                    label = f"{contender}, {pass_}"
                    axes[column].plot(*zip(*points), line, color=f"C{color}", marker="o", markersize=3, label=label)
        axes[column].set(xscale="log", yscale="log", xlabel="T, frames", ylabel=unit)
        axes[column].set_xscale("log", base=2)
        axes[column].grid(alpha=0.3)
    axes[0].set_title(f"{op}: time")
    axes[1].set_title("peak extra memory")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7)
    figure.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(figure)
