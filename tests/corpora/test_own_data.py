"""From sources to a folder that trains: parts, misaligned utterances, what is done again, and what is kept."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from trees import tone, write_own_folder, write_wavs

from sumix_stream.config.reader import load_recipe
from sumix_stream.corpora import own_data
from sumix_stream.corpora.checking import Checks
from sumix_stream.corpora.faults import read_report
from sumix_stream.corpora.listing import Given, item_of, pieces_of_work, plain_name, write_items
from sumix_stream.corpora.own_data import Settings, check, prepare
from sumix_stream.corpora.readers.base import Item, ReadOptions
from sumix_stream.corpora.recipe_writer import Machine
from sumix_stream.corpora.text import TextNormaliser
from sumix_stream.data import TrainLoader, load_cuts
from sumix_stream.report.data_page import write_data_page
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import Tokenizer

CPU = Machine(2)


def run(out, *sources, jobs=1, **settings):
    settings = {"valid": 4, "test": 4, **settings}
    options = {"learning_rate": lambda dim, seconds: 1e-3, "write_page": write_data_page, "machine": CPU, "jobs": jobs}
    given = [source if isinstance(source, Given) else Given(source) for source in sources]
    return prepare(given, out, Settings(**settings), **options)


def modified(folder):
    """Of everything but what every run makes anew."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "items.jsonl")
    return {path: path.stat().st_mtime_ns for path in files}


def ids(out, part):
    return [cut.id for cut in load_cuts(out / f"cuts_{part}.jsonl.gz")]


@pytest.fixture
def own(tmp_path):
    write_own_folder(tmp_path / "own", speakers=3, each=8)
    return tmp_path / "own"


