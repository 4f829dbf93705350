"""Every recipe: its configurations load, and its prepare gives what they ask for."""

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from trees import (
    sentence,
    write_aishell,
    write_commonvoice,
    write_digits,
    write_kaldi,
    write_librispeech,
    write_tedlium,
    write_voxpopuli,
    write_words,
)

import sumix_stream.cli.prepare
from sumix_stream.config.data import ConcatenateConfig
from sumix_stream.config.reader import load_recipe
from sumix_stream.corpora.preparation import read_stats
from sumix_stream.data import TrainLoader, load_cuts, read_valid
from sumix_stream.tasks.base import load_outputs, make_task
from sumix_stream.timebase import Timebase

CONFIGS = sorted((ROOT / "egs").glob("*/conf/*.yaml"))
INTENTS = ((0, "train", "order"), (1, "train", "cancel"), (2, "valid", "order"), (3, "test", "cancel"))
HERE = ("aishell", "commonvoice", "speechocean", "tedlium")
COUNTS = {"train": 8, "dev": 2, "test": 2}  # utterances
RECIPES = sorted(path.parent.name for path in (ROOT / "egs").glob("*/prepare"))


def prepare(recipe: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "egs" / recipe / "prepare", *arguments]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)


def prepare_here(recipe: str, *arguments: object) -> str:
    """Run a recipe that calls bin/prepare in this process, which has imported PyTorch; what it writes on stderr."""

    def execv(path: str, command: list[str]) -> None:
        assert path == str(ROOT / "bin" / "prepare")
        sys.argv = command
        sumix_stream.cli.prepare.run()

    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.setattr(sys, "argv", [str(word) for word in (recipe, *arguments)])
        patch.setattr(os, "execv", execv)
        patch.setitem(sys.modules, "_venv", types.SimpleNamespace(enter=lambda: None))
        patch.syspath_prepend(ROOT / "bin")
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "egs" / recipe / "prepare"), run_name="__main__")
    assert end.value.code == 0, (end.value.code, errors.getvalue())
    return errors.getvalue()


def test_recipes_are_found():
    names = "aishell commonvoice digits english intents librispeech mini speech_commands speechocean tedlium voxpopuli"
    assert RECIPES == names.split()
    assert {path.parent.parent.name for path in CONFIGS} == set(RECIPES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "egs")))
def test_config_loads_and_asks_for_what_prepare_writes(path):
    recipe = load_recipe(path)
    data = path.parent.parent / "data"
    if parts := re.search(r"_(\d+h)$", path.stem):  # the larger parts of LibriSpeech
        data /= parts[1]
    data /= {"commonvoice": "it", "tedlium": "3"}.get(data.parent.name, "")
    assert [Path(p) for p in recipe.data.train_cuts] == [data / "cuts_train.jsonl.gz"]
    assert [Path(p) for p in recipe.data.valid_cuts] == [data / "cuts_valid.jsonl.gz"]
    outputs = "labels.yaml" if recipe.task == "classification" else "tokenizer.model"
    assert Path(recipe.tokenizer.path) == data / outputs
    assert Path(recipe.train.exp_dir).parent == path.parent.parent / "exp"
    assert recipe.loss.warmup_steps < recipe.train.max_steps
    assert recipe.data.max_utterance <= recipe.data.max_duration


