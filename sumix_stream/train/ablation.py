"""Tied ablations: named variations of one recipe, trained with the same seeds and budget, in one table.

A plan is YAML::

    base: conf/tiny_mini.yaml            # relative to the plan
    common: {train.max_steps: 3000}      # dotted keys, as bin/train takes them
    runs:
      baseline: {}
      attention: {model.encoder.mixer: attention}

Each run is an ordinary `bin/train` in its own experiment directory: stopped, it goes on; finished, it is left alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sumix_stream.config import ConfigError
from sumix_stream.config.reader import load_recipe, load_yaml
from sumix_stream.report.records import RunRecords

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_KEYS = {"base", "common", "runs"}


@dataclass(frozen=True)
class Variation:
    """One run: its settings beyond the base recipe, and where it goes."""

    name: str
    seed: int
    base: Path
    settings: dict[str, Any]
    exp_dir: Path

    @property
    def arguments(self) -> list[str]:
        """Of bin/train."""
        words = ["--config", str(self.base), "--exp-dir", str(self.exp_dir), f"--train.seed={self.seed}"]
        return words + [f"--{key}={_inline(value)}" for key, value in self.settings.items()]


def read_plan(path: Path | str, seeds: Sequence[int], out: Path | str) -> list[Variation]:
    """The runs of a plan, seed by seed, every recipe checked before any is trained.

    Raises:
        ConfigError: the plan or one of its recipes is wrong; names the file and the key.
    """
    path, out = Path(path).absolute(), Path(out)
    plan = load_yaml(path)
    if plan.keys() - _KEYS or not {"base", "runs"} <= plan.keys() or not isinstance(plan["runs"], dict):
        raise ConfigError(f"{path} must have base, runs (names with their settings) and perhaps common: {list(plan)}")
    common, base = plan.get("common") or {}, path.parent / str(plan["base"])
    variations = []
    for seed in seeds:
        for name, own in plan["runs"].items():
            if not _NAME.fullmatch(str(name)):
                raise ConfigError(f"{path}: a run's name has letters, digits, dots, dashes; got {name!r}")
            settings = {**common, **(own or {})}
            for key in ("train.seed", "train.exp_dir"):
                if key in settings:
                    raise ConfigError(f"{path}: {name} sets {key}, which is the same for all runs: leave it out")
            try:
                load_recipe(base, {**settings, "train.seed": seed})
            except ConfigError as error:
                raise ConfigError(f"{path}: {name}: {error}") from None
            variations.append(Variation(str(name), seed, base, settings, out / f"{name}-seed{seed}"))
    return variations


def results_table(variations: Sequence[Variation], exit_codes: dict[Path, int] | None = None) -> str:
    """Markdown, a row for each run: error rates of its last and best validation (by words, or by
    characters where the script writes no spaces), losses of its last tenth.

    A run that has not begun or not ended says so in its own row.
    """
    head = (
        "| run | seed | steps | hours | last error rate, % | best error rate, % (step) | losses | parameters | state |"
    )
    lines = [head, "|---|--:|--:|--:|--:|--:|---|--:|---|"]
    for variation in variations:
        code = (exit_codes or {}).get(variation.exp_dir)
        try:
            run = RunRecords.read(variation.exp_dir)
        except ValueError:
            run = RunRecords(variation.exp_dir)
        lines.append("| " + " | ".join(_row(variation, run, code)) + " |")
    return "\n".join(lines) + "\n"


def _row(variation: Variation, run: RunRecords, code: int | None) -> list[str]:
    goal = (run.recipe.get("train") or {}).get("max_steps")
    done = run.steps[-1]["step"] if run.steps else 0
    if code:
        state = f"failed (exit code {code})"
    elif not run.steps:
        state = "not begun"
    else:
        state = "" if done == goal else f"stopped before {goal}"
    last = f"{100 * run.measured[-1][1]:.2f}" if run.measured else ""
    best = ""
    if run.measured:
        step, wer = min(run.measured, key=lambda item: (item[1], -item[0]))
        best = f"{100 * wer:.2f} ({step})"
    good = [step for step in run.steps[-max(1, len(run.steps) // 10) :] if not step["skipped"]]
    names = good[-1]["parts"] if good else ()
    losses = ", ".join(f"{name} {sum(step['parts'][name] for step in good) / len(good):.3f}" for name in names)
    hours = f"{sum(step['seconds'] for step in run.steps) / 3600:.1f}"
    parameters = (run.starts[-1].get("system") or {}).get("parameters") if run.starts else None
    size = "" if parameters is None else f"{parameters:,}"
    return [variation.name, str(variation.seed), str(done), hours, last, best, losses, size, state]


def _inline(value: Any) -> str:
    """YAML in one line, as bin/train reads it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
