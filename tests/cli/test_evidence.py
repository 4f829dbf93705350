"""egs/evidence/answer on a tiny model: rows are those of the reports, done once, and nothing is invented."""

import json
import re
import runpy
import sys
import types
from copy import deepcopy
from pathlib import Path

import pytest
from conftest import ROOT
from talkative import talkative_model
from trees import write_cuts_and_tokenizer

from sumix_stream.cli import evidence
from sumix_stream.cli.evidence_tables import latency_answer, rate, runs_answer
from sumix_stream.tasks.checkpoint import save_model
from sumix_stream.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def exp(tmp_path_factory) -> Path:
    """An experiment directory with a model that speaks, and beside it cuts_train.jsonl.gz of two utterances."""
    folder = tmp_path_factory.mktemp("evidence")
    write_cuts_and_tokenizer(folder, [1.0, 1.3])
    model = deepcopy(talkative_model())
    letters = " ".join(chr(ord("a") + n) for n in range(model.vocab_size - 3))
    step = folder / "exp" / "checkpoints" / "step-00000001"
    step.mkdir(parents=True)
    save_model(step, model, train_tokenizer([letters], folder / "letters.model", model_type="char"))
    (folder / "exp" / "best.txt").write_text("checkpoints/step-00000001\n")
    return folder / "exp"


@pytest.fixture
def answer(monkeypatch, capsys):
    """Run egs/evidence/answer: (exit status, standard output, standard error)."""
    monkeypatch.setitem(sys.modules, "_venv", types.SimpleNamespace(enter=lambda: None))

    def run(*arguments: object) -> tuple[int | str, str, str]:
        monkeypatch.setattr(sys, "argv", ["answer", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "egs" / "evidence" / "answer"), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run


def in_this_process(monkeypatch) -> list[list[str]]:
    """Let jobs run without a process of their own; the commands that ran."""
    ran = []

    def run(command, **options):
        ran.append(command)
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(command[0], run_name="__main__")
        return types.SimpleNamespace(returncode=end.value.code)

    monkeypatch.syspath_prepend(ROOT / "bin")
    monkeypatch.setattr(evidence.subprocess, "run", run)
    return ran


def test_latency_is_measured_once_and_written(exp, answer, monkeypatch, tmp_path):
    cuts = exp.parent / "cuts_train.jsonl.gz"
    options = [
        "--only",
        "latency",
        "--experiment",
        exp,
        "--cuts",
        cuts,
        "--chunks",
        320,
        640,
        "--lefts",
        2,
        "unlimited",
    ]
    options += ["--out", tmp_path / "out", "--results", tmp_path / "results"]
    ran = in_this_process(monkeypatch)
    status, _, errors = answer(*options)
    assert (status, len(ran)) == (0, 5), errors
    page = (tmp_path / "results" / "evidence-latency.md").read_text()
    jobs = evidence.latency_jobs(exp, cuts, tmp_path / "out" / "latency", 0.0, (320, 640), ("2", "unlimited"))
    for job in jobs:
        found = json.loads(job.done.read_text())
        row = next(line for line in page.splitlines() if line.startswith(f"| {job.name} |"))
        assert row.split("|")[2].split()[0] == f"{rate(found):.2f}"
    assert "not measured" not in page and (tmp_path / "results" / "evidence-latency.svg").is_file()
    jobs[0].done.unlink()  # as if it had been stopped there
    assert answer(*options)[0] == 0 and len(ran) == 6
    other = exp.parent / "other.jsonl.gz"
    other.write_bytes(cuts.read_bytes() + cuts.read_bytes())
    status, *_ = answer(*options[:5], other, *options[6:])
    assert "another model or manifest" in str(status) and len(ran) == 6


def test_nothing_is_invented_for_what_is_not_measured(exp, tmp_path):
    text, plot = latency_answer(evidence.latency_jobs(exp, exp / "no.jsonl.gz", tmp_path, 0.0, (320,)))
    assert text.startswith("Nothing is measured yet of 5 rows.") and not plot and text.count("not measured") == 5
    plans, tests = ROOT / "egs" / "evidence", {"mini": Path("m"), "digits": Path("d")}
    for question in evidence.PLANS:
        found = evidence.runs(question, plans, [0, 1], tmp_path)
        rows = [(run, evidence.run_jobs(question, run, tests, {"mini": 0.1, "digits": 0.2})) for run in found]
        table = runs_answer(rows)
        assert "Nothing is measured yet." in table
        cells = table.partition("\n\n")[2].splitlines()[2:]
        assert len(cells) == sum(len(jobs) - 1 for _, jobs in rows)
        assert all("not measured: not trained" in line for line in cells)
        assert not any(re.search(r"\d\.\d\d", "|".join(line.split("|")[5:])) for line in cells)  # names have decays


def test_a_stopped_run_does_not_count(tmp_path):
    """Its reports are those of a model half trained: the row says so and its figures stay out."""
    run = evidence.runs("functions", ROOT / "egs" / "evidence", [0], tmp_path)[0]
    jobs = evidence.run_jobs("functions", run, {"mini": Path("m")}, {"mini": 0.1})
    assert len(jobs) == 3 and jobs[0].hours == pytest.approx(1600 * 30 / 3600, rel=0.01)
    for job in jobs[1:]:
        job.done.parent.mkdir(parents=True)
        content = {"wer": 0.1234, "cer": 0.5, "unit": "words", "interval95": [0.1, 0.2], "rtf": 0.01}
        job.done.write_text(json.dumps(content | {"substitutions": 1, "deletions": 2, "insertions": 3}))
    for steps, shown in ((800, "stopped at step 800 of 1600"), (1600, "12.34 (10.00 to 20.00)")):
        line = {"step": steps, "learning_rate": 0.1, "parts": {}, "skipped": False, "seconds": 1.0}
        (run.exp_dir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (run.exp_dir / "runs.jsonl").write_text(
            json.dumps({"step": 0, "recipe": {"train": {"max_steps": 1600}}}) + "\n"
        )
        assert shown in runs_answer([(run, jobs)])
        assert ("12.34" in runs_answer([(run, jobs)])) == (steps == 1600)


def test_the_dry_run_prints_commands_and_cost(answer, tmp_path):
    status, text, _ = answer("--only", "functions", "--dry-run", "--seeds", 0, "--out", tmp_path / "out")
    assert status == 0 and not (tmp_path / "out").exists()
    assert text.count("bin/train ") == 10 and text.count("bin/stream_decode ") == 9  # hypermixer does not stream
    assert "hours of audio; at 50 an hour" in text
