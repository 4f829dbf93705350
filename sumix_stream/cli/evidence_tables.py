"""Answers of egs/evidence in Markdown and SVG: of what was measured alone; a row without a measure says so."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from sumix_stream.checkpoint.layout import resolve_checkpoint
from sumix_stream.cli.evidence import Job, report, trained
from sumix_stream.report.chart import Series, line_chart
from sumix_stream.report.records import RunRecords
from sumix_stream.train.ablation import Variation

MISSING = "not measured"
TITLES = {
    "latency": "Latency against accuracy",
    "functions": "Choice of summary and local functions",
    "chunks": "Sensitivity of dynamic chunk training",
    "length": "Length",
    "across": "Across data",
}
_STYLE = (
    "<style>path{fill:none;stroke-width:1.5}.grid{stroke:#8884}text{font:10px sans-serif;fill:#888}"
    ".s0{stroke:#06c}.s1{stroke:#c60}.s2{stroke:#090}.s3{stroke:#a0a}.dot{stroke:none;fill:#888}</style>"
)


def rate(found: dict[str, Any]) -> float:
    """The rate that comes first, %."""
    return 100 * (found["cer"] if found["unit"] == "characters" else found["wer"])


def _cells(found: dict[str, Any] | None, why: str = MISSING) -> list[str]:
    """Error rate with interval, errors, token delay, RTF, state."""
    if found is None or why != MISSING:
        return [why, "", "", "", ""]
    interval = found["interval95"]
    between = f" ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})" if interval else ""
    errors = f"{found['substitutions']}, {found['deletions']}, {found['insertions']}"
    delay = found.get("token_delay")
    shown = f"{1000 * delay['median']:.0f} ({1000 * delay['p90']:.0f})" if delay else ""
    state = found.get("state_nbytes")
    return [f"{rate(found):.2f}{between}", errors, shown, f"{found['rtf']:.4f}", f"{state:,}" if state else ""]


_HEAD = (
    "error rate, % (95 % interval) | substitutions, deletions, insertions | token delay, median (90 %), ms | RTF | "
    "state, bytes |"
)


def latency_answer(jobs: Sequence[Job]) -> tuple[str, str]:
    """The table with a paragraph, and the plot (SVG; empty while nothing is measured)."""
    lines = [f"| context | {_HEAD}", "|---|--:|--:|--:|--:|--:|"]
    lines += [f"| {job.name} | {' | '.join(_cells(report(job)))} |" for job in jobs]
    found = [(job, measured) for job in jobs if (measured := report(job)) is not None]
    text = _latency_paragraph(found, len(jobs))
    series: dict[str, list[tuple[float, float]]] = {}
    for job, measured in found:
        chunk, _, left = job.name.partition(", left ")
        if left:
            series.setdefault(f"left {left}", []).append((float(chunk.removesuffix("ms")), rate(measured)))
    plot = chart("Error rate by chunk", series) if series else ""
    return f"{text}\n\n" + "\n".join(lines), plot


def _latency_paragraph(found: Sequence[tuple[Job, dict[str, Any]]], total: int) -> str:
    streamed = [(job, measured) for job, measured in found if measured.get("token_delay")]
    if not streamed:
        return f"Nothing is measured yet of {total} rows."
    best, least = min(streamed, key=lambda row: rate(row[1]))
    high = (least["interval95"] or (0.0, 1.0))[1]
    within = [row for row in streamed if rate(row[1]) <= 100 * high]
    quick, delays = min(within, key=lambda row: row[1]["token_delay"]["median"])
    cells, fast = _cells(least), _cells(delays)
    return (
        f"{len(found)} of {total} rows are measured. The fewest errors streaming are those of {best.name}: "
        f"{cells[0]} %. {len(within)} of the {len(streamed)} streamed contexts have no more than the upper end of that "
        f"interval; the one whose tokens appear soonest is {quick.name}: {fast[0]} %, token delay {fast[2]} ms. "
        "Intervals are bootstrapped over utterances of one model of one seed: they do not contain what another seed "
        "would make, and contexts within one interval are not told apart."
    )


def runs_answer(rows: Sequence[tuple[Variation, Sequence[Job]]]) -> str:
    """A table of tied runs, a row for each run and decoding, with the spread of seeds."""
    lines = [f"| run | seed | parameters | test | {_HEAD}", "|---|--:|--:|---|--:|--:|--:|--:|--:|"]
    by_run: dict[tuple[str, str], list[float]] = {}
    for run, jobs in rows:
        why = trained(run) or MISSING
        for job in jobs[1:]:
            found, test = report(job) if not job.captured else None, job.done.parent.name
            if job.captured:
                text = "in the file of the run" if job.is_done and why == MISSING else why
                lines.append(f"| {run.name} | {run.seed} | {_parameters(run)} | {job.name} | {text} | | | | |")
                continue
            if found is not None and why == MISSING:
                by_run.setdefault((run.name, test), []).append(rate(found))
            cells = " | ".join(_cells(found, why))
            lines.append(f"| {run.name} | {run.seed} | {_parameters(run)} | {test} | {cells} |")
    spreads = [max(rates) - min(rates) for rates in by_run.values() if len(rates) > 1]
    if not by_run:
        text = "Nothing is measured yet."
    elif not spreads:
        text = "One seed each: differences below those of two seeds of one run cannot be told from chance."
    else:
        text = f"Seeds of one run differ by up to {max(spreads):.2f} points: differences below that are none."
    return f"{text}\n\n" + "\n".join(lines)


def _parameters(run: Variation) -> str:
    try:
        starts = RunRecords.read(run.exp_dir).starts
    except ValueError:
        return ""
    number = (starts[-1].get("system") or {}).get("parameters") if starts else None
    return "" if number is None else f"{number:,}"


def chart(title: str, series: dict[str, list[tuple[float, float]]]) -> str:
    """A line chart as an SVG file, by the page's own drawing."""
    figure = line_chart(title, [Series(name, sorted(points)) for name, points in series.items()], unit="%", x_name="ms")
    svg = figure[figure.index("<svg") : figure.index("</svg>")]
    names = "".join(
        f'<path class="s{n}" d="M280 {20 + 12 * n}h14"/><text x="298" y="{23 + 12 * n}">{name}</text>'
        for n, name in enumerate(series)
    )
    head, _, rest = svg.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg">{_STYLE}{rest}{names}</svg>\n'


