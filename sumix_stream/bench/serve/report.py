"""The tables and the plot of `bin/bench serve`: CSV (complete), Markdown (to read) and PNG (latency over clients)."""

from __future__ import annotations

import csv
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sumix_kernels.bench.run import environment as kernels_environment
from sumix_kernels.machine import instruction_set, processor
from sumix_stream.bench.serve import verdict

Row = dict[str, Any]
_ABOUT = """\
Chunk latency: from the moment when the packet with the last sample that a chunk needs is due (what the server itself
waits for: the stock server wants 10 ms of audio more, which do not count) to the arrival of the chunk's result. Final:
from the end of the speech to the last result. Each client speaks one utterance after another by the clock, on a
connection of its own, beginning at a random moment, with packets of one length. In real time: p99 chunk latency within
the bound, a median latency that does not rise, every result there, every text as recognised alone. CPU is in % of one
core."""


_SIZING_MEMORY = (("server_pss_mb", 0), ("worker_pss_mb", 0), ("stream_pss_mb", 2))
_SIZING_ABOUT = """\
Streams: the most that speak in real time for {seconds:g} s, to within a sixteenth, by one search. Memory is PSS, in
which pages that processes share count once: of the server before its first load (all processes), of one of its workers,
and what a stream adds at the most streams."""


def write(
    out: Path,
    rows: Sequence[Row],
    found: Mapping[str, Sequence[int]],
    errors: Mapping[str, float],
    about: Mapping[str, str],
    facts: Mapping[str, Any],
    command: str,
    plot: bool,
) -> Path:
    """Write serve.csv, serve.md and serve.png; the Markdown's path.

    Args:
        rows: of the wanted numbers of clients (part `row`) and of the search (part `search`).
        found: contender -> streams held in real time, in each repetition of the search.
        errors: contender -> its word errors against ours in fp32, each utterance alone, as a fraction.
        about: contender -> its settings.
        facts: of the run.
    """
    place = _environment(command)
    _write_csv(out / "serve.csv", rows, {**facts, **place})
    lines = _head("serve", place, facts)
    lines += [f"- {name}: {text}" for name, text in about.items()]
    lines += ["", _ABOUT, ""]
    lines += _table([row for row in rows if row["part"] == "row"])
    lines += ["", "| contender | streams in real time | MB a stream | word errors against ours |", "|---|--:|--:|--:|"]
    for name in about:
        slope = verdict.rss_per_stream([row for row in rows if row["contender"] == name and row["part"] == "row"])
        memory = "not measured" if slope is None else f"{slope:.2f}"
        differ = f"{100 * errors[name]:.2f} %" if errors[name] else "none"
        lines.append(f"| {name} | {_median_of(found.get(name, ()), '.0f')} | {memory} | {differ} |")
    lines += ["", *_ratios(found)]
    if search := [row for row in rows if row["part"] == "search"]:
        lines += ["The searches, to within a sixteenth, contenders in turn:", "", *_table(search), ""]
    lines += ["![latency against clients](serve.png)"] if plot else []
    if plot:
        _plot(out / "serve.png", rows, facts["bound_ms"])
    return _write(out / "serve.md", lines)


def write_hostile(out: Path, rows: Sequence[Row], facts: Mapping[str, Any], command: str) -> Path:
    """Write serve_hostile.csv and serve_hostile.md; the Markdown's path."""
    place = _environment(command)
    flat = [row | {"outcomes": "; ".join(f"{n} {name}" for name, n in row["outcomes"].items())} for row in rows]
    _write_csv(out / "serve_hostile.csv", flat, {**facts, **place})
    head = "phase | texts right | chunk ms p50 | p95 | p99 | final ms p50 | p99 | MB before | most | after"
    lines = _head("serve --hostile", place, facts)
    lines += [
        "",
        "Healthy clients, one stream each in real time, alone and beside hostile ones: half-open connections, garbage",
        "frames, 1 GB messages, whole and in fragments, readers that do not read, ten times too many connections, and",
        "disconnects amid a message, all at once, again and again, from a process of their own on the same cores, at",
        "the lowest priority.",
        "",
        f"| {head} | streams left |",
        "|---|" + "--:|" * 10,
    ]
    for row in rows:
        latencies = [row[f"chunk_ms_p{q}"] for q in (50, 95, 99)] + [row[f"final_ms_p{q}"] for q in (50, 99)]
        memory = [row[f"rss_{name}_mb"] for name in ("before", "most", "after")]
        cells = [row["phase"], f"{row['texts_right']} of {row['clients']}", *(f"{value:.0f}" for value in latencies)]
        lines.append(f"| {' | '.join([*cells, *(f'{value:.1f}' for value in memory), str(row['streams_left'])])} |")
    lines += ["", "What became of the hostile clients:", ""]
    for row in rows:
        if row["outcomes"]:
            words = ", ".join(f"{name} ({number})" for name, number in row["outcomes"].items())
            lines.append(f"- {row['phase']}, {row['hostile_cpu_percent']:.0f} % of a core: {words}")
    return _write(out / "serve_hostile.md", lines)


