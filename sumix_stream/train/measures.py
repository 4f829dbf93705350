"""Measures of training steps: gathered on the device, fetched once an interval."""

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor

from sumix_stream.data.batching.loader import Batch
from sumix_stream.tasks.base import TaskLoss
from sumix_stream.train.modules import ModuleNorms

Item = TypeVar("Item")


@dataclass(frozen=True)
class Interval:
    """The steps since the last report, over all processes. Times are the host's, saving and validation left out."""

    steps: int
    step_seconds: dict[str, float]  # mean time of a step of the quickest process, of all, of the slowest
    slowest_rank: int
    wait_share: dict[str, float]  # of that time, spent waiting for the loader: least, mean, most of a process
    audio_hours_per_hour: float
    padding_share: float  # of the feature frames in the batches
    gpu_bytes: int  # most that a process had allocated at a time; 0 on a CPU
    host_bytes: int  # most that a process ever had resident
    modules: dict[str, list[float]] = field(default_factory=dict)  # of the last step: gradient, weights, update: norms


@dataclass(frozen=True)
class StepReport:
    """One training step, over all processes and accumulated batches. Losses in nats for each encoder frame."""

    step: int  # counted from 1: steps done after it
    loss: float
    parts: dict[str, float]  # of the loss, by name
    grad_norm: float  # before clipping
    skipped: bool  # the update was left out: a loss or gradient was not finite
    seconds: float  # of audio
    learning_rate: float
    context: str
    bad_ids: list[str] = field(default_factory=list)  # of this process: utterances whose loss is not finite
    unusable_ids: list[str] = field(default_factory=list)  # of this process: utterances left out of the loss
    ids: list[str] = field(default_factory=list)  # of this process: all
    interval: Interval | None = None  # with the last step of an interval


@dataclass
class _Pending:
    step: int
    values: list[Tensor]  # sums over the batches, scalars on the device
    flags: list[Tensor]  # (2, B) bool of each batch: loss not finite, not usable
    ids: list[str]
    seconds: float
    frames: tuple[int, int]  # of features: valid, and with padding
    learning_rate: float
    context: str
    modules: ModuleNorms | None


class StepBuffer:
    """Measures of the steps since the last fetch. `add` leaves the device alone; `fetch` waits for it, once.

    Args:
        parts: names of the parts of a loss, the same on every process; one that a loss does not have counts as 0.
    """

    def __init__(self, fabric: Fabric, parts: Sequence[str]) -> None:
        self._fabric, self._parts = fabric, tuple(parts)
        self._pending: list[_Pending] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave the time since the last step out of the times of steps (validation, saving)."""
        self._clock, self._elapsed, self._waited = time.perf_counter(), 0.0, 0.0

    def timed(self, items: Iterator[Item]) -> Iterator[Item]:
        """The same items; the time that each is waited for counts as the loader's."""
        while True:
            began = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            self._waited += time.perf_counter() - began
            yield item

    def add(
        self,
        step: int,
        losses: Sequence[TaskLoss],
        ids: Sequence[str],
        *,
        grad_norm: Tensor,
        skipped: Tensor,
        seconds: float,
        learning_rate: float,
        context: str,
        frames: tuple[int, int] = (0, 0),
        modules: ModuleNorms | None = None,
    ) -> None:
        """The measures of a step: `seconds` of audio; `frames` of features, valid and with padding."""
        losses = [loss.detach() for loss in losses]
        frames_of = [loss.num_frames for loss in losses]
        nothing = torch.zeros_like(losses[0].total)
        values = [sum(loss.total * loss.num_frames for loss in losses), sum(frames_of), grad_norm, skipped]
        values += [sum((loss.parts[n].sum() for loss in losses if n in loss.parts), nothing) for n in self._parts]
        flags = [torch.stack([~loss.finite(), ~loss.usable]) for loss in losses]
        self._pending.append(_Pending(step, values, flags, list(ids), seconds, frames, learning_rate, context, modules))
        self._elapsed += time.perf_counter() - self._clock
        self._clock = time.perf_counter()

    def fetch(self) -> list[StepReport]:
        """The reports of the steps since the last call, in order. Called by every process at the same steps."""
        pending, self._pending = self._pending, []
        if not pending:
            return []
        device = self._fabric.device
        table = torch.stack([torch.stack([value.float() for value in item.values]) for item in pending])
        host = torch.tensor([[item.seconds, *item.frames] for item in pending], device=device)
        table = torch.cat([table, host], dim=1)
        world = self._fabric.world_size
        if world > 1:
            table = self._fabric.all_reduce(table, reduce_op="sum")
        rows = table.double().tolist()
        flags = torch.cat([flag for item in pending for flag in item.flags], dim=1).tolist()
        interval = self._interval(pending, rows)
        reports, start = [], 0
        for item, row in zip(pending, rows, strict=True):
            loss, frames, grad_norm, skipped, *parts, seconds = row[:-2]
            frames = max(frames, 1.0)
            not_finite, unusable = (row[start : start + len(item.ids)] for row in flags)
            start += len(item.ids)
            reports.append(
                StepReport(
                    step=item.step,
                    loss=loss / frames,
                    parts={name: part / frames for name, part in zip(self._parts, parts, strict=True)},
                    grad_norm=grad_norm / world,
                    skipped=skipped > 0,
                    seconds=seconds,
                    learning_rate=item.learning_rate,
                    context=item.context,
                    bad_ids=[name for name, bad in zip(item.ids, not_finite, strict=True) if bad],
                    unusable_ids=[name for name, lost in zip(item.ids, unusable, strict=True) if lost],
                    ids=item.ids,
                    interval=interval if item is pending[-1] else None,
                )
            )
        return reports

    def _interval(self, pending: list[_Pending], rows: list[list[float]]) -> Interval:
        """Times and memory of every process, and the modules' norms of the last step that has them."""
        device, num_steps = self._fabric.device, len(pending)
        gpu = 0
        if device.type == "cuda":
            gpu = torch.cuda.max_memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
        own = [self._elapsed / num_steps, self._waited / max(self._elapsed, 1e-9), gpu, _resident_bytes()]
        self._elapsed = self._waited = 0.0
        measures = torch.tensor(own, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        if self._fabric.world_size > 1:
            measures = self._fabric.all_gather(measures)
        times, waits, gpus, residents = measures.reshape(-1, len(own)).T.tolist()
        valid, slots = sum(row[-2] for row in rows), sum(row[-1] for row in rows)
        modules = next((item.modules for item in reversed(pending) if item.modules is not None), None)
        table = [] if modules is None else modules.norms.T.tolist()
        return Interval(
            steps=num_steps,
            step_seconds=_spread(times),
            slowest_rank=times.index(max(times)),
            wait_share=_spread(waits),
            audio_hours_per_hour=sum(row[-3] for row in rows) / max(max(times) * num_steps, 1e-9),
            padding_share=1 - valid / slots if slots else 0.0,
            gpu_bytes=int(max(gpus)),
            host_bytes=int(max(residents)),
            modules={} if modules is None else dict(zip(modules.names, table, strict=True)),
        )


def feature_frames(batches: Sequence[Batch]) -> tuple[int, int]:
    """Feature frames in batches that still lie on the CPU: valid ones, and with padding."""
    valid = sum(int(batch.feat_lengths.sum()) for batch in batches)
    return valid, sum(batch.feats.shape[0] * batch.feats.shape[1] for batch in batches)


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "mean": sum(values) / len(values), "max": max(values)}


def _resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
