"""The benchmark measures, reports what it measured, and does not time what is wrong."""

import csv
import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TOLERANCE, needs_numba

from sumix_kernels.bench import chunk_summary, fast_rnnt, gate, measure, registry, report
from sumix_kernels.bench import run as bench_run
from sumix_kernels.bench.run import Settings

SUMMARY = chunk_summary.BENCHMARK
QUICK = Settings(min_seconds=0.0, plot=False, most=1024)
COMPILED = ("torch, compiled", "attention, FlexAttention")


def with_contender(index=1, **changes):
    """chunk_summary's benchmark with one contender (the torch backend) changed."""
    contenders = list(SUMMARY.contenders)
    contenders[index] = dataclasses.replace(contenders[index], **changes)
    return dataclasses.replace(SUMMARY, contenders=tuple(contenders))


def counts_padding(inputs, shape):
    return SUMMARY.contenders[1].run(inputs | {"lengths": torch.full_like(inputs["lengths"], shape["T"])}, shape)


def loses_gradient(inputs, shape):
    right = SUMMARY.contenders[1].run
    return right(inputs | {"x": inputs["x"].detach()}, shape) + 0 * right(inputs, shape)


def test_tolerances_are_those_of_the_tests():
    assert {registry.DTYPES[name]: allowed for name, allowed in registry.TOLERANCE.items()} == {
        dtype: allowed for dtype, allowed in TOLERANCE.items() if dtype != torch.float64
    }


@pytest.mark.parametrize("dtype", registry.DTYPES)
@pytest.mark.parametrize("op", registry.OPS)
def test_every_gate_is_green(op, dtype, triton_device):
    """Triton's contenders too, in its interpreter. What cannot run here says why."""
    benchmark = registry.find(op)
    contenders = tuple(c for c in benchmark.contenders if c.name not in COMPILED and dtype in (c.dtypes or (dtype,)))
    verdicts = gate.check(benchmark, dtype, triton_device, contenders)
    notes = {name: verdict.note for name, verdict in verdicts.items() if verdict.note}
    assert set(notes) <= {"k2", "fast_rnnt"}, notes
    assert all("ImportError" in note or "KeyError" in note for note in notes.values()), notes
    for name in verdicts.keys() - notes.keys():
        assert 0 <= verdicts[name].rms_error <= benchmark.tolerance[dtype][1]


