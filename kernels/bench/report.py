"""Rows of a benchmark as CSV (complete), Markdown (to read) and PNG (to see the growth)."""

import csv
import importlib.util
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sumix_kernels.bench.registry import Benchmark

Row = dict[str, Any]
_MEASURED = ("ms_p20", "ms_p50", "ms_p80", "ms_p95", "repeats", "peak_extra_mb")


def require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the plot needs matplotlib: pip install matplotlib, or leave the plot out with --no-plot")


def write(out: Path, benchmark: Benchmark, rows: list[Row], environment: dict[str, str], plot: bool) -> Path:
    """Write NAME.csv, NAME.md and, if wanted, NAME.png; return the Markdown's path."""
    _compare(benchmark, rows)
    letters = list(
        dict.fromkeys(letter for shapes in benchmark.shapes.values() for shape in shapes for letter in shape)
    )
    first = ["benchmark", "contender", "dtype", "pass", *letters, *_MEASURED]
    columns = list(dict.fromkeys(first + [key for row in rows for key in row if key != "note"] + ["note"]))
    with (out / f"{benchmark.name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *environment], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **environment} for row in rows)
    path = out / f"{benchmark.name}.md"
    path.write_text("\n".join(_markdown(benchmark, rows, letters, environment, plot)) + "\n")
    if plot:
        _plot(out / f"{benchmark.name}.png", benchmark, rows)
    return path


def growth(rows: Iterable[Row], axis: str, figure: str) -> float | None:
    """Exponent e of figure ~ axis^e, fitted to rows whose sizes reach over a factor of 4 or more; None for others."""
    points = [(math.log(row[axis]), math.log(row[figure])) for row in rows if row.get(figure)]
    if not points or max(points)[0] - min(points)[0] < math.log(4):
        return None
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def _compare(benchmark: Benchmark, rows: list[Row]) -> None:
    """Add to each row how often its time and memory go into a baseline's, of its dtype or else of the baseline's."""
    for baseline in (contender.name for contender in benchmark.contenders if contender.baseline):
        for row in rows:
            theirs = [r for r in rows if r["contender"] == baseline and r.get("ms_p50") and _same(benchmark, r, row)]
            theirs = [r for r in theirs if r["dtype"] == row["dtype"]] or theirs
            if row["contender"] == baseline or not row.get("ms_p50") or not theirs:
                continue
            row[f"time_of_{baseline}_over_own"] = theirs[0]["ms_p50"] / row["ms_p50"]
            if row.get("peak_extra_mb") and theirs[0].get("peak_extra_mb"):
                row[f"memory_of_{baseline}_over_own"] = theirs[0]["peak_extra_mb"] / row["peak_extra_mb"]


def _same(benchmark: Benchmark, a: Row, b: Row) -> bool:
    """Whether two rows are of one pass and shape."""
    letters = {letter for shapes in benchmark.shapes.values() for shape in shapes for letter in shape}
    return all(a.get(key) == b.get(key) for key in ("pass", *letters))


def _markdown(
    benchmark: Benchmark, rows: list[Row], letters: list[str], environment: dict[str, str], plot: bool
) -> list[str]:
    varied = [letter for letter in letters if len({row.get(letter) for row in rows}) > 1]
    fixed = ", ".join(f"{letter} {rows[0][letter]}" for letter in letters if letter not in varied and letter in rows[0])
    shown = _figure_columns(benchmark, rows)
    best = {row["dtype"]: (row["copy_gb_per_s"], row["matmul_tflops"]) for row in rows}
    ceilings = "; ".join(f"{dtype} product {tflops:.4g} TFLOP/s" for dtype, (_, tflops) in best.items())
    clocks = next((row["clocks"] for row in reversed(rows) if row.get("clocks")), "")
    lines = [
        f"# {benchmark.name}",
        "",
        *([benchmark.about, ""] if benchmark.about else []),
        f"{environment['machine']}, load average {environment['load']} after; {environment['versions']}; "
        f"{environment['date']}; {fixed}.",
        f"Measured beside it: large copy {next(iter(best.values()))[0]:.4g} GB/s (read + write); {ceilings}."
        + (f" Clocks after the last row (SM, memory, highest SM MHz; W): {clocks}." if clocks else ""),
        "",
        f"    {environment['command']}",
        "",
        "Median (20 % to 80 % quantile) in ms; peak memory beyond the inputs in MB (10^6 bytes). GB/s and TFLOP/s are",
        "the function's least bytes and operations over the time: a contender that does more gets no credit for it.",
        "",
        f"| contender | dtype | {''.join(f'{letter} | ' for letter in varied)}pass | ms | MB | {' | '.join(shown)} |",
        "|---|---|" + "--:|" * len(varied) + "---|" + "--:|" * (2 + len(shown)),
    ]
    for row in rows:
        if not row.get("note"):
            cells = [row["contender"], row["dtype"], *(str(row.get(letter, "")) for letter in varied), row["pass"]]
            cells += [_time(row), _memory(row), *(_cell(row, key) for key in shown.values())]
            lines.append(f"| {' | '.join(cells)} |")
    lines += _notes(benchmark, rows)
    lines += _ratios(benchmark, rows, varied)
    lines += _growth_lines(benchmark, rows)
    lines += [f"![{benchmark.name} against {benchmark.axis}]({benchmark.name}.png)"] if plot else []
    return lines


def _notes(benchmark: Benchmark, rows: list[Row]) -> list[str]:
    """What has no figures, and why: once for all sizes that share a reason."""
    missing: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.get("note"):
            sizes = missing.setdefault((row["contender"], row["dtype"], row["note"]), [])
            sizes += [size] if (size := str(row[benchmark.axis])) not in sizes else []
    notes = [
        f"- {contender}, {dtype}, {benchmark.axis} {', '.join(sizes)}: {note}"
        for (contender, dtype, note), sizes in missing.items()
    ]
    return ["", *notes] if notes else []


def _figure_columns(benchmark: Benchmark, rows: list[Row]) -> dict[str, str]:
    """Heading -> key of the row, of what some row has."""
    known = {"GB/s (of copy)": "gb_per_s", "TFLOP/s (of product)": "tflops"}
    for row in rows:
        known |= {name: name for name in benchmark.figures(row, row["pass"], row)} if row.get("ms_p50") else {}
    known["error, RMS"] = "gate_rms_error"
    return {heading: key for heading, key in known.items() if any(row.get(key) is not None for row in rows)}


def _cell(row: Row, key: str) -> str:
    share = {"gb_per_s": "share_of_copy", "tflops": "share_of_matmul"}.get(key)
    if row.get(key) is None:
        return ""
    if key == "gate_rms_error":
        return f"{row[key]:.1e}"
    return f"{row[key]:.4g}" + (f" ({100 * row[share]:.3g} %)" if share else "")


def _time(row: Row) -> str:
    return f"{row['ms_p50']:.3f} ({row['ms_p20']:.3f} to {row['ms_p80']:.3f})"


def _memory(row: Row) -> str:
    return "not measured" if row["peak_extra_mb"] is None else f"{row['peak_extra_mb']:.1f}"


def _ratios(benchmark: Benchmark, rows: list[Row], varied: list[str]) -> list[str]:
    """A table of what the baselines take, in units of each other contender's time and memory."""
    baselines = [contender.name for contender in benchmark.contenders if contender.baseline]
    baselines = [name for name in baselines if any(f"time_of_{name}_over_own" in row for row in rows)]
    if not baselines:
        return [""]
    lines = [
        "",
        "What a baseline takes over what the contender takes, time / memory:",
        "",
        f"| contender | dtype | {''.join(f'{letter} | ' for letter in varied)}pass | {' | '.join(baselines)} |",
        "|---|---|" + "--:|" * len(varied) + "---|" + "--:|" * len(baselines),
    ]
    own = {contender.name for contender in benchmark.contenders if contender.ours}
    for row in (row for row in rows if row["contender"] in own):
        keys = [(f"time_of_{name}_over_own", f"memory_of_{name}_over_own") for name in baselines]
        if any(time in row for time, _ in keys):
            cells = [row["contender"], row["dtype"], *(str(row.get(letter, "")) for letter in varied), row["pass"]]
            cells += [" / ".join(f"{row[key]:.2f}" if key in row else "-" for key in pair) for pair in keys]
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _series(benchmark: Benchmark, rows: list[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """(contender, dtype, pass) -> its rows that differ in the axis alone: the largest such set of all measured ones."""
    letters = {letter for shapes in benchmark.shapes.values() for shape in shapes for letter in shape}
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.get("ms_p50"):
            rest = tuple(row.get(letter) for letter in sorted(letters - {benchmark.axis}))
            groups.setdefault((rest, row["contender"], row["dtype"], row["pass"]), []).append(row)
    sizes: dict[tuple, int] = {}
    for (rest, *_), own in groups.items():
        sizes[rest] = max(sizes.get(rest, 0), len(own))
    largest = max(sizes, key=sizes.get, default=None)
    return {key[1:]: own for key, own in groups.items() if key[0] == largest}


def _growth_lines(benchmark: Benchmark, rows: list[Row]) -> list[str]:
    lines = []
    for (contender, dtype, name), own in _series(benchmark, rows).items():
        if name != benchmark.pass_names[-1]:
            continue
        exponents = {figure: growth(own, benchmark.axis, key) for figure, key in _GROWING.items()}
        words = [f"{figure} ~ {benchmark.axis}^{value:.2f}" for figure, value in exponents.items() if value is not None]
        lines += [f"- {contender}, {dtype}, {name}: {', '.join(words)}"] if words else []
    return [f"Growth with {benchmark.axis} (1 = linear):", "", *lines, ""] if lines else []


_GROWING: Mapping[str, str] = {"time": "ms_p50", "memory": "peak_extra_mb"}


def _plot(path: Path, benchmark: Benchmark, rows: list[Row]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series = _series(benchmark, rows)
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    colors = {pair: f"C{i}" for i, pair in enumerate(dict.fromkeys(key[:2] for key in series))}
    styles = dict(zip(benchmark.pass_names[::-1], ("-", "--", ":")))
    for column, (name, unit) in enumerate((("ms_p50", "ms"), ("peak_extra_mb", "MB beyond the inputs"))):
        for (contender, dtype, pass_), own in series.items():
            points = [(row[benchmark.axis], row[name]) for row in own if row.get(name)]
            if points:
                label, color = f"{contender}, {dtype}, {pass_}", colors[contender, dtype]
                axes[column].plot(*zip(*points), styles[pass_], color=color, marker="o", markersize=3, label=label)
        axes[column].set(xscale="log", yscale="log", xlabel=benchmark.axis, ylabel=unit)
        axes[column].set_xscale("log", base=2)
        axes[column].grid(alpha=0.3)
    axes[0].set_title(f"{benchmark.name}: time")
    axes[1].set_title("peak extra memory")
    if series:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    figure.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(figure)
