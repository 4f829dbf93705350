"""Manifests as people write them: odd values are understood, what is wrong is named, nothing is run unasked."""

import gzip
import json
import logging
import subprocess
from pathlib import Path

import pytest
import soundfile
from lhotse import CutSet
from trees import tone

from sumix_stream.config import DataConfig
from sumix_stream.corpora.preparation import cut_texts, write_tokenizer
from sumix_stream.data import ManifestError, TrainLoader, UtteranceError, load_cuts, read_valid
from sumix_stream.data.manifests import ALLOW_COMMANDS, CutFilter, allow_commands, cut_text, load_samples
from sumix_stream.report.players import audio_of
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import train_tokenizer

WORDS = ("one", "two", "three", "four")


@pytest.fixture(autouse=True)
def _forbidden(monkeypatch):
    monkeypatch.delenv(ALLOW_COMMANDS, raising=False)


@pytest.fixture
def tokenizer(tmp_path):
    return train_tokenizer([" ".join(WORDS), "0 1 2 3"], tmp_path / "t.model", model_type="char")


def recording(folder: Path, id: str, seconds: float) -> dict:
    path = folder / "audio" / f"{id}.wav"
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, tone(seconds), 16_000)
    return {
        "id": id,
        "sources": [{"type": "file", "channels": [0], "source": str(path)}],
        "sampling_rate": 16_000,
        "num_samples": int(16_000 * seconds),
        "duration": seconds,
        "channel_ids": [0],
    }


def supervision(id: str, start: float, duration: float, text: object, **more) -> dict:
    where = {"id": id, "recording_id": "r", "start": start, "duration": duration, "channel": 0}
    return where | {"text": text, "speaker": "s"} | more


def cuts_as_written(folder: Path, count: int = 4, seconds: float = 1.0) -> list[dict]:
    return [
        {
            "id": f"u{i}",
            "start": 0.0,
            "duration": seconds,
            "channel": 0,
            "supervisions": [supervision(f"u{i}", 0.0, seconds, f"{WORDS[i % 4]} {WORDS[(i + 1) % 4]}")],
            "recording": recording(folder, f"u{i}", seconds),
            "type": "MonoCut",
        }
        for i in range(count)
    ]


def write(folder: Path, cuts: list[dict], name: str = "cuts_train.jsonl.gz") -> Path:
    text = "".join(json.dumps(cut, ensure_ascii=False) + "\n" for cut in cuts)
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return path


def loaded(path: Path, tokenizer) -> dict[str, str]:
    """Id -> text of what an epoch holds."""
    loader = TrainLoader(DataConfig(max_duration=6.0), path, tokenizer, Timebase(), seed=0)
    return {id: text for batch in loader.epoch_batches(0) for id, text in zip(batch.ids, batch.texts, strict=True)}


def test_numbers_are_ids_speakers_and_transcripts(tmp_path, tokenizer):
    cuts = cuts_as_written(tmp_path)
    for number, cut in enumerate(cuts):
        cut["id"] = number
        cut["supervisions"][0] |= {"id": number, "text": number, "speaker": 103}
    path = write(tmp_path, cuts)
    assert loaded(path, tokenizer) == {str(n): str(n) for n in range(4)}
    assert [(u.id, u.text) for u in read_valid(load_cuts(path))] == [(str(n), str(n)) for n in range(4)]
    assert list(cut_texts(path)) == ["0", "1", "2", "3"]
    assert {s.speaker for cut in load_cuts(path) for s in cut.supervisions} == {"103"}


@pytest.mark.parametrize("value", [True, ["one"], {"a": 1}])
def test_what_is_neither_text_nor_number_is_refused_by_line(tmp_path, tokenizer, value):
    cuts = cuts_as_written(tmp_path)
    cuts[2]["supervisions"][0]["text"] = value
    path = write(tmp_path, cuts)
    with pytest.raises(ManifestError, match=r"cuts_train\.jsonl\.gz, line 3: .*text must be text or a number"):
        loaded(path, tokenizer)
    with pytest.raises(ValueError, match=r"cuts_train\.jsonl\.gz, line 3: a transcript must be text"):
        list(cut_texts(path))


def test_cuts_without_words_are_left_out_by_name(tmp_path, tokenizer, caplog):
    cuts = cuts_as_written(tmp_path)
    del cuts[1]["supervisions"][0]["text"]
    cuts[2]["supervisions"] = []
    path = write(tmp_path, cuts)
    with caplog.at_level(logging.WARNING):
        assert set(loaded(path, tokenizer)) == {"u0", "u3"}
    assert "u1 left out: its transcript is empty" in caplog.text
    assert "u2 left out: its transcript is empty" in caplog.text
    write_tokenizer(tmp_path, 0, "word")
    assert len(list(cut_texts(path))) == 2


