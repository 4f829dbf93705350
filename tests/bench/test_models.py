"""The benchmarks of whole models: gates, passes, figures, the page of goals, the door."""

import csv
import subprocess
import sys

import pytest
from conftest import ROOT

from sumix_kernels.bench import gate, measure, registry
from sumix_kernels.bench.run import Settings
from sumix_stream.bench import commands, goals

MODELS = ("encoder", "train_step", "stream")


def load(name):
    return registry.load(f"sumix_stream.bench.{name}")


@pytest.mark.parametrize("dtype", ("fp32", "bf16"))
@pytest.mark.parametrize("name", MODELS)
def test_every_gate_is_green(name, dtype, triton_device):
    """The streams' slots too: a CUDA graph on a GPU, eager here."""
    benchmark = load(name)
    verdicts = gate.check(benchmark, dtype, triton_device, benchmark.contenders)
    assert [verdict.note for verdict in verdicts.values()] == [""] * len(benchmark.contenders)
    assert all(0 < verdict.rms_error < benchmark.tolerance[dtype][1] for verdict in verdicts.values())


@pytest.mark.parametrize("name", MODELS)
def test_every_pass_is_measured(name):
    benchmark = load(name)
    shape = {**benchmark.gate_shape, "preset": "tiny"}
    for contender in benchmark.contenders:
        (results,) = measure.measure(benchmark, contender, [shape], "fp32", "cpu", 0.0)
        assert tuple(results) == benchmark.pass_names
        for pass_, row in results.items():
            assert row["ms_p50"] > 0, row
            assert all(value > 0 for value in benchmark.figures(shape, pass_, row).values())


def test_rates():
    shape = {"B": 2, "seconds": 30, "U": 90, "S": 4, "C": 16, "L": 4}
    row = {"ms_p50": 500.0, "ms_p95": 700.0}
    assert load("train_step").figures(shape, "step", row) == {
        "tokens / s": 360,
        "encoder frames / s": pytest.approx(3000),
        "audio hours / h": 120,
    }
    assert load("stream").figures(shape, "step", row)["streams in real time"] == pytest.approx(4 * 0.64 / 0.5)


def test_a_step_changes_the_weights():
    benchmark = load("train_step")
    contender, shape = benchmark.contenders[0], benchmark.gate_shape
    inputs = benchmark.make(shape, registry.DTYPES["fp32"], "cpu")
    inputs |= contender.prepare(inputs, shape)
    before = inputs["model"].joiner.output.weight.detach().clone()
    benchmark.passes(contender, inputs, shape)["step"]()
    assert (inputs["model"].joiner.output.weight != before).any()


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_goals_are_read_from_the_tables(tmp_path):
    assert goals.table(tmp_path).count(f"| {goals.NOT_MEASURED} |  |") == len(goals.GOALS)
    ours = {"contender": "triton", "dtype": "bf16", "B": 32, "T": 1500}
    rows = [
        {**ours, "pass": "forward", "share_of_copy": 0.9, "time_of_(T, T) product_over_own": 4.5},
        {**ours, "contender": "torch", "pass": "forward", "share_of_copy": 0.1, "time_of_(T, T) product_over_own": 9},
    ]
    write_rows(tmp_path / "chunk_summary.csv", rows)
    write_rows(tmp_path / "loss.csv", [{**ours, "V": 500, "pass": "forward+backward", "gate_rms_error": 0.03}])
    lines = goals.table(tmp_path).splitlines()
    assert any("forward: share of copy bandwidth at least 0.85 | 0.9 | yes |" in line for line in lines)
    assert any("forward: time of (T, T) product over own at least 5 | 4.5 | no |" in line for line in lines)
    assert any("relative RMS error at most 0.02 | 0.03 | no |" in line for line in lines)


def test_every_goal_is_of_a_row_that_is_measured():
    """Names, shapes and passes of the goals are those of the benchmarks."""
    benchmarks = {benchmark.name: benchmark for benchmark in map(registry.load, commands.SECONDS)}
    for goal in goals.GOALS:
        benchmark = benchmarks[goal.benchmark]
        contender = benchmark.contender(goal.where["contender"])
        letters = {k: v for k, v in goal.where.items() if k not in ("contender", "dtype", "pass")}
        assert any(letters.items() <= shape.items() for shape in benchmark.shapes["cuda"] if contender.at(shape)), goal
        assert goal.where.get("pass", benchmark.pass_names[0]) in benchmark.pass_names
        assert goal.where.get("dtype", "bf16") in benchmark.dtypes["cuda"]
        if goal.column.endswith("_over_own"):
            baseline = benchmark.contender(goal.column.removesuffix("_over_own").split("_of_", 1)[1])
            assert baseline.baseline


def test_all_runs_every_command():
    assert sorted(commands.SECONDS) == sorted(source for sources in commands.COMMANDS.values() for source in sources)
    assert 300 <= sum(commands.SECONDS.values()) <= 480


def test_all_goes_on_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "SECONDS", {"no.such.module": 1, "sumix_stream.bench.stream": 3600})
    settings = Settings(min_seconds=0.0, plot=False, command="bench all")
    path, failed = commands.run_all(tmp_path, settings, say=lambda line: None)
    assert failed == ["no.such.module"]
    assert "streams in real time | not measured" in path.read_text()
    assert "| summary, eager | fp32 | 16 | step |" in (tmp_path / "stream.md").read_text()


def test_door_names_what_is_wrong(tmp_path):
    command = [sys.executable, str(ROOT / "bin" / "bench"), "kernels", "--out", str(tmp_path), "--op", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    ops = "chunk_summary, mixer, chunk_conv1d, chunk_decay_mean"
    assert done.stderr == f"bench: op must be one of {ops}, got 'nothing'\n"


def test_every_goal_stands_in_the_results():
    results = (ROOT / "kernels" / "RESULTS.md").read_text()
    for line in goals.table(ROOT / "no such folder").splitlines()[2:]:
        assert f"| {line.split(' | ')[0].removeprefix('| ')} |" in results, line
