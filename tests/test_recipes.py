"""Every recipe: its configurations load, and its prepare gives what they ask for."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from trees import write_digits, write_librispeech, write_voxpopuli, write_words

from sumix_stream.config.data import ConcatenateConfig
from sumix_stream.config.reader import load_recipe
from sumix_stream.corpora.preparation import read_stats
from sumix_stream.data import TrainLoader, load_cuts, read_valid
from sumix_stream.tasks.base import load_outputs, make_task
from sumix_stream.timebase import Timebase

CONFIGS = sorted((ROOT / "egs").glob("*/conf/*.yaml"))
INTENTS = ((0, "train", "order"), (1, "train", "cancel"), (2, "valid", "order"), (3, "test", "cancel"))
RECIPES = sorted(path.parent.name for path in (ROOT / "egs").glob("*/prepare"))


def prepare(recipe: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "egs" / recipe / "prepare", *arguments]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)


def test_recipes_are_found():
    assert RECIPES == ["digits", "english", "intents", "librispeech", "mini", "speech_commands", "voxpopuli"]
    assert {path.parent.parent.name for path in CONFIGS} == set(RECIPES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "egs")))
def test_config_loads_and_asks_for_what_prepare_writes(path):
    recipe = load_recipe(path)
    data = path.parent.parent / "data"
    if parts := re.search(r"_(\d+h)$", path.stem):  # the larger parts of LibriSpeech
        data /= parts[1]
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
    else:
        pytest.importorskip("espeakng_loader", reason="eSpeak NG is not installed (pip install espeakng-loader)")
        options = ["--num-train", 8, "--num-valid", 2, "--num-test", 2, "--jobs", 1]
    out = tmp_path / "data"
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
        ("digits", ["--corpus", "nowhere"]),
        ("english", ["--librispeech", "nowhere"]),
        ("librispeech", ["--parts", "full"]),
        ("librispeech", ["--corpus", "nowhere"]),
        ("voxpopuli", ["--languages", "xx"]),
        ("voxpopuli", ["--corpus", "nowhere"]),
    ],
)
def test_prepare_says_what_is_wrong_in_one_line(recipe, options, tmp_path):
    finished = prepare(recipe, *options, "--out", tmp_path)
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: ") and options[1] in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1