def test_padded_cuts_are_used_like_others(tmp_path, tokenizer):
    cuts = cuts_as_written(tmp_path)
    padding = {"id": "pad", "duration": 0.5, "sampling_rate": 16_000, "feat_value": -23.0, "num_samples": 8_000}
    tracks = [
        {"cut": cuts[3], "type": "MonoCut", "offset": 0.0},
        {"cut": padding | {"type": "PaddingCut"}, "type": "PaddingCut", "offset": 1.0},
    ]
    path = write(tmp_path, [*cuts[:3], {"id": "mixed", "tracks": tracks, "type": "MixedCut"}])
    assert loaded(path, tokenizer)["mixed"] == "four one"
    assert list(cut_texts(path))[3] == "four one"
    assert load_samples(list(load_cuts(path))[3]).shape == (24_000,)


def test_texts_are_cleaned(tmp_path, tokenizer):
    cuts = cuts_as_written(tmp_path)
    for cut, text in zip(cuts, ("one\ttwo", "one\u00a0two", "one\u3000two \u200b", "\ufeffone\u00a0 two"), strict=True):
        cut["supervisions"][0]["text"] = text
    assert set(loaded(write(tmp_path, cuts), tokenizer).values()) == {"one two"}


def test_what_a_tokenizer_cannot_write_is_named_readably(tmp_path, tokenizer):
    cuts = cuts_as_written(tmp_path, 1)
    cuts[0]["supervisions"][0]["text"] = "one \u0915\u094d\u200d\u0937"  # a joiner that Devanagari needs
    (cut,) = load_cuts(write(tmp_path, cuts))
    reason = CutFilter(DataConfig(), tokenizer, Timebase()).reason(cut)
    assert "U+200D (zero width joiner)" in reason and "\u0915" in reason


def test_whole_talks_name_the_remedy_which_works(tmp_path, tokenizer):
    (talk,) = cuts_as_written(tmp_path, 1, seconds=31.0)
    talk["supervisions"] = [supervision(f"s{i}", 2.0 * i, 1.5, WORDS[i % 4]) for i in range(15)]
    path = write(tmp_path, [talk])
    (cut,) = load_cuts(path)
    reason = CutFilter(DataConfig(), tokenizer, Timebase()).reason(cut)
    assert "31.00 s is outside" in reason and "it has 15 supervisions" in reason
    command = reason.split("`")[1]
    assert command == "lhotse cut trim-to-supervisions --discard-overlapping OLD.jsonl.gz NEW.jsonl.gz"
    CutSet.from_file(path).trim_to_supervisions(keep_overlapping=False).to_file(tmp_path / "new.jsonl.gz")
    assert sorted(loaded(tmp_path / "new.jsonl.gz", tokenizer).values()) == sorted(WORDS[i % 4] for i in range(15))


@pytest.mark.parametrize(
    ("supervisions", "reason"),
    [
        ([(0.0, 2.0), (0.5, 1.0)], "supervisions a and b overlap by 1.50 s"),
        ([(1.5, 1.0), (0.0, 2.0)], "supervisions b and a overlap by 0.50 s"),
        ([(0.0, 1.0), (1.0, 4.0)], "supervision b ends 2.00 s after the cut"),
        ([(-1.0, 2.0)], "supervision a begins 1.00 s before the cut"),
        ([(0.0, 1.6), (1.5, 1.5)], None),
        ([(-0.05, 3.1)], None),
    ],
)
def test_supervisions_that_do_not_tell_what_was_said(tmp_path, tokenizer, caplog, supervisions, reason):
    cuts = cuts_as_written(tmp_path, 5, seconds=3.0)
    cuts[4]["supervisions"] = [supervision("ab"[n], *times, WORDS[n]) for n, times in enumerate(supervisions)]
    path = write(tmp_path, cuts)
    with caplog.at_level(logging.WARNING):
        assert ("u4" in loaded(path, tokenizer)) == (reason is None)
        assert len(list(read_valid(load_cuts(path)))) == 5
    assert (f"u4 left out: its {reason}" in caplog.text) == (reason is not None)
    assert ("u4 is scored although" in caplog.text) == (reason is not None)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_relative_paths_are_beside_the_manifest_or_in_the_current_directory(tmp_path, tokenizer, monkeypatch, suffix):
    folder = tmp_path / "own"
    folder.mkdir()
    cuts = cuts_as_written(folder)
    for cut in cuts:
        source = cut["recording"]["sources"][0]
        source["source"] = str(Path(source["source"]).relative_to(folder))
    path = write(folder, cuts, f"cuts_train.{suffix}")
    monkeypatch.chdir(tmp_path)
    assert len(loaded(path, tokenizer)) == 4
    assert len(loaded(path.relative_to(tmp_path), tokenizer)) == 4
    other = tmp_path / "manifests"
    other.mkdir()
    path = write(other, cuts)
    monkeypatch.chdir(folder)
    assert len(list(read_valid(load_cuts(path)))) == 4
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UtteranceError, match=r"u0: audio/u0\.wav cannot be read \(no such file: sought as ") as error:
        load_samples(next(iter(load_cuts(path))))
    assert f"{tmp_path}/audio/u0.wav, nor in the folder of its manifest" in str(error.value)


