"""Jobs of egs/evidence: each is a command and the file it leaves; what is there is not done again.

A job of training is bin/train, resumed by itself; one of decoding is bin/decode or bin/stream_decode with their report.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sumix_stream.config.reader import load_recipe
from sumix_stream.report.records import RunRecords
from sumix_stream.train.ablation import Variation, read_plan

BIN = Path(__file__).resolve().parents[2] / "bin"
QUESTIONS = ("latency", "functions", "chunks", "length", "across")
PLANS = {
    "functions": ("functions",),
    "chunks": ("chunks",),
    "length": ("mixers-mini",),
    "across": ("mixers-mini", "mixers-digits"),
}
CHUNKS_MS = tuple(range(160, 2561, 160))
LEFTS = ("2", "4", "16", "unlimited")
MINUTES = (10, 20, 30, 60)


@dataclass(frozen=True)
class Job:
    """A command, the file that says it is done (None: the command knows), and the hours of audio it goes through."""

    name: str
    command: list[str]
    done: Path | None
    hours: float
    captured: bool = False  # what it prints is the result, and goes to `done`

    @property
    def is_done(self) -> bool:
        return self.done is not None and self.done.is_file()

    def run(self) -> int:
        """Exit code of the command; a result appears whole or not at all."""
        if self.is_done:
            return 0
        if not self.captured:
            return subprocess.run(self.command).returncode
        finished = subprocess.run(self.command, stdout=subprocess.PIPE, text=True)
        if finished.returncode == 0:
            self.done.parent.mkdir(parents=True, exist_ok=True)
            aside = self.done.with_suffix(".part")
            aside.write_text(finished.stdout, encoding="utf-8")
            aside.replace(self.done)
        return finished.returncode


def stream_decode(exp: Path, cuts: Path, chunk: str, left: str, out: Path, hours: float) -> Job:
    command = [str(BIN / "stream_decode"), "--checkpoint", str(exp), "--cuts", str(cuts)]
    command += ["--chunk", chunk, "--left-context", left, "--out", str(out), "--errors", "0"]
    return Job(f"{chunk}, left {left}", command, out / "report.json", hours)


def decode(exp: Path, cuts: Path, out: Path, hours: float) -> Job:
    command = [str(BIN / "decode"), "--checkpoint", str(exp), "--cuts", str(cuts), "--out", str(out), "--errors", "0"]
    return Job("full", command, out / "report.json", hours)


def long_form(exp: Path, cuts: Path, minutes: int, out: Path) -> Job:
    command = [str(BIN / "stream_decode"), "--checkpoint", str(exp), "--cuts", str(cuts), "--chunk", "640ms"]
    command += ["--left-context", "4", "--long-form", str(minutes)]
    return Job(f"{minutes} minutes", command, out / f"{minutes}-minutes.txt", minutes / 60, captured=True)


def training(variation: Variation) -> Job:
    """The run of a variation; its cost is the audio it sees, at most."""
    recipe = load_recipe(variation.base, {**variation.settings, "train.seed": variation.seed})
    batches = recipe.train.step_batches or recipe.train.accumulate
    hours = recipe.train.max_steps * batches * recipe.data.max_duration / 3600
    command = [sys.executable, str(BIN / "train"), *variation.arguments]
    return Job(f"{variation.name}, seed {variation.seed}", command, None, hours)


def latency_jobs(
    exp: Path, cuts: Path, out: Path, hours: float, chunks: Sequence[int] = CHUNKS_MS, lefts: Sequence[str] = LEFTS
) -> list[Job]:
    """One model under every chunk and left context, and under full context."""
    jobs = [
        stream_decode(exp, cuts, f"{chunk}ms", left, out / f"{chunk}ms-left-{left}", hours)
        for left in lefts
        for chunk in chunks
    ]
    return [*jobs, decode(exp, cuts, out / "full", hours)]


def runs(question: str, plans: Path, seeds: Sequence[int], out: Path) -> list[Variation]:
    """The tied training runs of a question; runs that two questions share are trained once."""
    return [run for name in PLANS[question] for run in read_plan(plans / f"{name}.yaml", seeds, out / name)]


def run_jobs(question: str, run: Variation, tests: dict[str, Path], hours: dict[str, float]) -> list[Job]:
    """Training of a run and its decoding for a question: under 640 ms where it streams, under full context, or long."""
    recipe, exp = load_recipe(run.base, dict(run.settings)), run.exp_dir
    jobs = [training(run)]
    if question == "length":
        return jobs + [long_form(exp, tests["mini"], minutes, exp / "evidence") for minutes in MINUTES]
    for name in tests if question == "across" else ("mini",):
        if recipe.model.encoder.streams:
            jobs.append(stream_decode(exp, tests[name], "640ms", "4", exp / "evidence" / f"{name}-640ms", hours[name]))
        jobs.append(decode(exp, tests[name], exp / "evidence" / f"{name}-full", hours[name]))
    return jobs


def trained(run: Variation) -> str:
    """ "" when a run has taken all its steps, else why its results do not count."""
    try:
        records = RunRecords.read(run.exp_dir)
    except ValueError:
        return "not measured: not trained"
    goal = (records.recipe.get("train") or {}).get("max_steps")
    done = records.steps[-1]["step"] if records.steps else 0
    return "" if done == goal else f"not measured: stopped at step {done} of {goal}"


def report(job: Job) -> dict[str, Any] | None:
    """The report of a decoding; None while there is none. Raises ValueError for one that is damaged."""
    if not job.is_done:
        return None
    try:
        return json.loads(job.done.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{job.done}: no report ({error}); remove it and run the command again") from None


def plan_text(jobs: Sequence[Job], speed: float) -> str:
    """The commands with what they will cost; an estimate at `speed` hours of audio an hour."""
    lines = []
    for job in jobs:
        state = "done" if job.is_done else f"{job.hours:.2f} hours of audio"
        lines.append(f"# {job.name}: {state}\n{shlex.join(job.command)}")
    left = sum(job.hours for job in jobs if not job.is_done)
    lines.append(
        f"# in all {left:.1f} hours of audio; at {speed:g} an hour (--speed; an estimate) {left / speed:.1f} hours"
    )
    return "\n".join(lines)
