"""What a run writes for people and for programs: progress bar, train.log, metrics.jsonl, runs.jsonl, TensorBoard."""

import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from tqdm import tqdm

from sumix_stream.report.records import RUNS, VALIDATION
from sumix_stream.tasks.base import Validation
from sumix_stream.tasks.checkpoint import write_text_atomically
from sumix_stream.train.measures import Interval, StepReport

LOGGER = logging.getLogger("sumix_stream")


class RunLog:
    """Progress bar, train.log, TensorBoard and, for the run's page, metrics.jsonl (a line a step), runs.jsonl (a line
    each time training starts) and valid.json (the last validation).

    Only the first process writes files and the bar; the others print warnings, with their rank.

    Args:
        exp_dir: made if it is missing.
        step: steps already done; later lines of an interrupted run are taken out.
        unusable: why an utterance may be left out of the loss.
    """

    def __init__(self, exp_dir: Path, fabric: Fabric, *, step: int, max_steps: int, unusable: str) -> None:
        self._unusable = unusable
        self._main = fabric.is_global_zero
        self._loss_scaled = bool(fabric.strategy.precision.state_dict())
        self._handlers = [_console(fabric.global_rank)]
        self._exp_dir = exp_dir
        self._bar = self._metrics = self.board = None
        if self._main:
            from torch.utils.tensorboard import SummaryWriter

            exp_dir.mkdir(parents=True, exist_ok=True)
            self._handlers.append(_text_log(exp_dir / "train.log"))
            metrics = exp_dir / "metrics.jsonl"
            write_text_atomically(metrics, _lines_up_to(metrics, step))
            self._metrics = metrics.open("a", encoding="utf-8")
            self.board = SummaryWriter(str(exp_dir / "tensorboard"), purge_step=step + 1)
            self._bar = tqdm(total=max_steps, initial=step, unit="step", dynamic_ncols=True, disable=None)
        self._level, self._propagate = LOGGER.level, LOGGER.propagate
        LOGGER.setLevel(logging.INFO)
        if self._propagate:
            LOGGER.propagate = False
            self._handlers.append(_ToRoot())
        for handler in self._handlers:
            LOGGER.addHandler(handler)

    def advance(self) -> None:
        """Move the bar by a step."""
        if self._bar is not None:
            self._bar.update()

    def started(self, step: int, recipe: Mapping[str, Any], changes: Iterable[str], system: Mapping[str, Any]) -> None:
        """Note that training starts or goes on after `step`, with which settings and where."""
        if self._main:
            line = {"step": step, "time": time.time(), "changes": list(changes), "system": system, "recipe": recipe}
            with (self._exp_dir / RUNS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def steps(self, reports: Sequence[StepReport], max_steps: int) -> None:
        """Write the reports of an interval."""
        for report in reports:
            self._complain(report)
        if not self._main or not reports:
            return
        for report in reports:
            line = {key: value for key, value in asdict(report).items() if key != "ids" and value not in ([], None)}
            self._write(_finite_or_none(line))
        self._metrics.flush()
        last, interval = reports[-1], reports[-1].interval
        good = [report for report in reports if not report.skipped]
        means = {}
        if good:
            measures = [{"loss": report.loss, **report.parts, "grad_norm": report.grad_norm} for report in good]
            means = {name: sum(measure[name] for measure in measures) / len(good) for name in measures[0]}
        scalars = {f"train/{name}": value for name, value in means.items()}
        scalars |= {"train/learning_rate": last.learning_rate, "train/skipped_steps": len(reports) - len(good)}
        scalars["context/full_fraction"] = sum(report.context == "full" for report in reports) / len(reports)
        scalars |= _interval_scalars(interval)
        for name, value in scalars.items():
            self.board.add_scalar(name, value, last.step)
        self.board.add_text("context/last", last.context, last.step)
        loss, speed = means.get("loss", math.nan), interval.audio_hours_per_hour
        self._bar.set_postfix_str(f"loss {loss:.3f}, {speed:.0f} audio h/h, lr {last.learning_rate:.1e}")
        eta = interval.step_seconds["max"] * (max_steps - last.step)
        parts = ", ".join(f"{name} {means.get(name, math.nan):.3f}" for name in last.parts)
        LOGGER.info(
            f"step {last.step}/{max_steps}: loss {loss:.4f} ({parts}), lr {last.learning_rate:.2e}, "
            f"gradient {means.get('grad_norm', math.nan):.2f}, {speed:.0f} audio hours/hour, "
            f"waiting for data {interval.wait_share['max']:.0%}, ETA {_clock_time(eta)}",
            extra={"in_bar": not self._bar.disable},
        )

    def validation(self, step: int, result: Validation) -> None:
        """Write a validation's measures and summary and, where it has them, its `losses` and `word_errors`, or those of
        each of its `sets`."""
        if not self._main:
            return
        metrics = {name: float(value) for name, value in result.metrics.items()}
        losses = {name: float(value) for name, value in (getattr(result, "losses", None) or {}).items()}
        line = {"step": step, "valid": metrics} | ({"valid_losses": _finite_or_none(losses)} if losses else {})
        self._write(line)
        self._metrics.flush()
        for name, value in (metrics | losses).items():
            self.board.add_scalar(f"valid/{name}", value, step)
        for name, one in (getattr(result, "sets", None) or {"": result}).items():
            of_set = f"{name}: " if name else ""
            LOGGER.info(f"step {step}: validation {of_set}{one.summary().replace(chr(10), '; ')}")
        if errors := _word_errors(result):
            content = {"step": step, **errors[0], **({"others": errors[1:]} if errors[1:] else {})}
            write_text_atomically(self._exp_dir / VALIDATION, json.dumps(content, ensure_ascii=False) + "\n")

    def close(self) -> None:
        LOGGER.setLevel(self._level)
        LOGGER.propagate = self._propagate
        for handler in self._handlers:
            LOGGER.removeHandler(handler)
            handler.close()
        for writer in (self._bar, self._metrics, self.board):
            if writer is not None:
                writer.close()

    def _complain(self, report: StepReport) -> None:
        if report.unusable_ids:
            LOGGER.warning(f"step {report.step}: left out, {self._unusable}: {_listed(report.unusable_ids)}")
        if report.skipped and math.isfinite(report.loss) and self._loss_scaled:
            LOGGER.info(f"step {report.step}: update skipped, fp16 gradient overflow; the loss scale is halved")
        elif report.skipped and math.isfinite(report.loss):
            LOGGER.warning(
                f"step {report.step}: update skipped, gradient not finite (loss {report.loss:.3f}), batch of "
                f"{_listed(report.ids)}"
            )
        elif report.skipped:
            culprits = f"of {_listed(report.bad_ids)}" if report.bad_ids else "on another process"
            LOGGER.warning(f"step {report.step}: update skipped, loss {culprits} is not finite")

    def _write(self, line: dict[str, Any]) -> None:
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")


def _word_errors(result: Validation) -> list[dict[str, Any]]:
    """Of a validation, or of each of its sets that has them, with its name."""
    if (sets := getattr(result, "sets", None)) is not None:
        return [{"set": name, **found} for name, one in sets.items() for found in _word_errors(one)]
    found = getattr(result, "word_errors", None)
    return [] if found is None else [found.to_dict()]


class _AboveBar(logging.Handler):
    """Prints above the progress bar what the bar does not show itself."""

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "in_bar", False):
            tqdm.write(self.format(record), file=sys.stderr)


