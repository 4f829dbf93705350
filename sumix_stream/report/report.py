"""The page of a run, `report.html` in its directory: made from what the run wrote, at any time, by whoever asks."""

import time
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from sumix_stream.report.chart import Series, figure, line_chart
from sumix_stream.report.page import alignment, details, facts, page, section, table
from sumix_stream.report.picture_figures import picture_figures
from sumix_stream.report.players import audio_of
from sumix_stream.report.records import RunRecords
from sumix_stream.tasks.checkpoint import write_text_atomically
from sumix_stream.timebase import format_duration

REPORT = "report.html"
MOST_UTTERANCES = 8  # with most errors, of each set


def write_report(exp_dir: Path | str, *, players: bool = True) -> Path:
    """Write `report.html` into an experiment's directory; its path.

    Args:
        players: put the audio of the utterances with most errors into the page (some hundred kB each).
    Raises:
        ValueError: no run has begun there.
        CheckpointError: the page cannot be written.
    """
    run = RunRecords.read(exp_dir)
    path = Path(exp_dir) / REPORT
    write_text_atomically(path, build_report(run, players=players))
    return path


def build_report(run: RunRecords, *, players: bool = True) -> str:
    """The page as text. Everything that people or data gave a name to is escaped."""
    name = run.exp_dir.resolve().name
    parts = {
        "Curves": _curves(run),
        "Parts of the model": _module_curves(run),
        "Speed and memory": _machine_curves(run),
        "Word error rate by context": _error_table(run),
        "Utterances with most errors": _worst_utterances(run, players),
        "What is heard, and where the tokens lie": picture_figures(run),
        "Settings": _settings(run),
        "System": _system(run),
    }
    sections = [(title, content) for title, made in parts.items() if (content := list(made))]
    links = "".join(f'<a href="#part{number}">{escape(title)}</a>' for number, (title, _) in enumerate(sections))
    body = [f"<h1>{escape(name)}</h1>", f'<p class="soft">{escape(_state(run))}</p>', facts(_headline(run))]
    body.append(f"<nav>{links}</nav>")
    body += [section(f"part{number}", title, content) for number, (title, content) in enumerate(sections)]
    return page(f"{name}: training", body)


def _state(run: RunRecords) -> str:
    last = run.steps[-1]["step"] if run.steps else 0
    goal = (run.recipe.get("train") or {}).get("max_steps")
    done = f"step {last}" + (f" of {goal}" if goal else "")
    return f"{done}; page written {_clock(time.time())}"


def _headline(run: RunRecords) -> Iterator[tuple[str, str]]:
    if run.measured:
        name = _measure_name(run.best_by)
        best_step, best = min(run.measured, key=lambda item: (item[1], -item[0]))
        yield f"lowest validation {name}, step {best_step}", _percent(best)
        yield f"last validation {name}, step {run.measured[-1][0]}", _percent(run.measured[-1][1])
    if not run.steps:
        yield "steps", "0"
        return
    last = run.steps[-1]
    yield f"loss, step {last['step']}", _number(last["loss"])
    yield "learning rate", _number(last["learning_rate"])
    yield "hours of audio", _number(sum(step["seconds"] for step in run.steps) / 3600)
    yield "updates left out", str(sum(bool(step["skipped"]) for step in run.steps))
    if intervals := _intervals(run):
        yield "audio hours an hour", _number(intervals[-1][1]["audio_hours_per_hour"])


def _curves(run: RunRecords) -> Iterator[str]:
    def series(name: str, key: str) -> Series:
        return Series(name, [(step["step"], step[key]) for step in run.steps if key in step and not step["skipped"]])

    names = list(run.steps[-1]["parts"]) if run.steps else []
    good = [step for step in run.steps if not step["skipped"]]
    parts = [Series(name, [(s["step"], s["parts"][name]) for s in good if name in s["parts"]]) for name in names]
    measures = list({name: None for _, found in reversed(run.validations) for name in found}) or ["wer"]
    validation = [
        Series(_measure_name(name), [(step, 100 * found[name]) for step, found in run.validations if name in found])
        for name in measures
    ]
    losses = {name: None for _, found in reversed(run.valid_losses) for name in found if _is_total(name)}
    held_out = [
        Series(_measure_name(name), [(s, v) for s, found in run.valid_losses if (v := found.get(name)) is not None])
        for name in losses
    ]
    nats = "nats an encoder frame"
    yield _grid(
        line_chart("Loss", [series("total", "loss")], unit=nats),
        line_chart("Loss by part", parts, unit=nats),
        line_chart("Validation", validation, unit="%"),
        *([line_chart("Validation loss", held_out, unit=nats)] if held_out else []),
        line_chart("Learning rate", [series("of the step", "learning_rate")]),
        line_chart("Gradient", [series("norm before clipping", "grad_norm")], log=True),
    )
    if run.validations:
        rows = [(str(step), *(_percent(found.get(name)) for name in measures)) for step, found in run.validations]
        head = ("step", *map(_measure_name, measures))
        yield details(f"{len(rows)} validations", table(head, rows, text_columns=0))