def model(experiment: Path) -> str:
    """A sentence on a trained model: its checkpoint, parameters and code, as far as its run has noted them."""
    step = resolve_checkpoint(experiment).name
    try:
        starts = RunRecords.read(experiment).starts
    except ValueError:
        starts = []
    system = (starts[-1].get("system") or {}) if starts else {}
    size = f", {system['parameters']:,} parameters" if "parameters" in system else ""
    code = f", trained by code of {system['commit']}" if system.get("commit") else ""
    return f"Model: {step}{size}{code}. "


def provenance(command: str, about: str) -> str:
    """Machine with its instruction set, versions, date and command."""
    import torch

    from sumix_stream import __version__

    machine = (
        f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s)"
    )
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, sumix-stream {__version__}"
    return f"    {command}\n\n{about}{machine}; {versions}; {date.today().isoformat()}."


def write_answer(folder: Path, question: str, text: str, plot: str, footer: str) -> Path:
    """`evidence-QUESTION.md`, and its plot beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"evidence-{question}.md"
    parts = [f"# {TITLES[question]}", text]
    if plot:
        (folder / f"evidence-{question}.svg").write_text(plot, encoding="utf-8")
        parts.append(f"![error rate by chunk](evidence-{question}.svg)")
    page.write_text("\n\n".join([*parts, footer]) + "\n", encoding="utf-8")
    return page
