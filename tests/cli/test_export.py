"""bin/export, run in this process: what it writes, prints and refuses."""

import json
import runpy
import sys
import types
from copy import deepcopy
from pathlib import Path

import pytest
import soundfile
from conftest import ROOT
from talkative import VOCAB_SIZE, sound, talkative_model

from sumix_stream.tasks.checkpoint import save_model
from sumix_stream.tokenizer import train_tokenizer


@pytest.fixture
def exp(tmp_path) -> Path:
    folder = tmp_path / "talker"
    folder.mkdir()
    letters = " ".join(chr(ord("a") + n) for n in range(VOCAB_SIZE - 3))
    tokenizer = train_tokenizer([letters], tmp_path / "letters.model", model_type="char")
    save_model(folder, deepcopy(talkative_model()), tokenizer)
    return folder


@pytest.fixture
def door(monkeypatch, capsys, exp):
    """Run it with arguments: (exit code, standard output, standard error)."""
    monkeypatch.syspath_prepend(ROOT / "bin")
    monkeypatch.setitem(sys.modules, "_venv", types.SimpleNamespace(enter=lambda: None))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["export", "--checkpoint", str(exp), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "bin" / "export"), run_name="__main__")
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


def test_a_bundle_of_a_checkpoint(door, tmp_path):
    wav, out = tmp_path / "a.wav", tmp_path / "bundle"
    soundfile.write(wav, sound(1.5), 16_000)
    code, told, err = door(
        *("--chunk", "320ms", "--left-context", "unlimited", "--out", out),
        *("--audio", wav, "--language", "en", "--data", "noise"),
    )
    assert (code, err) == (0, "")
    assert "a.wav" in told and "tokens identical" in told
    assert f"{out}: sherpa-onnx, fp32, chunk 8 frames, left unlimited, latency 337.5 ms" in told
    card = json.loads((out / "card.json").read_text())
    assert (card["name"], card["languages"], card["left_context_chunks"]) == ("talker", ["en"], None)
    assert (out / "tokens.txt").read_text(encoding="utf-8").splitlines()[-1] == f"<blk> {VOCAB_SIZE - 1}"


def test_the_weights_alone(door, exp, tmp_path):
    out = tmp_path / "weights"
    code, told, err = door("--format", "checkpoint", "--average", "none", "--out", out)
    assert (code, err) == (0, "") and told.startswith(f"{out}: ")
    assert (out / "model.safetensors").read_bytes() == (exp / "model.safetensors").read_bytes()
    assert door("--format", "checkpoint", "--average", "2", "--out", tmp_path / "more")[0] == 2


BAD = {
    "int8 unmeasured": (["--int8"], "name a cut manifest"),
    "full context": (["--chunk", "full"], "streaming needs one chunk size"),
    "duration": (["--chunk", "650ms"], "640 ms and 680 ms"),
    "missing audio": (["--audio", "none.wav"], "none.wav: no such audio file"),
    "missing manifest": (["--format", "onnx", "--manifest", "none.jsonl.gz"], "no such cut manifest"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_what_is_refused(arguments, message, door, tmp_path):
    code, told, err = door("--out", tmp_path / "bundle", *arguments)
    assert code == 2
    assert message in err and "Traceback" not in err
    assert not (tmp_path / "bundle").exists() and "identical" not in told
