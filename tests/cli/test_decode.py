"""bin/decode and bin/stream_decode, run in this process: what they print, write and refuse."""

import json
import os
import runpy
import shutil
import sys
import threading
import types
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from recordings import write_media
from talkative import VOCAB_SIZE, sound, talkative_model

from sumix_kernels.cpu import HAS_BF16
from sumix_stream.tasks.checkpoint import save_model
from sumix_stream.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def exp(tmp_path_factory) -> Path:
    """An experiment directory, sounds and a manifest of them."""
    directory = tmp_path_factory.mktemp("exp")
    letters = " ".join(chr(ord("a") + n) for n in range(VOCAB_SIZE - 3))
    tokenizer = train_tokenizer([letters], directory / "letters.model", model_type="char")
    step = directory / "checkpoints" / "step-00000001"
    step.mkdir(parents=True)
    model = deepcopy(talkative_model())
    with torch.no_grad():
        model.joiner.output.bias[tokenizer.unk_id] = -1e4
        model.joiner.output.bias[tokenizer.encode("a")[0]] += 2  # the start of a word
    save_model(step, model, tokenizer)
    (directory / "best.txt").write_text("checkpoints/step-00000001\n")
    cuts = []
    for n, seconds in enumerate((1.5, 0.4, 2.2)):
        path = directory / f"{n}.wav"
        soundfile.write(path, sound(seconds, seed=n), 16_000)
        recording = Recording.from_file(path)
        supervision = SupervisionSegment(f"s{n}", recording.id, 0.0, recording.duration, text="a b c")
        cuts.append(MonoCut(f"c{n}", 0.0, recording.duration, 0, recording=recording, supervisions=[supervision]))
    CutSet.from_cuts(cuts).to_file(directory / "test.jsonl.gz")
    return directory


@pytest.fixture
def door(monkeypatch, capsys, exp):
    """Run a door with arguments: (exit code, standard output, standard error)."""
    monkeypatch.syspath_prepend(ROOT / "bin")
    monkeypatch.setitem(sys.modules, "_venv", types.SimpleNamespace(enter=lambda: None))

    def run(name: str, *arguments: object, checkpoint: Path = exp) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, "--checkpoint", str(checkpoint), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "bin" / name), run_name="__main__")
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


def test_words_appear_as_they_come(door, exp):
    code, out, err = door("stream_decode", exp / "2.wav", "--chunk", "320ms", "--left-context", "unlimited")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"{exp / '2.wav'}: 2.20 s at 16000 Hz")
    heard = [float(line.split(" s |")[0]) for line in lines[1:-1]]
    assert len(heard) >= 3
    assert heard == sorted(heard)
    for line, at in zip(lines[1:-1], heard, strict=True):
        times = [float(word.split()[0]) for word in line.split("|")[1].split("   ")]
        assert all(time < at for time in times)
    _, whole, _ = door("decode", exp / "2.wav", "--chunk", "320ms")
    assert lines[-1] == whole.strip()


def test_times_of_words(door, exp):
    _, out, _ = door("decode", exp / "0.wav", "--times")
    first, *words = out.splitlines()
    assert len(words) > 1
    assert [word.split()[2] for word in words] == first.split(": ")[1].split()


@pytest.mark.parametrize("name", ["decode", "stream_decode"])
def test_manifest(door, exp, tmp_path, name):
    code, out, _ = door(name, "--cuts", exp / "test.jsonl.gz", "--out", tmp_path / "out", "--chunk", "8")
    assert code == 0
    assert "of 9 words in 3 utterances" in out
    assert "RTF" in out
    assert ("final" in out) == (name == "stream_decode")
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["words"] == 9
    assert saved["chunk_size"] == 8
    assert str(tmp_path / "out" / "report.txt") in out


def test_report_goes_beside_the_checkpoint(door, exp):
    _, out, _ = door("stream_decode", "--cuts", exp / "test.jsonl.gz", "--chunk", "8", "--left-context", 1)
    expected = exp / "decode" / "test-chunk8-left1" / "report.txt"
    assert expected.is_file()
    assert str(expected) in out


def test_long_form(door, exp):
    code, out, _ = door("stream_decode", "--cuts", exp / "test.jsonl.gz", "--long-form", "0.2")
    assert code == 0
    assert "minutes in one stream" in out and "RSS after the first minute" in out


