"""Recordings with labels: folders, tables, what is wrong with them."""

import json

import numpy as np
import pytest
import soundfile

from sumix_stream.corpora.labelled import (
    SILENCE,
    TEN_WORDS,
    UNKNOWN,
    check_labels,
    folders,
    intents,
    part_of,
    prepare_labelled,
    table,
)
from sumix_stream.corpora.preparation import read_lines
from sumix_stream.data import load_cuts, read_valid
from sumix_stream.labels import LabelError, Labels

RATE = 16_000


def write(path, seconds=0.4, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    soundfile.write(path, samples, RATE)


@pytest.fixture
def commands(tmp_path):
    """Speech Commands in its own layout: lists of parts, background noise, more words than ten."""
    corpus = tmp_path / "corpus"
    for word in (*TEN_WORDS, "bed", "cat"):
        for n in range(6):
            write(corpus / word / f"{n:08x}_nohash_0.wav", seed=n)
    write(corpus / "_background_noise_" / "tap.wav", 12.0)
    (corpus / "_background_noise_" / "README.md").write_text("noise")
    (corpus / "validation_list.txt").write_text("".join(f"{w}/00000001_nohash_0.wav\n" for w in (*TEN_WORDS, "bed")))
    (corpus / "testing_list.txt").write_text("".join(f"{w}/00000002_nohash_0.wav\n" for w in (*TEN_WORDS, "cat")))
    return corpus


def test_twelve_classes(commands, tmp_path):
    rows = folders(commands, "12")
    assert {row.labels["label"] for row in rows} <= {*TEN_WORDS, UNKNOWN, SILENCE}
    assert {row.part for row in rows if row.path.stem.startswith("00000001")} == {"valid"}
    assert sum(row.labels["label"] == SILENCE for row in rows) == 6
    other = [row for row in rows if row.labels["label"] == UNKNOWN]
    assert all(row.path.parent.name in ("bed", "cat") for row in other) and len(other) < 6
    silences = [row for row in rows if row.labels["label"] == SILENCE]
    assert {row.part for row in silences} == {"train", "valid", "test"} or len(silences) < 10
    kept = [row for row in rows if row.labels["label"] != UNKNOWN]
    prepare_labelled(kept, tmp_path / "out")
    cuts = load_cuts(tmp_path / "out" / "cuts_train.jsonl.gz")
    heard = {utterance.text: utterance for utterance in read_valid(cuts)}
    assert set(heard) == {*TEN_WORDS, SILENCE} == set(Labels.load(tmp_path / "out" / "labels.yaml").sets["label"])
    assert heard[SILENCE].duration == 1.0 and heard["yes"].duration == pytest.approx(0.4)


def test_each_folder_a_word_and_speakers_in_one_part(commands):
    (commands / "validation_list.txt").unlink()
    (commands / "testing_list.txt").unlink()
    rows = folders(commands, "words", valid=0.3, test=0.3)
    assert {row.labels["label"] for row in rows} == {*TEN_WORDS, "bed", "cat"}
    parts = {}
    for row in rows:
        assert parts.setdefault(row.speaker, row.part) == row.part
    assert len(rows) == 72 and part_of("a", 0, 1) == "test" and part_of("a", 0, 0) == "train"


def test_what_is_no_corpus_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no folders with recordings"):
        folders(tmp_path)
    write(tmp_path / "yes" / "a.wav")
    with pytest.raises(ValueError, match="no folder no, which the task of 12 classes has"):
        folders(tmp_path, "12")


def orders(tmp_path, lines):
    for name in "abcdef":
        write(tmp_path / "audio" / f"{name}.wav")
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "t.tsv", tmp_path / "audio"


def test_a_table_with_slots(tmp_path):
    lines = ["path\tpart\tintent\tsize", "a.wav\ttrain\torder\tlarge", "b.wav\ttrain\torder\tsmall"]
    lines += ["c.wav\ttrain\tcancel\t", "d.wav\tvalid\tcancel\t", "e.wav\ttest\torder\tlarge"]
    path, audio = orders(tmp_path, lines)
    prepare_labelled(table(path, audio, ["intent", "size"]), tmp_path / "out")
    labels = Labels.load(tmp_path / "out" / "labels.yaml")
    assert labels.sets == {"intent": ("cancel", "order"), "size": ("none", "large", "small")}
    texts = {cut.id: cut.supervisions[0].text for cut in load_cuts(tmp_path / "out" / "cuts_train.jsonl.gz")}
    assert texts == {"a": "intent=order; size=large", "b": "intent=order; size=small", "c": "intent=cancel"}
    check_labels([tmp_path / "out" / f"cuts_{part}.jsonl.gz" for part in ("train", "valid", "test")], labels)

    less = Labels({"intent": ["order", "pay"], "size": ["none", "large", "small"]})
    with pytest.raises(LabelError, match=r"cuts_valid.jsonl.gz:1: d has the intent 'cancel', which .* does not have"):
        check_labels([tmp_path / "out" / "cuts_valid.jsonl.gz"], less)
    cut = json.loads(next(read_lines(tmp_path / "out" / "cuts_test.jsonl.gz")))
    cut["supervisions"][0]["text"] = ""
    (tmp_path / "bad.jsonl").write_text("\n" + json.dumps(cut) + "\n")
    with pytest.raises(LabelError, match=r"bad.jsonl:2: e has no label"):
        check_labels([tmp_path / "bad.jsonl"], labels)


@pytest.mark.parametrize(
    "lines, message",
    [
        (["path\tkind", "a.wav\tx"], r"t.tsv:2: no column 'intent'; it has path, kind"),
        (["path\tintent", "\tx"], r"t.tsv:2: the path is empty"),
        (["path\tpart\tintent", "a.wav\tdev\tx"], r"t.tsv:2: part must be one of train, valid, test, got 'dev'"),
        (["path\tintent"], r"t.tsv: no rows"),
    ],
)
def test_faults_of_a_table_are_named(lines, message, tmp_path):
    path, audio = orders(tmp_path, lines)
    with pytest.raises(LabelError, match=message):
        table(path, audio, ["intent"])


def test_a_label_that_training_lacks(tmp_path):
    lines = ["path\tpart\tintent", "a.wav\ttrain\tx", "b.wav\ttrain\ty", "c.wav\tvalid\tz", "d.wav\ttest\tx"]
    path, audio = orders(tmp_path, lines)
    with pytest.raises(LabelError, match="c.wav: c, of valid, has the intent 'z'|c.wav: c, of valid, has the"):
        prepare_labelled(table(path, audio, ["intent"]), tmp_path / "out")


def test_intents_of_json(tmp_path):
    _, audio = orders(tmp_path, [""])
    entries = {"a": {"intent": "o", "slots": {"size": " large"}}, "b": {"intent": "o", "slots": {}}}
    (tmp_path / "labels.json").write_text(json.dumps(entries))
    rows = intents(tmp_path / "labels.json", audio)
    assert [dict(row.labels) for row in rows] == [{"size": "large"}, {"size": "none"}]  # one intent is no choice
    with pytest.raises(LabelError, match="--labels colour: nothing in"):
        intents(tmp_path / "labels.json", audio, ["colour"])
    (tmp_path / "labels.json").write_text(json.dumps({**entries, "z": entries["a"]}))
    with pytest.raises(LabelError, match="z has no recording in"):
        intents(tmp_path / "labels.json", audio)