def _measure_name(name: str) -> str:
    """`digits/wer` -> `WER, digits`."""
    name, _, measure = name.rpartition("/")
    measure = {"wer": "WER", "cer": "CER"}.get(measure, measure.replace("_", " "))
    return f"{measure}, {name}" if name else measure


def _is_total(loss: str) -> bool:
    return loss.rpartition("/")[2] == "loss"


def _module_curves(run: RunRecords) -> Iterator[str]:
    """Gradient and relative update of each part, the encoder's layers in a chart of their own."""
    measured = [(step, interval["modules"]) for step, interval in _intervals(run) if interval.get("modules")]
    if not measured:
        return
    names = list(measured[-1][1])
    layers = [name for name in names if ".layers." in name]
    others = [name for name in names if name not in layers]

    def chart(title: str, chosen: list[str], value: Callable[[list], float | None]) -> str:
        lines = [
            Series(
                name.removeprefix("encoder.").replace("layers.", "layer "),
                [(step, value(modules[name])) for step, modules in measured if name in modules],
            )
            for name in chosen
        ]
        return line_chart(title, lines, log=True)

    charts = []
    for title, chosen in (("encoder layers", layers), ("other parts", others)):
        if chosen:
            charts.append(chart(f"Gradient norm, {title}", chosen, lambda norms: norms[0]))
            charts.append(chart(f"Update to weight, {title}", chosen, _update_ratio))
    yield _grid(*charts)
    yield '<p class="soft">Before clipping, of one step in each interval of the log. A ratio near 1e-3 is usual.</p>'


def _update_ratio(norms: list[float | None]) -> float | None:
    _, weights, update = norms
    return update / weights if weights and update is not None else None


def _machine_curves(run: RunRecords) -> Iterator[str]:
    intervals = _intervals(run)
    if not intervals:
        return

    def line(name: str, value: Callable[[dict], float]) -> Series:
        return Series(name, [(step, value(interval)) for step, interval in intervals])

    yield _grid(
        line_chart("Speed", [line("audio hours an hour", lambda i: i["audio_hours_per_hour"])]),
        line_chart(
            "Time of a step, by process",
            [line(name, lambda i, kind=kind: i["step_seconds"][kind]) for name, kind in _SPREAD],
            unit="seconds",
        ),
        line_chart(
            "Waiting for data, by process",
            [line(name, lambda i, kind=kind: 100 * i["wait_share"][kind]) for name, kind in _SPREAD],
            unit="% of the time",
        ),
        line_chart("Padding", [line("padding", lambda i: 100 * i["padding_share"])], unit="% of feature frames"),
        line_chart(
            "Memory, most of a process",
            [line("GPU", lambda i: i["gpu_bytes"] / 2**30), line("host", lambda i: i["host_bytes"] / 2**30)],
            unit="GiB",
        ),
    )


_SPREAD = (("least", "min"), ("mean", "mean"), ("most", "max"))


def _error_table(run: RunRecords) -> Iterator[str]:
    """A row for each report of bin/decode and bin/stream_decode, by set and context."""
    if not run.decoded:
        return
    head = ("set", "report", "chunk", "left chunks", "WER", "CER", "95 % interval", "S", "D", "I", "of", "RTF", "final")
    rows = []
    for decoded in run.decoded:
        content, chunk = decoded.content, decoded.content.get("chunk_size")
        low_high = content.get("interval95")
        final = (content.get("final") or {}).get("median")
        seconds = None if chunk is None else run.timebase.encoder_frame_time(chunk)
        rows.append(
            (
                (Path(decoded.cuts).name.split(".")[0], chunk or 10**9, _left(content, 10**9), decoded.name),
                (
                    Path(decoded.cuts).name.split(".")[0],
                    decoded.name,
                    "full" if seconds is None else format_duration(seconds),
                    "all" if _left(content, None) is None else str(content["left_context"]),
                    _percent(content.get("wer")),
                    _percent(content.get("cer")),
                    f"{_percent(low_high[0])} to {_percent(low_high[1])}" if low_high else "",
                    *(str(content.get(key, "")) for key in ("substitutions", "deletions", "insertions")),
                    f"{content.get(_unit(content), '')} {_unit(content)}",
                    _number(content.get("rtf")),
                    "" if final is None else format_duration(round(final, 3)),
                ),
            )
        )
    yield table(head, [row for _, row in sorted(rows)], text_columns=2)
    yield '<p class="soft">S, D, I: substituted, deleted, inserted; these and the interval are of words, or of'
    yield " characters where the script writes no spaces. RTF: computing time for each second of audio."
    yield " Final: median time from the last sample to the final text.</p>"


