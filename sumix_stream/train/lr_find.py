"""Learning-rate range test (Smith, arXiv 1506.01186): which peak rate a recipe bears.

From fresh weights the rate rises exponentially step by step. While it is too low the loss hardly falls, then it falls
faster, and beyond what the model bears it rises. Batches differ in their loss by more than what a few steps change, so
the same CYCLE steps' batches come again and again, and the curve is the mean over the last cycle, which has each of
them once. The parts of the loss keep the weights that they have at the beginning of training.
"""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from sumix_stream.config import RecipeConfig
from sumix_stream.data.batching.loader import Batch
from sumix_stream.report.chart import Series, line_chart
from sumix_stream.report.page import page
from sumix_stream.report.records import METRICS
from sumix_stream.tasks.checkpoint import write_text_atomically
from sumix_stream.train.epochs import Loader
from sumix_stream.train.loop import DivergenceError, Trainer

LOW, HIGH = 1e-5, 1.0  # rates of the first and the last step
STEPS = 150
CYCLE = 10  # steps
_FOREVER = 10**9


class Found(NamedTuple):
    """Rates; `lowest` is where the smoothed loss is."""

    suggested: float
    lowest: float
    page: Path | None = None

    def __str__(self) -> str:
        where = "" if self.page is None else f"; picture: {self.page}"
        return (
            f"suggested peak: train.learning_rate {self.suggested:.1e} (the loss is lowest at {self.lowest:.1e}){where}"
        )


class RangeTest(Trainer):
    """A trainer, with a trainer's arguments, that only tests rates. The run in `train.exp_dir` is left as it is."""

    def __init__(self, recipe: RecipeConfig, *args: Any, steps: int = STEPS, **keywords: Any) -> None:
        if steps < 10:
            raise ValueError(f"steps of a range test must be at least 10, got {steps}")
        self._given = recipe.train
        aside = Path(recipe.train.exp_dir) / ".lr-find"
        changes = {"exp_dir": str(aside), "max_steps": steps, "average": "none", "log_interval": 5}
        train = replace(recipe.train, **changes, save_interval=_FOREVER, valid_interval=_FOREVER)
        super().__init__(
            replace(recipe, train=train, loss=replace(recipe.loss, warmup_steps=_FOREVER)), *args, **keywords
        )
        self.validate = None
        self.loader = _Cycle(self.loader, CYCLE * self._accumulate)

    def learning_rate(self, step: int) -> float:
        return LOW * (HIGH / LOW) ** (step / (self.config.max_steps - 1))

    def run(self) -> Found:
        """Make the test and write `lr_find.html` and `lr_find.json` into the experiment's directory.

        Raises:
            ValueError: no rate was found to be good: the loss never fell.
            KeyboardInterrupt: it was stopped by a signal.
        """
        aside, folder = Path(self.config.exp_dir), Path(self._given.exp_dir)
        stopped = False
        try:
            stopped = self.fit(resume=False).signum is not None
        except DivergenceError:
            pass  # the last rates are meant to be too high
        outcome: Found | str = ""
        if self.fabric.is_global_zero:
            points = _points(aside / METRICS)
            shutil.rmtree(aside)
            if not stopped:
                outcome = self._conclude(points, folder)
        if stopped:
            raise KeyboardInterrupt
        outcome = self.fabric.broadcast(outcome)
        if isinstance(outcome, str):
            raise ValueError(outcome)
        return outcome

    def _conclude(self, points: list[tuple[float, float]], folder: Path) -> Found | str:
        """The finding, written down; or why there is none."""
        window = max(1, len(self.loader.batches) // self._accumulate)
        try:
            found = suggest(points, window)._replace(page=folder / "lr_find.html")
        except ValueError as error:
            return str(error)
        smoothed = smooth([loss for _, loss in points], window)
        write_text_atomically(found.page, _picture(points, smoothed, found))
        content = {"suggested": found.suggested, "lowest": found.lowest, "points": points, "smoothed": smoothed}
        text = json.dumps(content).replace("Infinity", "null")
        write_text_atomically(folder / "lr_find.json", text + "\n")
        return found


def _points(metrics: Path) -> list[tuple[float, float]]:
    """(rate, loss) of each step, infinite where it was no number."""
    lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return [(line["learning_rate"], math.inf if line["loss"] is None else line["loss"]) for line in lines]


class _Cycle:
    """The first batches of a loader's first epoch, again and again."""

    def __init__(self, loader: Loader, size: int) -> None:
        self._loader, self._size = loader, size
        self.batches: list[Batch] = []

    def epoch_batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        if not self.batches:
            self.batches = list(islice(self._loader.epoch_batches(0), self._size))
        yield from self.batches[skip:]

    def fingerprint(self, epoch: int) -> str:
        return self._loader.fingerprint(0)

    def worst_batches(self, number: int = 1) -> list[Batch]:
        return self._loader.worst_batches(number)


def smooth(losses: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window`, at the beginning that of the first; infinite from a value on that is no number."""
    means = []
    for end in range(1, len(losses) + 1):
        mean = sum(losses[max(0, end - window) : end]) / min(window, end)
        means.append(mean if math.isfinite(mean) and all(map(math.isfinite, losses[:end])) else math.inf)
    return [means[min(window, len(means)) - 1]] * (window - 1) + means[window - 1 :]


def suggest(points: Sequence[tuple[float, float]], window: int) -> Found:
    """Of (rate, loss) by rising rate: a third of the rate at which the smoothed loss is lowest.

    The smoothed loss lags half a cycle behind, and what a few steps bear is more than what thousands do; a factor of
    three takes back both. Where it falls fastest says little: a transducer's first lesson is the share of blanks.

    Raises ValueError when the smoothed loss is lowest at the lowest rate.
    """
    losses = smooth([loss for _, loss in points], window)
    start = window - 1
    lowest = min(range(start, len(losses)), key=losses.__getitem__)
    if not losses[lowest] < losses[start]:
        raise ValueError(
            f"the loss fell at no rate from {points[0][0]:.0e} to {points[-1][0]:.0e}: check the data (bin/train logs "
            "what it leaves out) and the loss with a fixed train.learning_rate of 1e-3"
        )
    return Found(points[lowest][0] / 3, points[lowest][0])


def _picture(points: Sequence[tuple[float, float]], smoothed: Sequence[float], found: Found) -> str:
    """A page with the loss over the rate, as far as it is not beyond twice the first smoothed value."""
    most = 2 * smoothed[0]

    def line(name: str, losses: Sequence[float]) -> Series:
        shown = [(math.log10(rate), loss) for (rate, _), loss in zip(points, losses, strict=True) if loss <= most]
        return Series(name, shown)

    low = min(smoothed)
    at, rate = math.log10(found.suggested), f"{found.suggested:.1e}"
    mark = Series("suggested", [(at, low), (at, most)], rate)
    chart = line_chart(
        "Loss while the learning rate rises",
        [line("each step", [loss for _, loss in points]), line("smoothed", smoothed), mark],
        unit="nats an encoder frame, over log10 of the rate",
        x_name="log10",
    )
    return page("learning-rate range test", [f"<h1>Learning-rate range test</h1><p>{escape(str(found))}</p>", chart])
