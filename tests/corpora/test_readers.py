"""What people have, as utterances: each kind of source is recognised, and a bad line is named by file and line."""

import gzip
import json

import pytest
from lhotse import AudioSource, CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.shar import SharWriter
from trees import write_cuts_and_tokenizer, write_kaldi, write_librispeech, write_own_folder, write_wavs

from sumix_stream.corpora.readers import READERS, reader_of
from sumix_stream.corpora.readers.base import CUT, SHARD, Item, ReadOptions, Skipped, split_of


def read(path, kind=None, **options):
    """(items by id, skipped) of a source."""
    found = list(READERS[kind or reader_of(path)].read(path, ReadOptions(**options)))
    items = [item for item in found if isinstance(item, Item)]
    assert len({item.id for item in items}) == len(items)
    return {item.id: item for item in items}, [skipped for skipped in found if isinstance(skipped, Skipped)]


def where(skipped):
    return {(s.file.rpartition("/")[2], s.line, s.fault) for s in skipped}


@pytest.mark.parametrize(
    ("name", "split"),
    [("train-clean-100", "train"), ("dev_other", "valid"), ("Test", "test"), ("val", "valid"), ("testament", "")],
)
def test_splits_by_name(name, split):
    assert split_of(name) == split


def test_what_is_nothing_is_told_with_all_kinds(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        reader_of(tmp_path / "gone")
    with pytest.raises(ValueError, match="--from") as error:
        reader_of(tmp_path)
    assert all(f"  {kind}: " in str(error.value) for kind in READERS)
    with pytest.raises(ValueError, match="must be one of kaldi, "):
        reader_of(tmp_path, "kladi")
    for kind, reader in READERS.items():
        with pytest.raises(ValueError, match=str(tmp_path)):
            list(reader.read(tmp_path, ReadOptions()))
        assert not reader.recognise(tmp_path), kind


# Folders


def test_folder(tmp_path):
    write_own_folder(tmp_path, speakers=2, each=2)
    write_wavs(tmp_path / "test", ["a.flac", "lonely.wav"])
    (tmp_path / "test" / "a.lab").write_bytes("\ufeffHELLO\n".encode("utf-16"))
    (tmp_path / "speaker0" / "9.txt").write_text("no audio")
    (tmp_path / "0.txt").write_text("speaker0/0.wav, it says\n")  # no table, though it names a file
    assert reader_of(tmp_path) == "folder"
    items, skipped = read(tmp_path)
    assert list(items) == ["speaker0/0", "speaker0/1", "speaker1/0", "speaker1/1", "test/a"]
    assert items["test/a"].text.strip("\ufeff\n") == "HELLO" and items["test/a"].split == "test"
    assert all(item.whole and item.line == 1 for item in items.values())
    faults = {("lonely.wav", 0, "no transcript"), ("9.txt", 0, "missing audio"), ("0.txt", 0, "missing audio")}
    assert where(skipped) == faults


def test_librispeech(tmp_path):
    write_librispeech(tmp_path, "train-clean-5", ["10"], 3)
    chapter = tmp_path / "train-clean-5" / "10" / "7"
    (chapter / "10-7-0001.flac").unlink()
    write_wavs(chapter, ["10-7-0009.flac"])
    assert reader_of(tmp_path) == reader_of(tmp_path / "train-clean-5") == "librispeech"
    items, skipped = read(tmp_path)
    assert list(items) == ["10-7-0000", "10-7-0002"] and items == read(tmp_path / "train-clean-5")[0]
    item = items["10-7-0002"]
    assert (item.speaker, item.split, item.line) == ("10", "train", 3) and item.file.endswith("10-7.trans.txt")
    assert where(skipped) == {("10-7.trans.txt", 2, "missing audio"), ("10-7-0009.flac", 0, "no transcript")}


# Tables


def test_table_with_a_header(tmp_path):
    write_wavs(tmp_path / "audio", ["a.wav", "b.wav"])
    rows = ["file_name,transcription,speaker_id,Start Time,end_ms,split,channel"]
    rows += ['audio/a.wav,"Hello, ""you""",ann,0.25,750,dev,right', "b.wav,x,bob,0:00.5,,train,", "gone.wav,x,,,,,"]
    rows += ["a.wav,too,few", "a.wav,x,ann,0.9,500,train,", "a.wav,x,ann,soon,,train,", ",x,ann,,,,", ""]
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    assert reader_of(tmp_path) == reader_of(tmp_path / "metadata.csv") == "table"
    items, skipped = read(tmp_path)
    a, b = items.values()
    assert a[1:] == ('Hello, "you"', str(tmp_path / "metadata.csv"), 2, "audio/a-0000250", 0.25, 0.75, 1, "ann") + (
        "",
        "valid",
        "file",
    )
    assert (b.start, b.end, b.channel, b.split) == (0.5, None, None, "train")
    faults = ["missing audio", "bad row", "bad times", "bad times", "missing audio"]
    assert where(skipped) == {("metadata.csv", line, fault) for line, fault in enumerate(faults, 4)}
    assert "0.9 to 0.5" in skipped[2].detail and "'soon'" in skipped[3].detail


def test_ljspeech_has_no_header_and_texts_full_of_commas(tmp_path):
    write_wavs(tmp_path / "wavs", ["LJ-1.wav", "LJ-2.wav"])
    (tmp_path / "metadata.csv").write_text('LJ-1|In 1455, "he, she|In fourteen, "he, she\nLJ-2|No. 2|Number two\n')
    items, skipped = read(tmp_path)
    assert [item.text for item in items.values()] == ['In fourteen, "he, she', "Number two"] and not skipped
    assert list(items) == ["wavs/LJ-1", "wavs/LJ-2"]
    items, _ = read(tmp_path, columns={"text": "2"})
    assert [item.text for item in items.values()] == ['In 1455, "he, she', "No. 2"]


def test_common_voice(tmp_path):
    write_wavs(tmp_path / "clips", ["a.mp3", "b.mp3"])
    header = "client_id\tpath\tsentence\tup_votes\tlocale\n"
    (tmp_path / "train.tsv").write_text(header + 'x9\ta.mp3\t"Unclosed\t2\tcy\n')
    (tmp_path / "test.tsv").write_text(header + "y1\tb.mp3\tÂ\t2\tcy\n")
    (tmp_path / "validated.tsv").write_text(header + "y1\tb.mp3\tÂ\t2\tcy\n")
    items, skipped = read(tmp_path)
    assert [(i.text, i.speaker, i.language, i.split) for i in items.values()] == [
        ('"Unclosed', "x9", "cy", "train"),
        ("Â", "y1", "cy", "test"),
    ]
    assert not skipped


def test_json_lines(tmp_path):
    write_wavs(tmp_path, ["a.wav", "b.wav"])
    lines = [json.dumps({"audio_filepath": "a.wav", "text": 7, "duration": 1.0}), "{", '{"text": "x", "url": "y"}']
    lines.append(json.dumps({"audio_filepath": str(tmp_path / "b.wav"), "text": "x", "offset": 0.5, "duration": 0.25}))
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    items, skipped = read(tmp_path / "train.jsonl.gz")
    a, b = items.values()
    assert a.whole and a.text == "7" and a.split == "train" and (b.start, b.end) == (0.5, 0.75)
    assert where(skipped) == {("train.jsonl.gz", 2, "bad row"), ("train.jsonl.gz", 3, "bad row")}


def test_tables_that_cannot_be_read_say_what_to_name(tmp_path):
    write_wavs(tmp_path, ["a.wav"])
    table = tmp_path / "t.tsv"
    for text, options, message in (
        ("name\twords\na.wav\thello\n", {}, "neither a header nor an audio file.*--columns path=1,text=2"),
        ("path\twords\tid\na.wav\thello\t1\n", {}, "no column for text among path, words, id"),
        ("path\twords\na.wav\thello\n", {"columns": {"text": "word"}}, "text=word"),
        ("just a line\n", {}, "no tab, comma"),
        ("", {}, "empty"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=message):
            read(table, "table", **options)
    table.write_text("path\twords\na.wav\thello\n")
    assert [item.text for item in read(table, "table", columns={"text": "words"})[0].values()] == ["hello"]
    table.rename(tmp_path / "x.old")
    (tmp_path / "u.tsv").write_text("path\ttext\na.wav\thello\n")
    (tmp_path / "v.tsv").write_text("path\ttext\na.wav\thello\n")
    with pytest.raises(ValueError, match=r"several tables \(u.tsv, v.tsv\)"):
        read(tmp_path)


def test_an_unclosed_quotation_mark_does_not_swallow_a_table(tmp_path):
    write_wavs(tmp_path, ["a.wav"])
    rows = ["path,text", 'a.wav,"never closed', *["b.wav,x"] * 30, 'a.wav,x"', *["a.wav,y"] * 2]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    found = list(READERS["table"].read(tmp_path / "t.csv", ReadOptions()))
    assert [s.line for s in found if isinstance(s, Skipped)] == [2]
    assert "never closed" in found[0].detail and len(found) == 3


def test_audio_root(tmp_path):
    write_wavs(tmp_path / "elsewhere", ["a.wav"])
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "t.csv").write_text("path,text\n/old/machine/a.wav,hello\n")
    assert read(tmp_path / "t" / "t.csv", "table")[1][0].fault == "missing audio"
    items, _ = read(tmp_path / "t" / "t.csv", "table", audio_root=tmp_path / "elsewhere")
    assert [item.audio for item in items.values()] == [str(tmp_path / "elsewhere" / "a.wav")]


# Kaldi


def test_kaldi(tmp_path):
    write_kaldi(tmp_path / "train", {"ann-1": "HELLO YOU", "ann-2": "GOOD", "bob-1": "DAY"})
    with open(tmp_path / "train" / "text", "a") as file:
        file.write("bob-1 AGAIN\nbob-9 NO AUDIO\n")
    with open(tmp_path / "train" / "wav.scp", "a") as file:
        file.write("bob-7\taudio/bob-1.wav\nbob-8\tcat audio/bob-1.wav |\nbob-6 a.ark:17\nbob-5 gone.wav\n")
    assert reader_of(tmp_path / "train") == "kaldi"
    items, skipped = read(tmp_path / "train")
    assert [(i.id, i.text, i.speaker, i.split, i.line) for i in items.values()] == [
        ("ann-1", "HELLO YOU", "ann", "train", 1),
        ("ann-2", "GOOD", "ann", "train", 2),
        ("bob-1", "DAY", "bob", "train", 3),
    ]
    assert where(skipped) == {
        ("text", 4, "id occurs twice"),
        ("text", 5, "missing audio"),
        ("wav.scp", 0, "no transcript"),
        ("wav.scp", 5, "command"),
        ("wav.scp", 6, "archive"),
        ("wav.scp", 7, "missing audio"),
    }


def test_kaldi_segments_and_commands(tmp_path):
    folder = tmp_path / "calls"
    write_kaldi(folder, {"call": ""})
    (folder / "wav.scp").write_text(f"call cat {tmp_path}/audio/call.wav |\n")
    (folder / "segments").write_text("u1 call 0.0 0.5\nu2 call 0.5 -1 1\nu3 call 2 1\nu4 call 0 1\n")
    (folder / "text").write_text("u1 HELLO\nu2 YOU\nu3 BAD\n")
    (folder / "utt2spk").write_text("u1 u1\nu2 u2\nu3 u3\n")
    items, skipped = read(folder)
    assert not items and {s.fault for s in skipped} == {"command", "bad times", "no transcript"}
    items, skipped = read(folder, allow_commands=True)
    assert [(i.kind, i.audio, i.start, i.end, i.channel) for i in items.values()] == [
        ("command", f"cat {tmp_path}/audio/call.wav", 0.0, 0.5, None),
        ("command", f"cat {tmp_path}/audio/call.wav", 0.5, None, 1),
    ]
    assert not any(item.speaker for item in items.values())  # a speaker for each utterance alone is none
    assert where(skipped) == {("segments", 3, "bad times"), ("segments", 0, "no transcript")}


# Lhotse


def supervision(id, start, duration, text="HELLO", **more):
    return SupervisionSegment(id, "talk", start, duration, text=text, speaker="ann", **more)


def recording(path, **more):
    return Recording("talk", [AudioSource("file", [0], str(path))], 16_000, 160_000, 10.0, **more)


def test_lhotse_recordings_with_supervisions(tmp_path):
    write_wavs(tmp_path, ["talk.wav"], 10.0)
    RecordingSet.from_recordings([recording("talk.wav")]).to_file(tmp_path / "my_recordings_train.jsonl.gz")
    found = [supervision("a", 0, 10), supervision("b", 1, 2), supervision("c", 1, 2, None)]
    SupervisionSet.from_segments(found).to_file(tmp_path / "my_supervisions_train.jsonl.gz")
    assert reader_of(tmp_path) == "lhotse"
    items, skipped = read(tmp_path)
    assert items == read(tmp_path / "my_recordings_train.jsonl.gz")[0]
    assert items == read(tmp_path / "my_supervisions_train.jsonl.gz")[0]
    assert items["a"].whole and items["a"].audio == str(tmp_path / "talk.wav") and items["a"].split == "train"
    assert (items["b"].start, items["b"].end, items["b"].speaker) == (1.0, 3.0, "ann")
    assert where(skipped) == {("my_supervisions_train.jsonl.gz", 3, "no transcript")}


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json"])
def test_lhotse_cuts(tmp_path, suffix):
    write_wavs(tmp_path, ["talk.wav"], 10.0)
    talk = recording(tmp_path / "talk.wav")
    parts = [supervision("x", 0, 2), supervision("y", 1.5, 1), supervision("z", 3, 2), supervision("w", 9, 2)]
    cuts = [
        MonoCut("whole", 0.0, 10.0, 0, [supervision("s", 0, 10, "7")], recording=talk),
        MonoCut("part", 2.0, 3.0, 0, [supervision("s", 0.2, 1.0)], recording=talk),
        MonoCut("many", 0.0, 10.0, 0, parts, recording=talk),
        MonoCut("none", 0.0, 10.0, 0, recording=talk),
    ]
    cuts.append(cuts[1].with_id("padded").pad(duration=4.0, preserve_id=True))
    cuts.append(cuts[1].with_id("faster").perturb_speed(1.1, affix_id=False))
    CutSet.from_cuts(cuts).to_file(tmp_path / f"cuts_train.{suffix}")
    assert reader_of(tmp_path / f"cuts_train.{suffix}") == "lhotse"
    items, skipped = read(tmp_path / f"cuts_train.{suffix}")
    spans = {id: (i.start, i.end) for id, i in items.items() if i.kind == "file"}
    assert spans == {"whole": (0, None), "part": (2, 5), "many-x": (0, 2), "many-y": (1.5, 2.5)} | {"many-z": (3, 5)}
    assert items["padded"].kind == CUT and items["faster"].kind == CUT and items["padded"].text == "HELLO"
    assert {(s.id, s.line, s.fault) for s in skipped} == {
        ("many-w", 3, "bad times"),
        ("none", 4, "no transcript"),
    }


def test_lhotse_lines_that_are_no_cuts(tmp_path):
    _, manifest, _ = write_cuts_and_tokenizer(tmp_path, [0.5, 0.5])
    lines = gzip.open(manifest, "rt").read().splitlines()
    numbered = json.loads(lines[0]) | {"id": 3}
    numbered["supervisions"][0] |= {"text": 7, "speaker": 103}
    gone, command = json.loads(lines[1]), json.loads(lines[1])
    gone["recording"]["sources"][0]["source"] = "/moved/a.flac"
    command["recording"]["sources"][0] |= {"type": "command", "source": "cat a.flac"}
    bad = [numbered, gone, command, {"id": "x", "type": "MonoCut"}, 7]
    (tmp_path / "cuts.jsonl").write_text("\n".join([lines[0], "{", *map(json.dumps, bad)]))
    items, skipped = read(tmp_path / "cuts.jsonl")
    assert list(items) == ["utt-00", "3"] and items["3"].text == "7" and items["3"].speaker == "103"
    faults = [(2, "bad row"), (4, "missing audio"), (5, "command"), (6, "no transcript"), (7, "bad row")]
    assert [(s.line, s.fault) for s in skipped] == faults
    assert read(tmp_path / "cuts.jsonl", allow_commands=True)[0]["utt-01"].kind == CUT


def test_shar(tmp_path):
    cuts, _, _ = write_cuts_and_tokenizer(tmp_path, [0.5, 0.5, 0.5])
    (tmp_path / "train").mkdir()
    with SharWriter(tmp_path / "train", {"recording": "flac"}, shard_size=2) as writer:
        for cut in cuts:
            writer.write(cut)
    assert reader_of(tmp_path / "train") == "lhotse"
    items, skipped = read(tmp_path / "train")
    assert list(items) == ["utt-00", "utt-01", "utt-02"] and not skipped
    assert {(i.kind, i.split) for i in items.values()} == {(SHARD, "train")}
    assert [i.audio[-13:] for i in items.values()] == ["0000.jsonl.gz", "0000.jsonl.gz", "0001.jsonl.gz"]


# Subtitles

SRT = """\ufeff1
00:00:00,500 --> 00:00:01,000
<i>Hello</i>
- you

2
00:00:01,000 --> 00:00:02,000
[applause]

3
00:00:01,500 --> 00:00:03,000
late

4
00:00:05,000 --> 00:00:04,000
wrong
5
00:00:06,000 --> 00:00:07,250
last
"""
VTT = """WEBVTT

NOTE a comment

00:01.000 --> 00:02.500 align:start position:0%
<v Ann Lee>Tom &amp; <00:01.500><c>Jerry</c>

00:bad --> 00:03.000
lost
"""


def test_subtitles(tmp_path):
    write_wavs(tmp_path / "test", ["talk.wav", "film.wav", "mute.wav"])
    (tmp_path / "test" / "talk.srt").write_text(SRT, encoding="utf-8")
    (tmp_path / "test" / "film.en.vtt").write_text(VTT)
    (tmp_path / "test" / "lost.srt").write_text(SRT)
    assert reader_of(tmp_path) == reader_of(tmp_path / "test" / "talk.srt") == "subtitles"
    items, skipped = read(tmp_path)
    assert [(i.id, i.text, i.start, i.end, i.speaker, i.line) for i in items.values()] == [
        ("test/film.en-00000", "Tom & Jerry", 1.0, 2.5, "Ann Lee", 5),
        ("test/talk-00000", "Hello - you", 0.5, 1.0, "", 2),
        ("test/talk-00002", "late", 1.5, 3.0, "", 11),
        ("test/talk-00003", "last", 6.0, 7.25, "", 18),
    ]
    assert {i.split for i in items.values()} == {"test"}
    assert where(skipped) == {
        ("film.en.vtt", 8, "bad times"),
        ("lost.srt", 0, "missing audio"),
        ("mute.wav", 0, "no transcript"),
        ("talk.srt", 7, "no speech"),
        ("talk.srt", 15, "bad times"),
    }