def test_beam_search_and_its_alternatives(door, exp):
    _, greedy, _ = door("decode", exp / "2.wav")
    code, out, _ = door("decode", exp / "2.wav", "--beam", 4, "--nbest", 3, "--blank-penalty", 0.5)
    assert code == 0
    best, *others = out.splitlines()
    assert best.startswith(f"{exp / '2.wav'}: ") and best != greedy.strip()
    assert [line.split()[0] for line in others] == ["2.", "3."]
    scores = [float(line.split()[1]) for line in others]
    assert 0 >= scores[0] >= scores[1]
    _, live, _ = door("stream_decode", exp / "2.wav", "--beam", 4, "--blank-penalty", 0.5, "--chunk", "8")
    _, whole, _ = door(
        "decode", exp / "2.wav", "--beam", 4, "--blank-penalty", 0.5, "--chunk", "8", "--left-context", 4
    )
    assert live.splitlines()[-1] == whole.strip()


def test_search_options_reach_the_search_and_the_report(door, exp, tmp_path):
    (tmp_path / "hotwords").write_text("a b :3\n# none\nc\n")
    _, plain, _ = door("decode", exp / "1.wav", "--beam", 4)
    _, boosted, _ = door("decode", exp / "1.wav", "--beam", 4, "--hotwords", tmp_path / "hotwords")
    assert plain != boosted
    texts = [door("decode", exp / "2.wav", "--blank-penalty", p)[1] for p in (-9, 0, 9)]
    assert len(texts[0]) < len(texts[1]) < len(texts[2])
    assert len(door("decode", exp / "2.wav", "--blank-penalty", 9, "--max-symbols", 1)[1]) < len(texts[2])
    for name, suffix in (("decode", "-masked-beam3"), ("stream_decode", "-left4-beam3")):
        door(name, "--cuts", exp / "test.jsonl.gz", "--chunk", "8", "--beam", 3)
        (report,) = (exp / "decode").glob(f"test-chunk8{suffix}/report.json")
        assert json.loads(report.read_text())["search"] == "modified_beam"


def test_exactness(door, exp):
    code, out, _ = door("stream_decode", "--check-exactness", exp / "0.wav")
    assert code == 0
    assert out.count("max |masked - streaming|") == 16
    assert out.strip().endswith(": exact")


def write_bad(directory: Path) -> dict[str, Path]:
    paths = {name: directory / f"{name}.wav" for name in ("missing", "empty", "corrupt", "nan", "no_samples")}
    paths["empty"].touch()
    paths["corrupt"].write_bytes(b"RIFF, or so it says")
    soundfile.write(paths["nan"], np.array([0.0, np.nan] * 500), 16_000, subtype="FLOAT")
    soundfile.write(paths["no_samples"], np.zeros(0), 16_000)
    return paths


@pytest.mark.parametrize("name", ["decode", "stream_decode"])
@pytest.mark.parametrize("fault", ["missing", "empty", "corrupt", "nan", "no_samples"])
def test_bad_audio_is_named_and_the_rest_decoded(door, exp, tmp_path, name, fault):
    bad = write_bad(tmp_path)[fault]
    code, out, err = door(name, bad, exp / "0.wav", "--chunk", "8")
    assert code == 2
    assert str(bad) in err
    assert len(err.splitlines()) == 2 and "1 of 2 files" in err
    assert str(exp / "0.wav") in out


def truncated(exp: Path, to: Path) -> Path:
    shutil.copytree(exp / "checkpoints" / "step-00000001", to)
    weights = to / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return to


