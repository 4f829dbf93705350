"""The page of a model's figures: every row is a command that exists, and the page says what its reports say."""

import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
from conftest import ROOT

from sumix_stream.cli import decode, stream_decode


@pytest.fixture
def evaluate(monkeypatch):
    path = ROOT / "egs" / "english" / "evaluate"
    spec = spec_from_loader("english_evaluate", SourceFileLoader("english_evaluate", str(path)))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_run(ran: list[list[str]], monkeypatch: pytest.MonkeyPatch):
    """Takes the command apart as its program would, and writes a report whose error rate tells the row."""

    def run(command: list[str]) -> subprocess.CompletedProcess:
        words = list(map(str, command[2:]))
        program = {"decode": decode, "stream_decode": stream_decode}[Path(command[1]).name]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [program.__name__, *words])
            given = program.arguments()
        ran.append(words)
        given.out.mkdir(parents=True, exist_ok=True)
        wer = len(ran) / 100
        pairs = [["A", "A"], ["B", None], ["B", "C"], ["B", None]]
        heard = [
            {"id": f"{speaker}-1-{n}", "reference": "A B B B", "errors": 3 if speaker == "7" else 0, "pairs": pairs}
            for speaker in ("7", "8")
            for n in range(2)
        ]
        report = {"wer": wer, "interval95": [wer - 0.01, wer + 0.01], "utterances": heard, "words": 16}
        (given.out / "report.json").write_text(json.dumps({**report, "audio_seconds": 7200.0}))
        return subprocess.CompletedProcess(command, 0)

    return run


def test_a_page_of_all_rows_that_goes_on_where_it_was_stopped(evaluate, monkeypatch, tmp_path, capsys):
    exp, cuts, lm = tmp_path / "exp", tmp_path / "cuts_valid.jsonl.gz", tmp_path / "lm.arpa.gz"
    exp.mkdir()
    (exp / "model.safetensors").write_bytes(b"weights")
    for path in (cuts, lm, tmp_path / "cuts_other.jsonl.gz"):
        path.write_bytes(b"x")
    given = ["--checkpoint", exp, "--cuts", cuts, "--ngram", lm, "--sets", tmp_path / "cuts_other.jsonl.gz"]
    given += ["--blank-penalty", "1"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, given)])
    ran: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", fake_run(ran, monkeypatch))
    assert evaluate.main() == 0
    assert len(ran) == 13 + 4 + 4 + 3 + 2, "contexts, beam, n-gram, second pass, the other set"
    assert all(("--beam" in command) == ("--blank-penalty" in command) for command in ran)
    page = (exp / "english" / "RESULTS.md").read_text()
    assert "| 320ms | 1.00 | 2.00 | 3.00 | 4.00 |" in page and "Full context: 13.00 (12.00 to 14.00)." in page
    assert "| chunk | greedy | beam 4 | beam 4, n-gram | second pass |" in page
    assert "| full | 13.00 (12.00 to 14.00) | 23.00 (22.00 to 24.00) | 24.00 (23.00 to 25.00) |  |" in page
    assert "| other | 25.00 (24.00 to 26.00) | 26.00 (25.00 to 27.00) |" in page
    assert page.index("| 8 | 2 | 8 | 0.00 |") < page.index("| 7 | 2 | 8 | 75.00 |")
    assert "| 8 | B | (nothing) |" in page and "| 4 | B | C |" in page

    assert evaluate.main() == 0 and len(ran) == 26, "nothing has changed"
    (exp / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--dry-run"])
    capsys.readouterr()
    assert evaluate.main() == 0 and len(ran) == 26
    assert len(capsys.readouterr().out.splitlines()) == 26, "other weights: all anew"


def test_a_row_that_fails_is_named(evaluate, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "out")])
    monkeypatch.setattr(subprocess, "run", lambda command: subprocess.CompletedProcess(command, 3))
    assert evaluate.main() == 3
    assert "greedy 320ms 2: exit status 3; the same call again goes on here" in capsys.readouterr().err