def test_a_folder_becomes_one_that_trains(own, tmp_path, capsys):
    (own / "speaker0" / "0.wav").write_text("no audio")
    (own / "speaker1" / "3.txt").write_text("...")
    write_wavs(own / "speaker2", ["99.wav"])
    latin = os.fsdecode(os.fsencode(own / "speaker2") + b"/caf\xe9")
    shutil.copy(own / "speaker2" / "1.wav", latin + ".wav")
    Path(latin + ".txt").write_text("WORDS")
    out = tmp_path / "out"
    summary = run(out, own, case="lower")
    assert summary["parts"]["train"]["utterances"] == 14 and len(ids(out, "valid")) == len(ids(out, "test")) == 4
    assert ids(out, "train") != sorted(ids(out, "train"))
    everything = {id for part in ("train", "valid", "test") for id in ids(out, part)}
    assert len(everything) == 22 and "speaker0-1" in everything
    faults = {(f.file.rpartition("/")[2], f.line, f.fault) for f in read_report(out / "left_out.tsv")}
    expected = {("0.txt", 1, "unreadable audio"), ("3.txt", 1, "empty transcript"), ("99.wav", 0, "no transcript")}
    expected.add((r"caf\udce9.txt", 1, "file name"))
    assert faults == expected
    said = capsys.readouterr().out
    assert "texts: 24 times lower case" in said and "1 left out: no transcript" in said and "at random" in said
    recipe = load_recipe(out / "train.yaml")
    tokenizer = Tokenizer.load(recipe.tokenizer.path)
    loader = TrainLoader(recipe.data, load_cuts(recipe.data.train_cuts), tokenizer, Timebase(), seed=0)
    batch = next(loader.epoch_batches(0))
    assert all(text == text.lower() for text in batch.texts)
    page = (out / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "<script" not in page
    assert "unreadable audio" in page and not (out / "audio").exists()


def test_sources_named_for_a_set_are_that_set(own, tmp_path):
    write_own_folder(tmp_path / "dev", speakers=1, each=2)
    (tmp_path / "dev").rename(tmp_path / "train-other")
    named = Given(tmp_path / "train-other", None, "valid")
    summary = run(tmp_path / "out", own, named, use_splits=False, test=0)
    assert summary["parts"]["train"]["utterances"] == 24 and summary["notes"][-1] == "valid: as the sources say"
    files = [cut.recording.sources[0].source for cut in load_cuts(tmp_path / "out" / "cuts_valid.jsonl.gz")]
    assert len(files) == 2 and all("train-other" in file for file in files)


def test_every_line_of_the_recipe_says_why(own, tmp_path):
    run(tmp_path / "out", own)
    lines = (tmp_path / "out" / "train.yaml").read_text().splitlines()
    for line in lines:
        section = re.fullmatch(r"\w+:", line)
        mask = re.match(r"    num_", line)
        assert section or mask or " # " in line or line.startswith("# "), line


def test_what_is_done_is_not_done_again(own, tmp_path, capsys):
    out = tmp_path / "out"

    def done(**settings):
        capsys.readouterr()
        run(out, own, **settings)
        return {line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "already done" in line}

    stages = ["check", "division", "tokenizer", "stats", "report"]
    assert not done()
    before = modified(out)
    assert done() == set(stages) and modified(out) == before
    assert done(seed=1) == {"check"}
    (own / "speaker0" / "0.txt").write_text("other words\n")
    assert not done(seed=1)
    (out / "cuts_valid.jsonl.gz").unlink()
    assert done(seed=1) == {"check"}
    soundfile.write(own / "speaker0" / "1.wav", tone(1.2, seed=77), 16_000)
    assert not done(seed=1)


def test_a_recipe_that_was_changed_is_kept(own, tmp_path, capsys):
    out = tmp_path / "out"
    run(out, own)
    made = (out / "train.yaml").read_text()
    run(out, own, max_seconds=20.0)
    second = (out / "train.yaml").read_text()
    assert "max_utterance: 20" in second and "max_utterance: 30" in made
    (out / "train.yaml").write_text(second + "# mine\n")
    run(out, own, max_seconds=25.0)
    assert (out / "train.yaml").read_text() == second + "# mine\n"
    assert "max_utterance: 25" in (out / "train.proposed.yaml").read_text()
    assert "changed by hand" in capsys.readouterr().out


def test_several_sources_and_their_splits(own, tmp_path):
    shutil.copytree(own / "speaker0", tmp_path / "more" / "test" / "speaker0")
    out = tmp_path / "out"
    summary = run(out, own, tmp_path / "more", own)
    assert summary["parts"]["test"]["utterances"] == 8 and summary["parts"]["test"]["texts in train"] > 0
    assert len(set(ids(out, "train")) | set(ids(out, "valid"))) == 24
    assert sum(fault.fault == "listed twice" for fault in read_report(out / "left_out.tsv")) == 24
    summary = run(out, own, tmp_path / "more", use_splits=False)
    assert summary["parts"]["test"]["utterances"] == 4
    summary = run(out, own, valid=0, test=0)
    assert not (out / "cuts_valid.jsonl.gz").exists() and not (out / "cuts_test.jsonl.gz").exists()
    assert load_recipe(out / "train.yaml").data.valid_cuts == ()


def test_speakers_by_a_pattern(own, tmp_path):
    summary = run(tmp_path / "out", own, valid=0.3, test=0, read=ReadOptions(speaker=r"speaker(\d)"))
    assert summary["parts"]["valid"]["speakers"] == 1 and summary["parts"]["valid"]["speakers in train"] == 0
    assert {cut.supervisions[0].speaker for cut in load_cuts(tmp_path / "out" / "cuts_valid.jsonl.gz")} < set("012")


def test_out_must_not_be_a_source(own):
    with pytest.raises(ValueError, match="lies in it"):
        run(own, own / "speaker0")


def test_nothing_usable_is_told_with_reasons(tmp_path):
    write_own_folder(tmp_path / "own", speakers=1, each=2)
    for path in (tmp_path / "own").rglob("*.wav"):
        path.write_text("no audio")
    with pytest.raises(ValueError, match="no utterance can be used: 2 unreadable audio"):
        run(tmp_path / "out", tmp_path / "own")
    for path in (tmp_path / "own").rglob("*.txt"):
        path.write_text("!")
    with pytest.raises(ValueError, match="no utterance that can be used.*empty transcript"):
        run(tmp_path / "out", tmp_path / "own")


def test_misaligned_utterances_are_left_out_and_odd_ones_shown(tmp_path):
    rng = np.random.default_rng(0)
    write_own_folder(tmp_path / "own", speakers=4, each=8)
    folder = tmp_path / "own" / "speaker0"
    (folder / "0.txt").write_text("far too many words to be spoken in one second " * 3)
    soundfile.write(folder / "1.wav", 0.1 * rng.standard_normal(16_000 * 12), 16_000)
    (folder / "1.txt").write_text("NO")
    (folder / "2.txt").write_text("WORDS THAT ARE RATHER FAST TO BE SPOKEN")
    soundfile.write(folder / "3.wav", np.clip(9 * tone(1), -1, 1), 16_000)
    soundfile.write(folder / "4.wav", 0.004 * tone(1), 16_000)
    out = tmp_path / "out"
    summary = run(out, tmp_path / "own", valid=0, test=0)
    faults = {f.id: f.fault for f in read_report(out / "left_out.tsv")}
    assert faults == {"speaker0-0": "misaligned", "speaker0-1": "misaligned"}
    odd = {kind: [cut["id"] for _, cut in found] for kind, found in summary["odd"].items()}
    assert odd == {"fast": ["speaker0-2"], "slow": [], "clipped": ["speaker0-3"], "quiet": ["speaker0-4"]}
    assert (out / "report.html").read_text().count("<audio") == 3


# The list


def test_names_that_may_be_files():
    assert plain_name("a/b c:d*.é") == "a-b-c-d-.é"
    assert plain_name("../../etc/passwd") == "-..-etc-passwd".lstrip("-.") and "/" not in plain_name("/x/y")
    assert plain_name("...") == "utterance" and len(plain_name("x" * 300)) == 100


def test_the_list_keeps_parts_of_a_recording_together(tmp_path):
    write_wavs(tmp_path, ["a.wav", "b.wav", "c.wav"], 2.0)
    rows = [("b.wav", "1", "2"), ("a.wav", "0.5", "1"), ("c.wav", "", ""), ("b.wav", "0", "1"), ("a.wav", "1", "")]
    table = "path\tstart\tend\ttext\n" + "".join(f"{p}\t{s}\t{e}\tWORD\n" for p, s, e in rows)
    (tmp_path / "t.tsv").write_text(table)
    path = tmp_path / "items.jsonl"
    listing = write_items([Given(tmp_path / "t.tsv")], path, TextNormaliser(), ReadOptions())
    assert listing.num_items == 5 and not listing.faults
    pieces = [[item_of(line) for line in piece] for piece in pieces_of_work(path)]
    assert [[item.audio[-5] for item in piece] for piece in pieces] == [["c"], ["a", "a"], ["b", "b"]]
    assert all(isinstance(item, Item) for piece in pieces for item in piece)


def test_utterances_that_overlap_are_left_out_both(tmp_path):
    write_wavs(tmp_path, ["a.wav"], 9.0, channels=2)
    rows = [(0, 2, ""), (1.5, 2.5, ""), (2.4, 3, ""), (3.2, "", ""), (5, 6, ""), (0, 9, 1)]
    table = "path\tstart\tend\tchannel\ttext\n" + "".join(f"a.wav\t{s}\t{e}\t{c}\tWORD\n" for s, e, c in rows)
    (tmp_path / "t.tsv").write_text(table)
    path = tmp_path / "items.jsonl"

    def lines(**options):
        listing = write_items([Given(tmp_path / "t.tsv")], path, TextNormaliser(), ReadOptions(), **options)
        found = sorted(item_of(line).line for piece in pieces_of_work(path) for line in piece)
        assert listing.num_items == len(found)
        return found, listing.faults

    kept, faults = lines()
    assert kept == [4, 7] and {(f.line, f.fault) for f in faults} == {(n, "overlap") for n in (2, 3, 5, 6)}
    assert "t.tsv:2" in next(f for f in faults if f.line == 3).detail
    assert lines(keep_overlaps=True) == ([2, 3, 4, 5, 6, 7], [])


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("lines", [0, 3, 4, 5, 7])
def test_an_interrupted_check_goes_on(tmp_path, monkeypatch, lines, jobs):
    write_own_folder(tmp_path / "own", speakers=1, each=8)
    monkeypatch.setattr("sumix_stream.corpora.listing.BATCH", 2)
    items, path = tmp_path / "items.jsonl", tmp_path / "checked.jsonl"
    write_items([Given(tmp_path / "own")], items, TextNormaliser(), ReadOptions())
    checks = Checks(str(tmp_path))
    check(items, path, checks, 8, jobs)
    whole = path.read_bytes()
    assert len(whole.splitlines()) == 8 and all("cut" in json.loads(line) for line in whole.splitlines())
    path.with_name("checked.jsonl.part").write_bytes(b"".join(whole.splitlines(True)[:lines]) + b'{"half')
    path.with_name("checked.jsonl.key").write_text(json.dumps([own_data.sha256(items), *checks]))
    path.unlink()
    check(items, path, checks, 8, jobs)
    assert path.read_bytes() == whole
