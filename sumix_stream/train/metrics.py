"""Measures of a run: gathered on the device, fetched once an interval, written for people and for programs."""

import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from sumix_stream.losses.transducer import TransducerLoss
from sumix_stream.model.checkpoint import write_text_atomically

LOGGER = logging.getLogger("sumix_stream")


@dataclass(frozen=True)
class StepReport:
    """One training step, over all processes and accumulated batches. Losses in nats for each encoder frame."""

    step: int  # counted from 1: steps done after it
    loss: float
    simple: float
    pruned: float
    ctc: float
    grad_norm: float  # before clipping
    skipped: bool  # the update was left out: a loss or gradient was not finite
    seconds: float  # of audio
    learning_rate: float
    context: str
    bad_ids: list[str] = field(default_factory=list)  # of this process: utterances whose loss is not finite
    no_path_ids: list[str] = field(default_factory=list)  # of this process: utterances without an alignment
    ids: list[str] = field(default_factory=list)  # of this process: all


@dataclass
class _Pending:
    step: int
    values: list[Tensor]  # loss of each batch, then sums; scalars on the device
    flags: list[Tensor]  # (2, B) bool of each batch: loss not finite, no path
    ids: list[str]
    seconds: float
    learning_rate: float
    context: str


class StepBuffer:
    """Measures of the steps since the last fetch. `add` leaves the device alone; `fetch` waits for it, once."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._pending: list[_Pending] = []

    def add(
        self,
        step: int,
        losses: Sequence[TransducerLoss],
        ids: Sequence[str],
        *,
        grad_norm: Tensor,
        skipped: Tensor,
        seconds: float,
        learning_rate: float,
        context: str,
    ) -> None:
        sums = [
            sum(part.detach() for part in parts)
            for parts in (
                [loss.total / len(losses) for loss in losses],
                [loss.simple.sum() for loss in losses],
                [loss.pruned.sum() for loss in losses],
                [loss.ctc.sum() for loss in losses],
                [loss.num_frames for loss in losses],
            )
        ]
        flags = [
            torch.stack([~(loss.simple + loss.pruned + loss.ctc).detach().isfinite(), ~loss.has_path])
            for loss in losses
        ]
        values = [*sums, grad_norm, skipped]
        self._pending.append(_Pending(step, values, flags, list(ids), seconds, learning_rate, context))

    def fetch(self) -> list[StepReport]:
        """The reports of the steps since the last call, in order. Called by every process at the same steps."""
        pending, self._pending = self._pending, []
        if not pending:
            return []
        device = self._fabric.device
        table = torch.stack([torch.stack([value.float() for value in item.values]) for item in pending])
        table = torch.cat([table, torch.tensor([[item.seconds] for item in pending], device=device)], dim=1)
        world = self._fabric.world_size
        if world > 1:
            table = self._fabric.all_reduce(table, reduce_op="sum")
        rows = table.double().tolist()
        flags = torch.cat([flag for item in pending for flag in item.flags], dim=1).tolist()
        reports, start = [], 0
        for item, (loss, simple, pruned, ctc, frames, grad_norm, skipped, seconds) in zip(pending, rows, strict=True):
            frames = max(frames, 1.0)
            not_finite, no_path = (row[start : start + len(item.ids)] for row in flags)
            start += len(item.ids)
            reports.append(
                StepReport(
                    step=item.step,
                    loss=loss / world,
                    simple=simple / frames,
                    pruned=pruned / frames,
                    ctc=ctc / frames,
                    grad_norm=grad_norm / world,
                    skipped=skipped > 0,
                    seconds=seconds,
                    learning_rate=item.learning_rate,
                    context=item.context,
                    bad_ids=[name for name, bad in zip(item.ids, not_finite, strict=True) if bad],
                    no_path_ids=[name for name, lost in zip(item.ids, no_path, strict=True) if lost],
                    ids=item.ids,
                )
            )
        return reports


class RunLog:
    """Progress bar, train.log, metrics.jsonl (one line a step) and TensorBoard of one run.

    Only the first process writes files and the bar; the others print warnings, with their rank.

    Args:
        exp_dir: made if it is missing.
        step: steps already done; later lines of an interrupted run are taken out.
    """

    def __init__(self, exp_dir: Path, fabric: Fabric, *, step: int, max_steps: int) -> None:
        self._main = fabric.is_global_zero
        self._loss_scaled = bool(fabric.strategy.precision.state_dict())
        self._handlers = [_console(fabric.global_rank)]
        self._clock = time.perf_counter()
        self._bar = self._metrics = self._board = None
        if self._main:
            from torch.utils.tensorboard import SummaryWriter

            exp_dir.mkdir(parents=True, exist_ok=True)
            self._handlers.append(_text_log(exp_dir / "train.log"))
            metrics = exp_dir / "metrics.jsonl"
            write_text_atomically(metrics, _lines_up_to(metrics, step))
            self._metrics = metrics.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(exp_dir / "tensorboard"), purge_step=step + 1)
            self._bar = tqdm(total=max_steps, initial=step, unit="step", dynamic_ncols=True, disable=None)
        self._level = LOGGER.level
        LOGGER.setLevel(logging.INFO)
        for handler in self._handlers:
            LOGGER.addHandler(handler)

    def advance(self) -> None:
        """Move the bar by a step."""
        if self._bar is not None:
            self._bar.update()

    def restart_clock(self) -> None:
        """Leave the time until now out of the speed (validation, saving)."""
        self._clock = time.perf_counter()

    def steps(self, reports: Sequence[StepReport], max_steps: int) -> None:
        """Write the reports of an interval."""
        elapsed, self._clock = time.perf_counter() - self._clock, time.perf_counter()
        for report in reports:
            self._complain(report)
        good = [report for report in reports if not report.skipped]
        if not self._main or not reports:
            return
        for report in reports:
            line = {key: value for key, value in asdict(report).items() if key != "ids" and value != []}
            self._write({key: _finite_or_none(value) for key, value in line.items()})
        self._metrics.flush()
        last = reports[-1]
        speed = sum(report.seconds for report in reports) / max(elapsed, 1e-9)
        means = {
            name: sum(getattr(report, name) for report in good) / len(good)
            for name in ("loss", "simple", "pruned", "ctc", "grad_norm")
            if good
        }
        scalars = {f"train/{name}": value for name, value in means.items()}
        scalars |= {"train/learning_rate": last.learning_rate, "train/audio_hours_per_hour": speed}
        scalars["train/skipped_steps"] = len(reports) - len(good)
        scalars["context/full_fraction"] = sum(report.context == "full" for report in reports) / len(reports)
        for name, value in scalars.items():
            self._board.add_scalar(name, value, last.step)
        self._board.add_text("context/last", last.context, last.step)
        loss = means.get("loss", math.nan)
        self._bar.set_postfix_str(f"loss {loss:.3f}, {speed:.0f} audio h/h, lr {last.learning_rate:.1e}")
        eta = elapsed / len(reports) * (max_steps - last.step)
        parts = ", ".join(f"{name} {means.get(name, math.nan):.3f}" for name in ("simple", "pruned", "ctc"))
        LOGGER.info(
            f"step {last.step}/{max_steps}: loss {loss:.4f} ({parts}), lr {last.learning_rate:.2e}, "
            f"gradient {means.get('grad_norm', math.nan):.2f}, {speed:.0f} audio hours/hour, ETA {_clock_time(eta)}",
            extra={"in_bar": not self._bar.disable},
        )

    def validation(self, step: int, wer: float, summary: str) -> None:
        """Write a validation result; `wer` is a fraction."""
        if self._main:
            self._write({"step": step, "valid_wer": wer})
            self._metrics.flush()
            self._board.add_scalar("valid/wer", wer, step)
            LOGGER.info(f"step {step}: validation {summary.replace(chr(10), '; ')}")

    def close(self) -> None:
        LOGGER.setLevel(self._level)
        for handler in self._handlers:
            LOGGER.removeHandler(handler)
            handler.close()
        for writer in (self._bar, self._metrics, self._board):
            if writer is not None:
                writer.close()

    def _complain(self, report: StepReport) -> None:
        if report.no_path_ids:
            LOGGER.warning(
                f"step {report.step}: left out, more tokens than frames allow: {_listed(report.no_path_ids)}"
            )
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


class _AboveBar(logging.Handler):
    """Prints above the progress bar what the bar does not show itself."""

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "in_bar", False):
            tqdm.write(self.format(record), file=sys.stderr)


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


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _listed(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _clock_time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