def test_the_reason_of_an_unreadable_file_is_given(tmp_path):
    cuts = cuts_as_written(tmp_path, 1)
    Path(cuts[0]["recording"]["sources"][0]["source"]).write_text("this is no audio" * 50)
    with pytest.raises(UtteranceError, match=r"Format not recognised") as error:
        load_samples(next(iter(load_cuts(write(tmp_path, cuts)))))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def poisoned(folder: Path, kind: str) -> tuple[Path, Path]:
    """A manifest whose last cut leaves a trace where its audio is run or fetched; and that trace."""
    cuts, trace = cuts_as_written(folder), folder / "trace"
    audio = cuts[3]["recording"]["sources"][0]["source"]
    command = {"type": "command", "channels": [0], "source": f"touch {trace}; cat {audio}"}
    if kind == "command":
        cuts[3]["recording"]["sources"] = [command]
    elif kind == "url":
        cuts[3]["recording"]["sources"] = [{"type": "url", "channels": [0], "source": f"pipe:touch {trace}"}]
    elif kind == "pipe":
        cuts[3]["recording"]["sources"] = [{"type": "file", "channels": [0], "source": f"pipe:touch {trace}"}]
    elif kind == "room":
        room = cuts[3]["recording"] | {"sources": [command]}
        cuts[3]["recording"] = json.loads(json.dumps(cuts[3]["recording"]))
        kwargs = {"rir": room, "normalize_output": True, "early_only": False, "rir_channels": [0]}
        cuts[3]["recording"]["transforms"] = [{"name": "ReverbWithImpulseResponse", "kwargs": kwargs}]
    elif kind == "mixed":
        cuts[3]["recording"]["sources"] = [command]
        cuts[3] = {"id": "u3", "tracks": [{"cut": cuts[3], "type": "MonoCut", "offset": 0.0}], "type": "MixedCut"}
    return write(folder, cuts), trace


@pytest.mark.parametrize("kind", ["command", "url", "pipe", "room", "mixed"])
def test_nothing_of_a_manifest_is_run_or_fetched(tmp_path, tokenizer, kind):
    path, trace = poisoned(tmp_path, kind)
    attempts = (
        lambda: loaded(path, tokenizer),
        lambda: list(read_valid(load_cuts(path))),
        lambda: list(read_valid(CutSet.from_file(path))),
        lambda: loaded_from_memory(path, tokenizer),
    )
    for attempt in attempts:
        with pytest.raises(ManifestError, match="u3: its audio is .*--allow-commands"):
            attempt()
    assert audio_of([str(path)], ["u3"]) == {}
    assert not trace.exists()


def loaded_from_memory(path: Path, tokenizer) -> None:
    cuts = CutSet.from_cuts(CutSet.from_file(path))
    list(TrainLoader(DataConfig(), cuts, tokenizer, Timebase(), seed=0).epoch_batches(0))


def test_commands_run_where_they_are_allowed(tmp_path, tokenizer, monkeypatch):
    path, trace = poisoned(tmp_path, "command")
    monkeypatch.setenv(ALLOW_COMMANDS, "0")
    with pytest.raises(ManifestError):
        loaded(path, tokenizer)
    allow_commands()  # undone by monkeypatch
    assert len(loaded(path, tokenizer)) == 4
    assert trace.exists()
    assert subprocess.check_output(["printenv", ALLOW_COMMANDS], text=True).strip() == "1"


def test_cut_text_joins_supervisions_in_order(tmp_path):
    (cut,) = cuts_as_written(tmp_path, 1, seconds=3.0)
    cut["supervisions"] = [supervision("b", 1.5, 1.0, " two\t"), supervision("a", 0.0, 1.0, "one")]
    assert cut_text(next(iter(load_cuts(write(tmp_path, [cut]))))) == "one two"