class _ToRoot(logging.Handler):
    """Hands records on to the root logger's handlers, but to those that print: the console has them already.

    A library that logs through the root logger gives it such a handler, at any time, and every line came twice.
    """

    def emit(self, record: logging.LogRecord) -> None:
        for handler in logging.getLogger().handlers:
            if record.levelno >= handler.level and not self._prints(handler):
                handler.handle(record)

    @staticmethod
    def _prints(handler: logging.Handler) -> bool:
        console = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
        stream = getattr(handler, "stream", None)
        package = type(handler).__module__.partition(".")[0]
        return any(stream is one for one in console if one is not None) or package in ("absl", "rich")


def _console(rank: int) -> logging.Handler:
    handler = _AboveBar(logging.INFO if rank == 0 else logging.WARNING)
    handler.setFormatter(logging.Formatter("%(message)s" if rank == 0 else f"rank {rank}: %(message)s"))
    return handler


def _text_log(path: Path) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


def _lines_up_to(path: Path, step: int) -> str:
    if not path.exists():
        return ""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # the line a killed run was writing
    return "".join(kept)


def _interval_scalars(interval: Interval) -> dict[str, float]:
    """What TensorBoard shows of an interval."""
    scalars = {
        "speed/audio_hours_per_hour": interval.audio_hours_per_hour,
        "speed/padding_share": interval.padding_share,
        "speed/slowest_rank": interval.slowest_rank,
        "memory/gpu_GiB": interval.gpu_bytes / 2**30,
        "memory/host_GiB": interval.host_bytes / 2**30,
    }
    for kind in ("min", "mean", "max"):
        scalars[f"speed/step_seconds_{kind}"] = interval.step_seconds[kind]
        scalars[f"speed/loader_wait_share_{kind}"] = interval.wait_share[kind]
    for name, (gradient, weights, update) in interval.modules.items():
        scalars[f"gradient/{name}"] = gradient
        scalars[f"update_to_weight/{name}"] = update / weights if weights else 0.0
    return scalars


def _finite_or_none(value: Any) -> Any:
    """The same plain values, with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _listed(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _clock_time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
