"""The loader's benchmark adds up, and leaves what it measures as it was."""

import csv
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from trees import write_cuts_and_tokenizer

from sumix_stream.bench import loader as bench
from sumix_stream.config import ConcatenateConfig, DataConfig, NoiseConfig, PauseConfig, RecipeConfig, ReverbConfig
from sumix_stream.config import TokenizerConfig as Tokenizer
from sumix_stream.config.reader import dump_yaml
from sumix_stream.data.batching import loader as batches


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> RecipeConfig:
    folder = tmp_path_factory.mktemp("corpus")
    _, manifest, _ = write_cuts_and_tokenizer(folder, [2.0 + 0.1 * (i % 5) for i in range(30)])
    data = DataConfig(
        train_cuts=(str(manifest),),
        max_duration=8.0,
        speed_perturb=(0.9,),
        concatenate=ConcatenateConfig(0.3, 6.0),
        pause=PauseConfig(0.5, (0.5, 1.0)),
        reverb=ReverbConfig(1.0),
        noise=NoiseConfig(1.0),
        telephone=1.0,
    )
    return RecipeConfig(data=data, tokenizer=Tokenizer(str(folder / "tokenizer.model")))


def test_parts_add_up_and_are_all_there(recipe):
    result = bench.measure(recipe, [0, 1], 6)
    assert result.num_batches == 6 and 0.005 < result.hours < 6 * 9 / 3600
    assert set(result.parts) == {*bench.PARTS.values(), bench.REST}
    assert all(value > 0 for value in result.parts.values()), result.parts
    assert [t.workers for t in result.throughputs] == [0, 1]
    assert all(t.hours_per_hour > 0 and t.cpu_seconds > 0 and t.first_batch > 0 for t in result.throughputs)


def test_time_within_a_part_counts_once(monkeypatch):
    clock = iter([0, 1, 3, 10, 10, 12])  # outer begins, inner 1 to 3, outer ends at 10; outer again: 10 to 12
    monkeypatch.setattr(bench.time, "thread_time", lambda: next(clock))

    class Work:
        def inner(self):
            pass

        def outer(self, deep):
            if deep:
                self.inner()

    monkeypatch.setattr(bench, "PARTS", {(Work, "inner"): "a", (Work, "outer"): "b"})
    spent = bench.defaultdict(float)
    with bench._timed(spent):
        Work().outer(True)
        Work().outer(False)
    assert spent == {"a": 2, "b": 8 + 2}
    assert "inner" in vars(Work) and Work.inner.__name__ == "inner"  # everything is as it was


def test_report(recipe, tmp_path):
    threads, load = torch.get_num_threads(), batches.load_samples
    options = {"workers": [0], "num_batches": 4, "needed": [720.0], "command": "bin/bench loader --x"}
    path = bench.run(recipe, tmp_path / "out", **options)
    assert torch.get_num_threads() == threads and batches.load_samples is load
    text = path.read_text()
    assert "4 batches of at most 8 s" in text and "    bin/bench loader --x" in text and "| filter bank | " in text
    rows = list(csv.DictReader((tmp_path / "out" / "loader.csv").open()))
    assert rows[-1]["figure"] == "throughput" and rows[-1]["machine"]
    cores = float(text.strip().splitlines()[-1].split("|")[2])
    assert cores == pytest.approx(720 * float(rows[-1]["cpu_seconds"]) / 3600, abs=0.051)
    assert sum(row["figure"] == "part" for row in rows) == len({*bench.PARTS.values()}) + 1


@pytest.mark.parametrize(
    "bad", [{"workers": []}, {"workers": [-1]}, {"num_batches": 1}, {"needed": []}, {"needed": [0.0]}], ids=str
)
def test_impossible_numbers_are_refused(recipe, tmp_path, bad):
    options = {"workers": [0], "num_batches": 4, "needed": [720.0], "command": ""} | bad
    with pytest.raises(ValueError, match="workers must be numbers"):
        bench.run(recipe, tmp_path, **options)


def test_too_few_batches_for_the_workers(recipe):
    with pytest.raises(ValueError, match="3 workers need more batches than that to be timed, there are 3"):
        bench.measure(recipe, [0, 3], 3)


def test_the_command_writes_what_training_hears(recipe, tmp_path):
    dump_yaml(recipe, tmp_path / "recipe.yaml")
    arguments = ["--config", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--listen", "3", "--train.seed", "4"]
    done = subprocess.run(
        [sys.executable, ROOT / "bin" / "bench", "loader", *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "listen.html").read_text()
    assert done.stdout.strip() == str(tmp_path / "out" / "listen.html") and "seed 4" in page
    assert page.count("data:audio/flac;base64,") == 6 and len(list((tmp_path / "out").glob("*.flac"))) == 6