WRONG = {
    "padding is counted": (counts_padding, "output is wrong in fp32 .*relative error"),
    "another shape": (lambda inputs, shape: inputs["x"], r"gives \(3, 131, 6\), not \(3, 9, 6\)"),
    "not a number": (lambda inputs, shape: SUMMARY.contenders[1].run(inputs, shape) * torch.nan, "output is wrong"),
    "a gradient is lost": (loses_gradient, "gradient of x is wrong"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_red_gate_stops_before_the_clock(name, monkeypatch, tmp_path):
    run, message = WRONG[name]
    monkeypatch.setattr(bench_run, "_ask", lambda *_: pytest.fail("something wrong was timed"))
    with pytest.raises(gate.GateError, match=f"chunk_summary.*{message}"):
        bench_run.run(with_contender(run=run), tmp_path, QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_baseline_is_left_out_alone(tmp_path):
    benchmark = with_contender(4, run=lambda inputs, shape: 2 * chunk_summary.masked_product(inputs, shape))
    assert not benchmark.contenders[4].ours
    path = bench_run.run(benchmark, tmp_path, QUICK, say=lambda line: None)
    assert re.search(r"\| torch \| fp32 \| forward \| \d+\.\d+", path.read_text())
    assert "- (T, T) product, fp32, T 1024: not run: chunk_summary: (T, T) product is not timed" in path.read_text()


def test_what_cannot_run_says_why():
    def absent(inputs, shape):
        raise NotImplementedError("backend 'x' is not there\nsecond line")

    verdict = gate.check(with_contender(run=absent), "fp32", "cpu", (with_contender(run=absent).contenders[1],))
    assert verdict["torch"].note == "not run: NotImplementedError: backend 'x' is not there"


def test_measure():
    shape = {"B": 1, "T": 4096, "D": 256, "C": 16, "L": 4}
    contender = SUMMARY.contender("torch")
    (results,) = measure.measure(SUMMARY, contender, [shape], "fp32", "cpu", 0.0)
    assert set(results) == set(registry.PASSES)
    for result in results.values():
        assert 0 < result["ms_p20"] <= result["ms_p50"] <= result["ms_p80"] <= result["ms_p95"]
        assert result["repeats"] == measure.MIN_REPEATS
    gradient_mb = 4096 * 256 * 4 / 1e6
    peak = results["forward+backward"]["peak_extra_mb"]
    assert peak is None or 0.5 * gradient_mb < peak < 10 * gradient_mb


def test_what_was_prepared_counts_as_memory():
    shape = {"B": 1, "T": 1024, "D": 4, "C": 16, "L": 4}
    (results,) = measure.measure(SUMMARY, SUMMARY.contender("(T, T) product"), [shape], "fp32", "cpu", 0.0)
    peak = results["forward"]["peak_extra_mb"]
    assert peak is None or peak >= 4 * 1024**2 / 1e6


def test_a_shape_that_fails_does_not_end_the_others():
    shapes = [{"B": 1, "T": T, "D": 4, "C": C, "L": 4} for T, C in ((64, 0), (64, 16))]
    bad, good = measure.measure(SUMMARY, SUMMARY.contender("torch"), shapes, "fp32", "cpu", 0.0)
    assert bad["forward"]["note"].startswith("not run: ValueError: chunk_size must be")
    assert good["forward"]["ms_p50"] > 0


def test_run_writes_table_and_says_what_was_not_run(tmp_path):
    said = []
    settings = QUICK._replace(memory_limit_gb=0.004, command="bench --so")
    text = bench_run.run(SUMMARY, tmp_path, settings, said.append).read_text()
    assert "    bench --so\n" in text and torch.__version__ in text
    assert "- (T, T) product, fp32, T 1024: not run: needs 0.00419 GB, over the limit of 0.004 GB" in text
    assert "- triton, fp32, T 1024: not run: Triton's interpreter has no speed to measure" in text
    rows = list(csv.DictReader((tmp_path / "chunk_summary.csv").open()))
    timed = [row for row in rows if row["ms_p50"]]
    assert {row["contender"] for row in timed} == {"torch", "torch + broadcast_chunks"}
    for row in rows:
        assert row["command"] == "bench --so" and row["machine"] and row["date"] and float(row["copy_gb_per_s"]) > 0
        assert bool(row["note"]) != bool(row["ms_p50"])
    for row in timed:
        seconds, frames = 1e-3 * float(row["ms_p50"]), 1024 * 512
        num_bytes = 4 * (frames + frames // 16) * (2 if row["pass"] == "forward+backward" else 1)
        assert float(row["least_bytes"]) == num_bytes
        assert float(row["gb_per_s"]) == pytest.approx(1e-9 * num_bytes / seconds)
        assert float(row["share_of_copy"]) == pytest.approx(float(row["gb_per_s"]) / float(row["copy_gb_per_s"]))
        assert float(row["gate_rms_error"]) < 1e-6
    ours = {(row["contender"], row["pass"]): float(row["ms_p50"]) for row in timed}
    ratio = next(row for row in timed if row["contender"] != "torch" and row["pass"] == "forward")
    assert float(ratio["time_of_torch_over_own"]) == pytest.approx(
        ours["torch", "forward"] / ours["torch + broadcast_chunks", "forward"]
    )


def test_a_budget_ends_in_notes(tmp_path):
    text = bench_run.run(SUMMARY, tmp_path, QUICK._replace(budget=1e-9), lambda line: None).read_text()
    assert "- torch, fp32, T 1024: not run: no time left in the budget" in text


def test_a_process_that_dies_is_a_note():
    shape = {"B": 1, "T": 64, "D": 4, "C": 16, "L": 4}
    entries = [bench_run.Entry(SUMMARY.contender("torch"), "fp32", shape)]
    benchmark = dataclasses.replace(SUMMARY, source="no.such.module", shapes={"cpu": (shape,)})
    bench_run._measure(benchmark, entries, QUICK, None, lambda line: None)
    assert entries[0].results["forward"]["note"] == "not run: ModuleNotFoundError: No module named 'no'"


def test_a_process_that_hangs_is_ended():
    request = {"device": "cpu", "jobs": [{"ceilings": "fp32"}]}
    with pytest.raises(bench_run.MeasuringError, match="no time left in the budget"):
        bench_run._ask(request, 0.01)


def test_one_death_does_not_end_the_others(monkeypatch):
    """As on a GPU, where all entries share a process: the next one takes the rest."""
    shapes = tuple({"B": 1, "T": T, "D": 4, "C": 16, "L": 4} for T in (64, 128, 192))
    entries = [bench_run.Entry(SUMMARY.contender("torch"), "fp32", shape) for shape in reversed(shapes)]
    asked = []

    def ask(request, seconds, tell):
        asked.append([job["shape"]["T"] for job in request["jobs"]])
        if len(asked) == 1:
            tell({"forward": {"ms_p50": 1.0}})
            raise bench_run.MeasuringError("an illegal memory access")
        for _ in request["jobs"]:
            tell({"forward": {"ms_p50": 2.0}})

    monkeypatch.setattr(bench_run, "_ask", ask)
    benchmark = dataclasses.replace(SUMMARY, shapes={"cuda": shapes})
    bench_run._measure(benchmark, entries, QUICK._replace(device="cuda"), None, lambda line: None)
    assert asked == [[64, 128, 192], [192]]
    assert [entry.results["forward"].get("ms_p50") for entry in entries] == [2.0, None, 1.0]
    assert entries[1].results["forward"]["note"] == "not run: an illegal memory access"


def test_baselines_of_another_dtype_are_compared():
    shape = {"B": 1, "T": 1024, "D": 4, "C": 16, "L": 4}
    times = (("triton", "bf16", 1.0), ("torch", "fp32", 3.0), ("torch", "bf16", 2.0), ("(T, T) product", "fp32", 8.0))
    rows = [
        {"contender": name, "dtype": dtype, "pass": "forward", **shape, "ms_p50": ms, "peak_extra_mb": 2 * ms}
        for name, dtype, ms in times
    ]
    report._compare(SUMMARY, rows)
    assert rows[0]["time_of_torch_over_own"] == 2 and rows[1]["time_of_(T, T) product_over_own"] == 8 / 3
    assert rows[0]["time_of_(T, T) product_over_own"] == rows[0]["memory_of_(T, T) product_over_own"] == 8
    assert "time_of_torch_over_own" not in rows[1]


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    figures = {"ms_p20": 1, "ms_p50": 2, "ms_p80": 3, "repeats": 3, "peak_extra_mb": None}
    rows = [
        {"benchmark": "chunk_summary", "contender": name, "dtype": "fp32", "pass": pass_, "B": 1, "T": T, **result}
        for name, result in (("torch", figures), ("triton", {"note": "not run: no"}))
        for pass_ in registry.PASSES
        for T in (1024, 2048)
    ]
    rows = [row | {"copy_gb_per_s": 1.0, "matmul_tflops": 1.0} for row in rows]
    environment = {"machine": "m", "versions": "v", "load": "l", "date": "d", "command": "c"}
    path = report.write(tmp_path, SUMMARY, rows, environment, plot=True)
    assert (tmp_path / "chunk_summary.png").read_bytes().startswith(b"\x89PNG")
    assert "![chunk_summary against T](chunk_summary.png)" in path.read_text()
    assert "- triton, fp32, T 1024, 2048: not run: no" in path.read_text()


def test_growth():
    rows = [{"T": T, "linear": 3e-4 * T, "square": 2e-7 * T**2, "unknown": None} for T in (1024, 8192, 16384)]
    assert report.growth(rows, "T", "linear") == pytest.approx(1)
    assert report.growth(rows, "T", "square") == pytest.approx(2)
    assert report.growth(rows, "T", "unknown") is None
    assert report.growth(rows[1:], "T", "linear") is None


def test_bad_arguments_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="op must be one of chunk_summary, .*, got 'chunk_sumary'"):
        registry.find("chunk_sumary")
    with pytest.raises(ValueError, match="max size must be at least 1024, the smallest T of chunk_summary, got 5"):
        bench_run.run(SUMMARY, tmp_path, QUICK._replace(most=5))
    with pytest.raises(ValueError, match=r"device must be cpu, or cuda .*got 'tpu'"):
        bench_run.run(SUMMARY, tmp_path, QUICK._replace(device="tpu"))
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install matplotlib, or .* --no-plot"):
        bench_run.run(SUMMARY, tmp_path, QUICK._replace(plot=True))


def test_sources_of_fast_rnnt_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv(fast_rnnt.SOURCES, raising=False)
    assert fast_rnnt.obstacle("cpu") == "give its sources with --fast-rnnt DIR"
    monkeypatch.setenv(fast_rnnt.SOURCES, str(tmp_path))
    assert fast_rnnt.obstacle("cpu") == f"{tmp_path} has no fast_rnnt/csrc/mutual_information_cpu.cu"


@pytest.mark.slow
def test_fast_rnnt_agrees():
    """With its sources in $SUMIX_FAST_RNNT: built, and held equal to the fp64 reference."""
    if fast_rnnt.obstacle("cpu"):
        pytest.skip(f"no sources in ${fast_rnnt.SOURCES}")
    benchmark = registry.find("loss")
    verdict = gate.check(benchmark, "fp32", "cpu", (benchmark.contender("fast_rnnt"),))["fast_rnnt"]
    assert verdict.note == "" and verdict.rms_error < benchmark.tolerance["fp32"][1]


def test_a_measuring_process_answers_in_json():
    job = {"contender": "torch", "dtype": "fp32", "shape": {"B": 1, "T": 64, "D": 4, "C": 16, "L": 4}}
    request = {"source": SUMMARY.source, "device": "cpu", "min_seconds": 0.0, "jobs": [job]}
    command = [sys.executable, "-m", "sumix_kernels.bench.measure", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ)
    assert json.loads(done.stdout)["forward"]["ms_p50"] > 0


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    path = bench_run.run(SUMMARY, tmp_path, QUICK._replace(device="cuda", most=1500))
    rows = list(csv.DictReader((tmp_path / "chunk_summary.csv").open()))
    assert {row["contender"] for row in rows if row["ms_p50"]} == {c.name for c in SUMMARY.contenders}, path.read_text()
    assert all(float(row["share_of_copy"]) < 1.2 for row in rows if row["ms_p50"])


@needs_numba
def test_products_beside_libraries_are_right_before_they_are_timed(monkeypatch):
    pytest.importorskip("onnxruntime")
    from sumix_kernels.bench import products

    found = products.measure(8, 33, 50, repeats=2, matrices=2)
    assert set(found) == set(products.CONTENDERS) and all(len(each) == 2 and min(each) > 0 for each in found.values())
    monkeypatch.setitem(products.CONTENDERS, "wrong", lambda weights: lambda x: [x @ w.T + 1 for w in weights])
    with pytest.raises(ValueError, match="wrong: 8 x 33 x 50 is wrong by"):
        products.measure(8, 33, 50, repeats=1, matrices=2)