def _unit(content: dict[str, Any]) -> str:
    return content.get("unit", "words")  # version 0.1 counted nothing else


def _rate(content: dict[str, Any]) -> float:
    """The error rate that comes first."""
    return content.get("cer" if _unit(content) == "characters" else "wer") or 0.0


def _left(content: dict[str, Any], unlimited: int | None) -> int | None:
    left = content.get("left_context")
    return unlimited if left is None else left


def _worst_utterances(run: RunRecords, players: bool) -> Iterator[str]:
    """Of the last validation, and of the lowest error rate reported on each other set."""
    sets: list[tuple[str, list[str], dict[str, Any]]] = []
    for found in (run.validation, *run.validation.get("others", ())):
        if found.get("utterances"):
            name = found.get("set", "")
            title = f"Validation{f' {name}' if name else ''}, step {run.validation.get('step')}"
            sets.append((title, run.valid_cuts(name), found))
    best: dict[str, Any] = {}
    for decoded in run.decoded:
        if decoded.cuts not in best or _rate(decoded.content) < _rate(best[decoded.cuts].content):
            best[decoded.cuts] = decoded
    sets += [(decoded.name, [cuts] if cuts else [], decoded.content) for cuts, decoded in best.items()]
    for title, manifests, content in sets:
        utterances = content["utterances"]
        wrong = [utterance for utterance in utterances if utterance.get("errors")]
        worst = sorted(wrong, key=lambda u: (-u["errors"], len(u["pairs"]), u["id"]))[:MOST_UTTERANCES]
        yield f"<h3>{escape(title)}</h3>"
        yield f'<p class="soft">{len(wrong)} of {len(utterances)} utterances have errors.</p>'
        audio = audio_of(manifests, [utterance["id"] for utterance in worst]) if players else {}
        yield from (_utterance(utterance, _unit(content), audio.get(utterance["id"])) for utterance in worst)


def _utterance(utterance: dict[str, Any], unit: str, audio: str | None) -> str:
    units = sum(reference is not None for reference, _ in utterance["pairs"])
    player = f'<audio controls preload="none" src="{escape(audio)}"></audio>' if audio else ""
    counts = f"{utterance['errors']} error(s) in {units} {unit}"
    head = f"<header><b>{escape(str(utterance['id']))}</b><span>{counts}</span>{player}</header>"
    return f'<article class="utterance">{head}{alignment(utterance["pairs"])}</article>'


def _settings(run: RunRecords) -> Iterator[str]:
    if not run.starts:
        return
    rows = [
        (
            _clock(start["time"]),
            "; ".join(start["changes"]) or ("" if start["step"] else "the beginning"),
            str(start["step"]),
        )
        for start in run.starts
    ]
    yield table(("started", "settings changed", "after step"), rows, text_columns=2, wrap=True)
    flat = [(key, _plain(value)) for key, value in _flat(run.recipe)]
    yield details(f"{len(flat)} settings", table(("setting", "value"), flat, text_columns=2, wrap=True))


def _system(run: RunRecords) -> Iterator[str]:
    if run.starts and run.starts[-1].get("system"):
        rows = [(key, _plain(value)) for key, value in run.starts[-1]["system"].items()]
        yield table(("what", "value"), rows, text_columns=2, wrap=True)


def _intervals(run: RunRecords) -> list[tuple[int, dict[str, Any]]]:
    return [(step["step"], step["interval"]) for step in run.steps if step.get("interval")]


def _grid(*charts: str) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> str:
    return "unset" if value is None else str(value)


def _number(value: float | None) -> str:
    return "not finite" if value is None else figure(value)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