@pytest.mark.parametrize("name", ["decode", "stream_decode"])
def test_one_clear_line_for_every_bad_option(door, exp, tmp_path, name):
    audio, cuts = exp / "0.wav", exp / "test.jsonl.gz"
    (tmp_path / "empty.jsonl.gz").touch()
    cases = [
        (["--chunk", "650ms", audio], exp, "640 ms and 680 ms"),
        (["--chunk", "dynamic", audio], exp, "training only"),
        (["--chunk", "soon", audio], exp, "'soon'"),
        (["--chunk", "8", "--left-context", "-1", audio], exp, "left_context must be an integer >= 0"),
        (["--device", "nowhere", audio], exp, "device 'nowhere'"),
        ([audio], tmp_path / "nowhere", "no checkpoint at"),
        ([audio], truncated(exp, tmp_path / "truncated"), "model.safetensors is damaged or truncated"),
        (["--beam", "0", audio], exp, "beam must be at least 1, got 0"),
        (["--beam", "2", "--max-symbols", "1", audio], exp, "--max-symbols is for greedy search"),
        (["--lm", tmp_path / "none.arpa", "--beam", "2", audio], exp, "none.arpa: no such language model"),
        (["--lm", tmp_path, "--beam", "2", audio], exp, "config.yaml is missing"),
        (["--hotwords", tmp_path / "none.txt", "--beam", "2", audio], exp, "none.txt"),
        (["--blank-penalty", "inf", audio], exp, "blank_penalty must be a finite number, got inf"),
        (["--cuts", tmp_path / "none.jsonl.gz"], exp, "none.jsonl.gz: no such cut manifest"),
        (["--cuts", tmp_path / "empty.jsonl.gz"], exp, "empty.jsonl.gz"),
    ]
    if name == "decode":
        cases.append((["--nbest", "2", audio], exp, "nbest needs a beam"))
        cases.append((["--nbest", "3", "--beam", "2", audio], exp, "nbest must be at most beam (2), got 3"))
    if name == "stream_decode":
        cases += [
            (["--chunk", "full", audio], exp, "streaming needs one chunk size"),
            (["--chunk", "full", "--cuts", cuts], exp, "streaming needs one chunk size"),
            (["--push", "soon", audio], exp, "'soon'"),
            (["--push", "0ms", audio], exp, "packet"),
            (["--num-streams", "0", "--cuts", cuts], exp, "num_streams must be at least 1"),
        ]
    for arguments, checkpoint, message in cases:
        code, _, err = door(name, *arguments, checkpoint=checkpoint)
        assert code == 2, arguments
        assert message in err, (arguments, err)
        assert len(err.splitlines()) == 1, err
        assert err.startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["decode", "stream_decode"])
def test_audio_or_manifest(door, exp, name):
    for arguments in ([], [exp / "0.wav", "--cuts", exp / "test.jsonl.gz"]):
        code, _, err = door(name, *arguments)
        assert code == 2
        assert "give either audio files or --cuts" in err


def test_average_is_said_in_the_report_and_refused_when_there_are_too_few(door, exp):
    code, _, _ = door("decode", "--cuts", exp / "test.jsonl.gz", "--average", "1")
    assert code == 0
    assert (exp / "decode" / "test-full-masked-average-1" / "report.json").is_file()
    code, _, err = door("stream_decode", "--cuts", exp / "test.jsonl.gz", "--average", "best2")
    assert code == 2 and "asks for 2 validated checkpoints, 0 are" in err and "train.keep_best 2" in err
    code, _, err = door("decode", exp / "0.wav", "--average", "all")
    assert code == 2 and "must be a number of checkpoints (5), best5 or none, got 'all'" in err


def test_bf16_is_said_in_the_report_or_refused(door, exp):
    code, _, err = door("stream_decode", "--cuts", exp / "test.jsonl.gz", "--precision", "bf16")
    if HAS_BF16:
        report = exp / "decode" / "test-chunk16-left4-bf16" / "report.json"
        assert code == 0 and report.is_file()
    else:
        assert code == 2 and "use fp32" in err


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16 products")
def test_exactness_is_of_fp32(door, exp):
    code, out, err = door("stream_decode", "--check-exactness", exp / "0.wav", "--precision", "bf16")
    assert code == 2 and "leave precision out" in err and "NOT EXACT" not in out


@pytest.mark.parametrize("name", ["decode", "stream_decode"])
def test_an_error_in_one_file_stops_no_other(door, exp, tmp_path, name):
    """Every kind of it is named, the others are recognised, and the status and a count say that some were not."""
    raw, odd, rate = tmp_path / "call.raw", tmp_path / os.fsdecode(b"caf\xe9.wav"), tmp_path / "rate.wav"
    raw.write_bytes(bytes(2_000))
    soundfile.write(rate, sound(1.0), 44_101)  # is read, but cannot be resampled
    gsm = tmp_path / "gsm.wav"
    soundfile.write(gsm, sound(1.0, 8_000), 8_000, subtype="GSM610")
    try:
        shutil.copy(exp / "0.wav", odd)
    except OSError:
        odd = exp / "1.wav"  # this file system wants names in UTF-8
    code, out, err = door(name, raw, odd, tmp_path / "gone.wav", rate, gsm, exp / "0.wav")
    assert code == 2
    shown = str(odd).encode("utf-8", "backslashreplace").decode()
    texts = dict(
        line.rsplit(": ", 1) for line in out.splitlines() if line.startswith((f"{shown}: ", f"{exp / '0.wav'}: "))
    )
    if odd.parent == tmp_path:
        assert texts[shown] == texts[str(exp / "0.wav")] != ""
    assert f"{gsm}: " in out
    for path in (raw, tmp_path / "gone.wav", rate):
        assert f"{name}: {path}: " in err
    assert f"{name}: 3 of 6 files could not be recognised" in err
    assert "Traceback" not in err


