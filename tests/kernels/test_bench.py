"""The benchmark measures, reports what it measured, and does not time a kernel that is wrong."""

import csv
import dataclasses
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from sumix_kernels.bench import measure, registry, report
from sumix_kernels.bench import run as bench_run


def replace_contender(monkeypatch, run):
    good = registry.find("chunk_summary")
    bad = dataclasses.replace(good, contenders=(dataclasses.replace(good.contenders[0], run=run), *good.contenders[1:]))
    monkeypatch.setattr(registry, "benchmarks", lambda: {"chunk_summary": bad})


def counts_padding(x, lengths, shape):
    return (
        registry.find("chunk_summary")
        .contenders[1]
        .run(x, torch.full_like(lengths, shape["T"]), shape)[:, :: shape["C"]]
    )


@pytest.mark.parametrize("op", registry.benchmarks())
def test_every_gate_is_green(op):
    registry.check(registry.find(op), "cpu")


WRONG = {
    "padding is counted": (counts_padding, "output is wrong .* relative error"),
    "another shape": (lambda x, lengths, shape: x, r"gives \(3, 1000, 4\), not \(3, 63, 4\)"),
    "not a number": (lambda x, lengths, shape: x[:, :: shape["C"]] * torch.nan, "output is wrong"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_red_gate_stops_before_the_clock(name, monkeypatch, tmp_path):
    run, message = WRONG[name]
    replace_contender(monkeypatch, run)
    monkeypatch.setattr(bench_run, "_measure_apart", lambda *_: pytest.fail("a wrong kernel was timed"))
    with pytest.raises(registry.GateError, match=f"chunk_summary.*{message}"):
        bench_run.run("chunk_summary", tmp_path, plot=False)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_gradient_is_red(monkeypatch):
    right = registry.find("chunk_summary").contenders[0].run
    replace_contender(monkeypatch, lambda x, *rest: right(x.detach(), *rest) + 0 * right(x, *rest))
    with pytest.raises(registry.GateError, match="gradient is wrong"):
        registry.check(registry.find("chunk_summary"), "cpu")


def test_measure():
    shape = {"B": 1, "T": 4096, "D": 256, "C": 16, "L": 4}
    results = measure.measure("chunk_summary", "chunk_summary, torch", shape, "cpu", 0.0)
    assert set(results) == set(report.PASSES)
    for result in results.values():
        assert 0 < result["ms_p20"] <= result["ms_p50"] <= result["ms_p80"]
        assert result["repeats"] == measure.MIN_REPEATS
    gradient_mb = 4096 * 256 * 4 / 1e6
    peak = results["forward+backward"]["peak_extra_mb"]
    assert peak is None or 0.5 * gradient_mb < peak < 10 * gradient_mb


def test_run_writes_table_and_says_what_was_not_run(tmp_path):
    said = []
    path = bench_run.run(
        "chunk_summary",
        tmp_path,
        memory_limit_gb=0.005,
        min_seconds=0.0,
        max_frames=1024,
        plot=False,
        command="bench --so",
        say=said.append,
    )
    text = path.read_text()
    assert "    bench --so\n" in text and torch.__version__ in text
    assert "| masked (T, T) product | 1024 | not run: needs 0.00524 GB, over the limit of 0.005 GB |" in text
    rows = list(csv.DictReader((tmp_path / "chunk_summary.csv").open()))
    assert len(rows) == 3 * 2 and len(said) == 1 + 3
    for row in rows:
        assert row["command"] == "bench --so" and row["machine"] and row["date"]
        assert bool(row["note"]) != bool(row["ms_p50"])
        assert bool(row["note"]) == (row["contender"].startswith("masked"))


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        {"op": "op", "contender": name, "pass": pass_, "B": 1, "T": T, **figures}
        for name, figures in (("a", {"ms_p20": 1, "ms_p50": 2, "ms_p80": 3, "repeats": 3}), ("b", {"note": "not run"}))
        for pass_ in report.PASSES
        for T in (1024, 2048)
    ]
    for row in rows:
        row.setdefault("peak_extra_mb", None)
    report.write(
        tmp_path, "op", rows, {"machine": "m", "versions": "v", "load": "l", "date": "d", "command": "c"}, plot=True
    )
    assert (tmp_path / "op.png").read_bytes().startswith(b"\x89PNG")
    assert "![time and memory of op" in (tmp_path / "op.md").read_text()


def test_growth():
    rows = [{"T": T, "linear": 3e-4 * T, "square": 2e-7 * T**2, "unknown": None} for T in (1024, 8192, 16384, 131072)]
    assert report.growth(rows, "linear") == pytest.approx(1)
    assert report.growth(rows, "square") == pytest.approx(2)
    assert report.growth(rows, "unknown") is None
    assert report.growth(rows[:2], "linear") is None


def test_bad_arguments_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="op must be one of chunk_summary, got 'chunk_sumary'"):
        bench_run.run("chunk_sumary", tmp_path)
    with pytest.raises(
        ValueError, match="max frames must be at least 1024, the smallest shape of chunk_summary, got 5"
    ):
        bench_run.run("chunk_summary", tmp_path, max_frames=5)
    with pytest.raises(ValueError, match=r"device must be cpu, or cuda .*got 'tpu'"):
        bench_run.run("chunk_summary", tmp_path, device="tpu")
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install matplotlib, or .* --no-plot"):
        bench_run.run("chunk_summary", tmp_path)


def test_door_names_the_option(tmp_path):
    command = [sys.executable, str(ROOT / "bin" / "bench"), "kernels", "--out", str(tmp_path), "--op", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "bench: op must be one of chunk_summary, got 'nothing'\n"
