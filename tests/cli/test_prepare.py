"""bin/prepare: what it takes, what it prints, and what it says about mistakes."""

import re
import sys

import pytest
from conftest import ROOT
from trees import write_kaldi, write_own_folder, write_wavs

from sumix_stream.cli import prepare
from sumix_stream.config.reader import load_recipe
from sumix_stream.corpora.readers import READERS
from sumix_stream.train.estimate import spoken


def run(monkeypatch, *arguments):
    """Exit status: 0, or the message."""
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        prepare.run()
    return caught.value.code


def test_kinds_are_those_that_are_read():
    assert set(prepare.KINDS) == set(READERS)


def test_from_a_kaldi_folder_to_the_command_that_trains(tmp_path, monkeypatch, capsys):
    texts = {
        f"{speaker}-{n}": f"WORDS OF {speaker.upper()} {'ABCDEFGH'[n]}" for speaker in ("ann", "bob") for n in range(8)
    }
    write_kaldi(tmp_path / "train", texts)
    out = tmp_path / "out"
    assert run(monkeypatch, tmp_path / "train", "--out", out, "--valid", 2, "--test", 2, "--jobs", 1) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'train'}: kaldi, 16 utterances" in said
    assert f"train:   bin/train --config {out / 'train.yaml'}" in said
    assert f"then:    bin/decode --checkpoint {out / 'exp'} --cuts {out / 'cuts_test.jsonl.gz'}" in said
    steps = load_recipe(out / "train.yaml").train.max_steps
    assert f"{steps} steps of " in said and "on this machine" in said and not (out / "exp").exists()


def test_a_table_by_its_columns(tmp_path, monkeypatch, capsys):
    write_wavs(tmp_path / "audio", ["a.wav", "b.wav", "c.wav"], channels=2)
    (tmp_path / "t.csv").write_text("who,file,words\n" + "".join(f"x,{n}.wav,Hello {n}.\n" for n in "abc"))
    options = ["--columns", "text=words,path=file,speaker=1", "--channel", "right", "--case", "lower"]
    options += ["--punctuation", "remove", "--valid", 1, "--test", 0, "--no-estimate", "--jobs", 1]
    assert run(monkeypatch, tmp_path / "t.csv", "--out", tmp_path / "out", *options) == 0
    said = capsys.readouterr().out
    assert "3 times punctuation removed: 'Hello a.' -> 'Hello a'" in said and "3 times lower case" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--columns", "word=3"], "--columns word=3: must be NAME=COLUMN, with a name of path, text"),
        (["--speaker", "("], "no regular expression"),
        (["--speaker", "x"], "has no group"),
        (["--valid", "1.5"], "--valid 1.5: must be a share below 1"),
        (["--from", "kaldi"], "no wav.scp in it"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, monkeypatch, options, message):
    write_own_folder(tmp_path / "own", speakers=1, each=3)
    said = run(monkeypatch, tmp_path / "own", "--out", tmp_path / "out", "--jobs", 1, *options)
    assert said.startswith("prepare: ") and message in said


@pytest.mark.parametrize("options", [["--channel", "middle"], ["--min-seconds", "40"], ["--jobs", "0"]])
def test_options_out_of_range(tmp_path, monkeypatch, options):
    assert run(monkeypatch, tmp_path, "--out", tmp_path / "out", *options) == 2


def test_long_times_are_told_as_people_do():
    said = [spoken(seconds) for seconds in (40, 120, 3000, 5400, 30_000, 300_000, 3_000_000)]
    assert said == ["40 seconds", "2.0 minutes", "50 minutes", "1.5 hours", "8.3 hours", "3.5 days", "35 days"]


def test_options_of_the_documentation_are_there(monkeypatch, capsys):
    pages = [ROOT / "docs" / name for name in ("own-data.md", "quickstart.md")]
    named = set(re.findall(r"(--[a-z][a-z-]+)", " ".join(page.read_text() for page in pages)))
    assert len(named) > 15
    known = {"--checkpoint", "--cuts", "--times", "--config", "--train", "--model"}  # of other commands
    known |= {"--format", "--overwrite", "--microphone"}
    assert run(monkeypatch, "--help") == 0
    said = capsys.readouterr().out
    assert {option for option in named - known if option not in said} == set()
    faults = {
        "no transcript",
        "missing audio",
        "unreadable audio",
        "too long",
        "too short",
        "silent",
        "channels cancel",
    }
    faults |= {"misaligned", "overlap", "bad times", "not UTF-8", "command", "listed twice"}
    assert all(f"| {fault}" in pages[0].read_text() or f", {fault}" in pages[0].read_text() for fault in faults)