def write_sizing(out: Path, rows: Sequence[Row], seconds: float, command: str) -> Path:
    """Write sizing.md, of rows as `sizing` has them; the Markdown's path."""
    place = _environment(command)
    lines = ["# sizing", "", f"{place['machine']}; {place['versions']}; {place['date']}.", "", f"    {command}", ""]
    head = "model | chunk | left context | instructions | cores | streams | streams a core | server MB | worker MB"
    lines += [f"| {head} | MB a stream | listening after s |", "|---|--:|--:|---|" + "--:|" * 7]
    for row in rows:
        each = float(row["streams"]) / float(row["cores"])
        memory = [_number(row.get(name), digits) for name, digits in _SIZING_MEMORY]
        cells = [*(row[name] for name in ("model", "chunk", "left_context", "instruction_set", "cores", "streams"))]
        cells += [f"{each:.0f}", *memory, _number(row["start_seconds"], 1)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", _SIZING_ABOUT.format(seconds=seconds)]
    return _write(out / "sizing.md", lines)


def _number(value: Any, digits: int) -> str:
    return "" if value in (None, "") else f"{float(value):.{digits}f}"


def _environment(command: str) -> dict[str, str]:
    """What a figure depends on besides the code."""
    machine = f"{os.cpu_count()} CPU cores ({processor()}, {instruction_set()})"
    return kernels_environment("cpu", command) | {"machine": machine}


def _head(title: str, place: Mapping[str, str], facts: Mapping[str, Any]) -> list[str]:
    bound = f"bound {facts['bound_ms']:g} ms"
    told = f"model {facts['model']}, {facts['context']}, {bound}, packets of {facts['packets_ms']} ms"
    return [
        f"# {title}",
        "",
        f"{place['machine']}, servers with {facts['threads']} threads, load average {place['load']} after; "
        f"{place['versions']}; {place['date']}.",
        f"{told}; {facts['cores']}.",
        "",
        f"    {place['command']}",
        "",
    ]


def _table(rows: Sequence[Row]) -> list[str]:
    head = "contender | clients | chunk ms p50 | p95 | p99 | final ms p50 | p95 | p99 | chunks | texts right"
    more = "server CPU | ms of it a chunk | server MB | PSS | clients' CPU | real time"
    lines = [f"| {head} | {more} |", "|---|" + "--:|" * 14 + "---|"]
    for row in rows:
        cells = [row["contender"], str(row["clients"])]
        cells += [f"{row[f'{what}_ms_p{q}']:.0f}" for what in ("chunk", "final") for q in verdict.QUANTILES]
        cells += [str(row["chunks"]), f"{row['streams_compared'] - row['texts_wrong']} of {row['streams_compared']}"]
        cells += [f"{row['server_cpu_percent']:.0f} %", f"{row['server_cpu_ms_per_chunk']:.1f}"]
        cells += [f"{row['server_rss_mb']:.0f}", f"{row['server_pss_mb']:.0f}"]
        cells += [f"{row['client_cpu_percent']:.0f} %", f"no: {row['note']}" if row["note"] else "yes"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ratios(found: Mapping[str, Sequence[int]]) -> list[str]:
    """How many more streams our servers hold than the stock one."""
    own = [name for name in found if name != "sherpa"] if "sherpa" in found else []
    ratios = {name: verdict.paired_ratios(found[name], found["sherpa"]) for name in own}
    lines = [f"- {name}: {_median_of(each, '.2f')} x the streams of sherpa" for name, each in ratios.items() if each]
    return [*lines, ""] if lines else []


def _median_of(values: Sequence[float], form: str) -> str:
    """With the values themselves where they are several."""
    if not values:
        return "not measured"
    middle = f"{statistics.median(values):{form}}"
    return middle if len(values) == 1 else f"{middle} ({', '.join(f'{value:{form}}' for value in values)})"


def _write_csv(path: Path, rows: Sequence[Row], facts: Mapping[str, Any]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *facts], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **facts} for row in rows)


def _write(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _plot(path: Path, rows: Sequence[Row], bound_ms: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for i, name in enumerate(dict.fromkeys(row["contender"] for row in rows)):
        own = sorted((row for row in rows if row["contender"] == name), key=lambda row: row["clients"])
        clients = [row["clients"] for row in own]
        for q, style in ((50, ":"), (99, "-")):
            axes[0].plot(
                clients, [row[f"chunk_ms_p{q}"] for row in own], style, color=f"C{i}", marker="o", label=f"{name}, p{q}"
            )
        axes[1].plot(clients, [row["server_cpu_percent"] for row in own], color=f"C{i}", marker="o", label=name)
    axes[0].axhline(bound_ms, color="grey", linewidth=0.8)
    axes[0].set(xlabel="clients", ylabel="chunk latency, ms", yscale="log")
    axes[1].set(xlabel="clients", ylabel="server CPU, % of one core")
    for one in axes:
        one.grid(alpha=0.3)
        one.legend(fontsize=7)
    figure.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(figure)