def test_a_failure_while_recognising_is_named_too(door, exp, monkeypatch):
    from sumix_stream.streaming import recordings

    calls = []

    def fails_once(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("no memory")
        return transcribe_batch(*arguments, **options)

    transcribe_batch = recordings.transcribe_batch
    monkeypatch.setattr(recordings, "transcribe_batch", fails_once)
    code, out, err = door("decode", exp / "0.wav", exp / "1.wav")
    assert code == 2 and len(calls) == 2
    assert f"decode: {exp / '0.wav'}: RuntimeError: no memory" in err
    assert f"{exp / '1.wav'}: " in out


def test_commands_of_a_manifest_run_only_where_allowed(door, exp, tmp_path, monkeypatch):
    monkeypatch.setenv("SUMIX_ALLOW_COMMANDS", "0")
    trace = tmp_path / "trace"
    lines = [json.loads(json.dumps(cut.to_dict())) for cut in CutSet.from_file(exp / "test.jsonl.gz")]
    source = lines[0]["recording"]["sources"][0]
    source |= {"type": "command", "source": f"touch {trace}; cat {source['source']}"}
    manifest = tmp_path / "cuts.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("decode", "stream_decode"):
        code, _, err = door(name, "--cuts", manifest, "--out", tmp_path / "out", "--chunk", "8")
        assert code == 2 and "--allow-commands" in err and not trace.exists()
    code, out, _ = door("decode", "--cuts", manifest, "--out", tmp_path / "out", "--allow-commands")
    assert code == 0 and trace.exists() and "3 utterances" in out


def test_words_files_and_folders_in_every_format(door, exp, tmp_path):
    folder = tmp_path / "talks"
    (folder / "day 1").mkdir(parents=True)
    for name in ("a.wav", "day 1/b.flac", "a.flac"):
        soundfile.write(folder / name, sound(2.0, seed=5), 16_000)
    (folder / "notes.txt").write_text("kept")
    texts = {}
    for name in ("decode", "stream_decode"):
        for form in ("txt", "srt", "vtt", "json", "tsv"):
            out = tmp_path / name / form
            code, printed, _ = door(name, folder, "--format", form, "--out", out, "--chunk", "8")
            made = sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))
            assert code == 0 and made == [f"a.flac.{form}", f"a.wav.{form}", f"day 1/b.{form}"]
            assert printed.splitlines() == [str(out / made[0]), str(out / made[1]), str(out / made[2])]
            texts[name, form] = (out / made[2]).read_text()
    assert texts["decode", "srt"].startswith("1\n00:00:0") and "-->" in texts["decode", "vtt"]
    content = json.loads(texts["decode", "json"])
    assert content["seconds"] == 2.0 and content["text"].split() == [w["text"] for w in content["words"]] != []
    rows = texts["decode", "tsv"].splitlines()
    assert rows[0] == "file\tchannel\tstart\tend\tconfidence\tword" and len(rows) == len(content["words"]) + 1
    assert texts["decode", "txt"].split() == content["text"].split()
    streamed = json.loads(texts["stream_decode", "json"])
    _, one, _ = door("decode", folder / "day 1" / "b.flac", "--format", "json", "--chunk", "8", "--left-context", "4")
    assert [w["start"] for w in streamed["words"]] == [w["start"] for w in json.loads(one)["words"]]
    assert streamed["text"] == json.loads(one)["text"] and streamed["left_context"] == 4
    code, _, err = door("decode", folder, "--format", "txt", "--out", tmp_path / "decode" / "txt")
    assert code == 2 and "is there already: --overwrite replaces it" in err
    assert door("decode", folder, "--format", "txt", "--out", tmp_path / "decode" / "txt", "--overwrite")[0] == 0
    assert (folder / "notes.txt").read_text() == "kept"
    code, printed, _ = door("decode", folder, "--format", "tsv", "--chunk", "8")
    assert printed.count("confidence") == 1 and printed.count(str(folder / "a.wav")) == len(rows) - 1