@pytest.mark.parametrize("recipe", RECIPES)
def test_prepared_data_make_batches(recipe, tmp_path):
    if recipe == "digits":
        write_digits(tmp_path / "corpus" / "recordings")
        options = ["--corpus", tmp_path / "corpus", "--num-train", 20, "--num-valid", 3, "--num-test", 3]
    elif recipe == "english":
        for part, speaker in (("train-clean-5", "10"), ("dev-clean", "11"), ("test-clean", "61"), ("test-clean", "62")):
            write_librispeech(tmp_path / "corpus", part, [speaker], 4)
        options = ["--librispeech", tmp_path / "corpus", "--vocab-size", 32, "--jobs", 1]
    elif recipe == "librispeech":
        for part, speaker, number in (("train-clean-5", "10", 8), ("test-clean", "20", 2)):
            write_librispeech(tmp_path / "corpus" / "LibriSpeech", part, [speaker], number)
        options = ["--parts", "mini", "--corpus", tmp_path / "corpus", "--vocab-size", 32]
    elif recipe == "speech_commands":
        write_words(tmp_path / "corpus", ("yes", "no"), 12)
        options = ["--corpus", tmp_path / "corpus", "--task", "words", "--valid", 0.3, "--test", 0.3]
    elif recipe == "intents":
        write_words(tmp_path / "corpus", ("on",), 4)
        rows = [f"on/speaker{n}_nohash_0.wav\t{part}\t{intent}" for n, part, intent in INTENTS]
        (tmp_path / "t.tsv").write_text("\n".join(["path\tpart\tintent", *rows]) + "\n")
        options = ["--table", tmp_path / "t.tsv", "--audio", tmp_path / "corpus"]
    elif recipe == "voxpopuli":
        write_voxpopuli(tmp_path / "corpus")
        options = ["--corpus", tmp_path / "corpus", "--vocab-size", 30, "--max-seconds", 15]
    elif recipe == "commonvoice":
        texts = {part: [f"{sentence(n)}, è!" for n in range(count)] for part, count in COUNTS.items()}
        write_commonvoice(tmp_path / "corpus", "it", texts)
        options = ["--corpus", tmp_path / "corpus", "--language", "it", "--vocab-size", 32, "--jobs", 1]
    elif recipe == "tedlium":
        talks = {part: [(f"{part}Talk_2010", count)] for part, count in COUNTS.items()}
        write_tedlium(tmp_path / "corpus" / "legacy", talks)
        options = ["--corpus", tmp_path / "corpus", "--vocab-size", 32, "--jobs", 1]
    elif recipe == "aishell":
        write_aishell(tmp_path / "corpus", {"train": ("S0002", "S0003"), "dev": ("S0724",), "test": ("S0764",)})
        options = ["--corpus", tmp_path / "corpus", "--jobs", 1]
    elif recipe == "speechocean":
        for part, speakers in (("train", range(4)), ("test", range(7, 9))):
            texts = {f"{speaker:04d}-{n}": sentence(n) for speaker in speakers for n in range(3)}
            write_kaldi(tmp_path / "corpus" / part, texts, audio="WAVE/{}.wav")
        options = ["--corpus", tmp_path / "corpus", "--valid", 0.25, "--vocab-size", 32, "--jobs", 1]
    else:
        pytest.importorskip("espeakng_loader", reason="eSpeak NG is not installed (pip install espeakng-loader)")
        options = ["--num-train", 8, "--num-valid", 2, "--num-test", 2, "--jobs", 1]
    out = tmp_path / "data"
    if recipe in HERE:
        prepare_here(recipe, *options, "--out", out)
    else:
        finished = prepare(recipe, *options, "--out", out)
        assert finished.returncode == 0, finished.stderr
    recipe_of = load_recipe(CONFIGS[[path.parent.parent.name for path in CONFIGS].index(recipe)])
    tokenizer = load_outputs(make_task(recipe_of.task), out / Path(recipe_of.tokenizer.path).name)
    mean, std = read_stats(out / "stats.npz")
    config = replace(recipe_of.data, num_workers=0, concatenate=ConcatenateConfig())  # a joined utterance has one id
    loader = TrainLoader(config, out / "cuts_train.jsonl.gz", tokenizer, Timebase(), seed=0)
    batches = list(loader.epoch_batches(0))
    assert {id.split("_sp")[0] for batch in batches for id in batch.ids} == set(
        load_cuts(out / "cuts_train.jsonl.gz").ids
    )
    assert all(batch.feats.isfinite().all() and batch.feats.std() > 1 for batch in batches)
    assert -17 < mean.min() and mean.max() < 5 and std.max() < 10
    for part in ("valid", "test"):
        cuts = load_cuts(out / f"cuts_{part}.jsonl.gz")
        assert [u.id for u in read_valid(cuts)] == [cut.id for cut in cuts]


@pytest.mark.parametrize(
    "recipe, options",
    [
        ("aishell", ["--corpus", "nowhere"]),
        ("commonvoice", ["--corpus", "nowhere", "--language", "it"]),
        ("digits", ["--corpus", "nowhere"]),
        ("english", ["--librispeech", "nowhere"]),
        ("librispeech", ["--parts", "full"]),
        ("librispeech", ["--corpus", "nowhere"]),
        ("speechocean", ["--corpus", "nowhere"]),
        ("tedlium", ["--corpus", "nowhere"]),
        ("voxpopuli", ["--languages", "xx"]),
        ("voxpopuli", ["--corpus", "nowhere"]),
    ],
)
def test_prepare_says_what_is_wrong_in_one_line(recipe, options, tmp_path):
    finished = prepare(recipe, *options, "--out", tmp_path)
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: ") and options[1] in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1


def texts_of(out: Path, part: str) -> set[str]:
    return {cut.supervisions[0].text for cut in load_cuts(out / f"cuts_{part}.jsonl.gz")}


def test_texts_and_parts_of_the_corpora_are_their_own(tmp_path):
    """TED-LIUM 2: suffixes joined, no marks, nothing that scoring ignores; Mandarin without spaces."""
    write_tedlium(tmp_path / "ted", {part: [(f"{part}Talk_2010", count)] for part, count in COUNTS.items()})
    options = ["--corpus", tmp_path / "ted", "--vocab-size", 32, "--jobs", 1, "--release", 2]
    prepare_here("tedlium", *options, "--out", tmp_path / "2")
    for part, count in (("train", 8), ("valid", 2), ("test", 2)):
        assert texts_of(tmp_path / "2", part) == {f"{sentence(n).lower()} they're" for n in range(count)}
    write_aishell(tmp_path / "a", {"train": ("S0002",), "dev": ("S0724",), "test": ("S0764",)})
    errors = prepare_here("aishell", "--corpus", tmp_path / "a", "--jobs", 1, "--out", tmp_path / "zh")
    assert "1 transcripts without a recording" in errors
    for part in ("train", "valid", "test"):
        assert texts_of(tmp_path / "zh", part) == {"今天天气", "语音识别", "北京时间", "一二三K"}
    (tmp_path / "a/data_aishell/wav/S0900.tar.gz").touch()
    finished = prepare("aishell", "--corpus", tmp_path / "a", "--out", tmp_path / "zh")
    assert finished.returncode == 1 and "S0900.tar.gz" in finished.stderr