def test_outputs_that_would_meet(door, exp, tmp_path):
    for side in ("x", "y"):
        (tmp_path / side).mkdir()
        shutil.copy(exp / "1.wav", tmp_path / side / "a.wav")
    code, _, err = door("decode", tmp_path / "x" / "a.wav", tmp_path / "y" / "a.wav", "--out", tmp_path / "out")
    assert code == 2 and "would both be written to" in err and not (tmp_path / "out").exists()
    code, out, _ = door("decode", tmp_path / "x", "--out", tmp_path / "out", "--format", "srt")
    assert code == 0 and out == f"{tmp_path / 'out' / 'a.srt'}\n"
    (tmp_path / "none").mkdir()
    for arguments, message in (
        ([tmp_path / "none"], "a folder without audio files"),
        ([tmp_path / "x", tmp_path / "y", "--format", "vtt"], "give --out DIR"),
        ([tmp_path / "x", "--channel", "middle"], "a channel is 0, 1, ..., left, right or mix"),
        ([tmp_path / "x", "--channel", "0", "--split-channels"], "leave it or --channel out"),
        ([tmp_path / "x", "--raw", "wav"], "ENCODING,RATE,CHANNELS"),
        ([tmp_path / "x", "--caption-lines", "0", "--format", "srt"], "a caption needs at least 1 line"),
    ):
        code, _, err = door("decode", *arguments)
        assert code == 2 and message in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["decode", "stream_decode"])
def test_channels_apart(door, exp, tmp_path, name):
    sides = np.stack([sound(2.0, seed=1), sound(2.0, seed=2)], 1)
    path = tmp_path / "call.wav"
    soundfile.write(path, sides, 16_000, subtype="FLOAT")
    texts = []
    for side in (0, 1):
        soundfile.write(tmp_path / f"{side}.wav", sides[:, side], 16_000, subtype="FLOAT")
        _, alone, _ = door(name, tmp_path / f"{side}.wav", "--chunk", "8", "--format", "txt")
        for channel in (str(side), ("left", "right")[side]):
            assert door(name, path, "--chunk", "8", "--format", "txt", "--channel", channel)[1] == alone
        texts.append(alone)
    assert texts[0] != texts[1]
    out = tmp_path / "out"
    code, printed, _ = door(name, path, "--chunk", "8", "--split-channels", "--out", out)
    assert code == 0 and [(out / f"call.channel{side}.txt").read_text() for side in (0, 1)] == texts
    _, printed, _ = door(name, path, "--chunk", "8", "--split-channels", "--format", "json")
    assert [json.loads(line)["channel"] for line in printed.splitlines()] == [0, 1]
    code, _, err = door(name, path, "--channel", "2")
    assert code == 2 and f"{path}: there is no channel 2 among its 2" in err


@pytest.mark.parametrize("more", [[], ["--raw", "s16le,16000"], ["--split-channels", "--format", "json"]], ids=str)
@pytest.mark.parametrize("name", ["decode", "stream_decode"])
def test_standard_input(door, exp, monkeypatch, name, more):
    data = (exp / "0.wav").read_bytes()
    if "--raw" in more:
        data = soundfile.read(exp / "0.wav", dtype="int16")[0].tobytes()
    reading, writing = os.pipe()
    thread = threading.Thread(target=lambda: (os.write(writing, data), os.close(writing)))
    thread.start()
    with open(reading) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        code, out, err = door(name, "-", "--chunk", "8", *more)
    thread.join()
    assert (code, err) == (0, "")
    expected = door(name, exp / "0.wav", "--chunk", "8")[1].splitlines()[-1].split(": ")[-1]
    last = out.splitlines()[-1]
    assert (json.loads(last)["text"] if "--format" in more else last.removeprefix("standard input: ")) == expected != ""


def test_files_of_phones_and_films(door, exp, tmp_path):
    path = write_media(tmp_path / "call.m4a", sound(2.0, seed=2), 16_000)
    code, out, _ = door("decode", path, "--format", "json")
    assert code == 0 and json.loads(out)["seconds"] == pytest.approx(2.0, abs=0.1) and json.loads(out)["text"]


def test_worst_errors_are_shown(door, exp, tmp_path):
    code, out, _ = door("decode", "--cuts", exp / "test.jsonl.gz", "--out", tmp_path / "out", "--errors", 2)
    assert code == 0 and out.count("\n  ref  ") == 2 and "  hyp  " in out and "CER" in out
    assert "ref" not in door("decode", "--cuts", exp / "test.jsonl.gz", "--out", tmp_path / "out")[1]


def test_long_files_under_full_context_say_that_they_are_cut(door, exp, caplog):
    code, out, _ = door("decode", exp / "2.wav", "--longest", "1s")
    assert code == 0 and "3 parts of at most 1 s" in caplog.text and str(exp / "2.wav") in out
    assert "--nbest" in door("decode", exp / "2.wav", "--longest", "1s", "--beam", 4, "--nbest", 2)[2]
