"""Utterances' audio: decoded, measured, written where training could not read it; or why it cannot be used."""

import json

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from lhotse.serialization import deserialize_item
from lhotse.shar import SharWriter
from recordings import write_media
from trees import tone, write_cuts_and_tokenizer, write_wavs

from sumix_stream.corpora.checking import Checked, Checks, check_items, measure
from sumix_stream.corpora.faults import FaultyUtterance
from sumix_stream.corpora.readers.base import COMMAND, CUT, SHARD, Item
from sumix_stream.data.manifests import load_samples


@pytest.fixture
def checks(tmp_path):
    (tmp_path / "out").mkdir()
    return Checks(str(tmp_path / "out"), max_seconds=10.0)


def item(audio, id="u", **more):
    return Item(str(audio), "HELLO YOU", "list.txt", 7, id, speaker="ann", **more)


def one(checks, *arguments, **options):
    (outcome,) = check_items([item(*arguments, **options)], checks)
    return outcome


def heard(outcome):
    """The samples that training hears."""
    assert isinstance(outcome, Checked), outcome
    return load_samples(deserialize_item(json.loads(json.dumps(outcome.cut))))


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_file_is_used_as_it_is(tmp_path, checks, rate):
    soundfile.write(tmp_path / "a.wav", tone(1.5, rate), rate)
    done = one(checks, tmp_path / "a.wav")
    assert done.cut["recording"]["sources"][0]["source"] == str(tmp_path / "a.wav")
    assert done.cut["recording"]["sampling_rate"] == rate and len(heard(done)) == 24_000
    assert done.cut["supervisions"][0]["speaker"] == "ann" and done.cut["supervisions"][0]["text"] == "HELLO YOU"
    assert done.measures.sample_rate == rate and done.measures.seconds == pytest.approx(1.5)


@pytest.mark.parametrize(("channel", "expected"), [(None, "mix"), (0, 0), (1, 1), (2, "bad channel")])
def test_channels(tmp_path, checks, channel, expected):
    sides = np.stack([tone(1, seed=0), tone(1, seed=1)], 1)
    soundfile.write(tmp_path / "a.flac", sides, 16_000)
    for outcome in (
        one(checks, tmp_path / "a.flac", channel=channel),
        one(checks._replace(channel=channel), tmp_path / "a.flac"),
    ):
        if expected == "bad channel":
            assert outcome.fault == expected and "channel 2 of 2" in outcome.detail
        else:
            right = sides.mean(1) if channel is None else sides[:, channel]
            np.testing.assert_allclose(heard(outcome), right, atol=1e-4)
            assert outcome.measures.num_channels == 2
    soundfile.write(tmp_path / "mono.flac", sides[:, 0], 16_000)
    assert len(heard(one(checks._replace(channel=1), tmp_path / "mono.flac"))) == 16_000


def test_channels_that_cancel(tmp_path, checks):
    soundfile.write(tmp_path / "a.flac", np.stack([tone(1), -tone(1)], 1), 16_000)
    outcome = one(checks, tmp_path / "a.flac")
    assert outcome.fault == "channels cancel" and "--channel 0" in outcome.detail
    assert np.abs(heard(one(checks._replace(channel=0), tmp_path / "a.flac"))).max() > 0.2


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("missing", "missing audio"),
        ("text", "unreadable audio"),
        ("empty", "too short"),
        ("truncated", "unreadable audio"),
        ("truncated FLAC", "unreadable audio"),
        ("damaged FLAC", "unreadable audio"),
        ("long", "too long"),
        ("silent", "silent"),
        ("nan", "unreadable audio"),
        ("rate", "unreadable audio"),
    ],
)
def test_what_cannot_be_used(tmp_path, checks, kind, fault):
    path = tmp_path / ("a.flac" if "FLAC" in kind else "a.wav")
    samples = {"empty": tone(0), "long": tone(11), "silent": np.zeros(16_000)}.get(kind, tone(1)).astype(np.float32)
    if kind == "nan":
        samples[5] = np.nan
    soundfile.write(path, samples, 2_000 if kind == "rate" else 16_000, subtype="FLOAT" if kind == "nan" else "PCM_16")
    if kind == "missing":
        path.unlink()
    elif kind == "text":
        path.write_text("hello")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    elif "FLAC" in kind:
        data = path.read_bytes()
        half = data[: len(data) // 2]
        path.write_bytes(data[:-100] if "truncated" in kind else half + bytes(64) + data[len(half) + 64 :])
    outcome = one(checks, path)
    assert isinstance(outcome, FaultyUtterance) and outcome.fault == fault
    assert str(path) in outcome.detail or fault.startswith("too ")


def test_a_flac_of_unknown_length_is_written_anew(tmp_path, checks):
    soundfile.write(tmp_path / "a.flac", tone(1), 16_000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[8 + 13] &= 0xF0  # 36 bits of the number of samples, and the checksum of all
    data[8 + 14 : 8 + 34] = bytes(20)
    (tmp_path / "a.flac").write_bytes(data)
    done = one(checks, tmp_path / "a.flac")
    np.testing.assert_allclose(heard(done), tone(1), atol=1e-4)
    assert done.cut["recording"]["sources"][0]["source"].startswith(checks.folder)


@pytest.mark.parametrize("subtype", ["GSM610", "ULAW", "G721_32"])
def test_telephone_codecs(tmp_path, checks, subtype):
    rate, format = 8_000, "AU" if subtype == "G721_32" else "WAV"
    soundfile.write(tmp_path / "a.wav", tone(2, rate), rate, subtype=subtype, format=format)
    done = one(checks, tmp_path / "a.wav")
    assert len(heard(done)) == pytest.approx(32_000, abs=800) and done.measures.sample_rate == rate


def test_a_decoder_that_fails_in_its_own_way_ends_nothing(tmp_path, checks, monkeypatch):
    write_wavs(tmp_path, ["a.wav", "b.wav"])

    def broken(path):
        raise ZeroDivisionError("of a decoder") if "a.wav" in path else ValueError(path)

    monkeypatch.setattr("sumix_stream.corpora.checking.read_audio", broken)
    found = check_items([item(tmp_path / name, name[0]) for name in ("a.wav", "b.wav")], checks)
    assert [o.fault for o in found] == ["unreadable audio"] * 2 and "ZeroDivisionError: of a decoder" in found[0].detail


def test_a_header_that_lies_costs_no_memory(tmp_path, checks):
    soundfile.write(tmp_path / "a.flac", tone(0.01), 16_000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[8 + 13] |= 0x0F
    data[8 + 14 : 8 + 18] = b"\xff" * 4
    (tmp_path / "a.flac").write_bytes(data)
    assert one(checks, tmp_path / "a.flac").fault in ("too short", "unreadable audio")


def test_measures():
    samples = np.concatenate([0.5 * tone(1) / 0.3, np.zeros(16_000, np.float32)])
    found = measure(samples, 16_000)
    assert found.peak == pytest.approx(0.5, abs=0.06) and found.level == pytest.approx(-9, abs=0.5)
    assert found.active == pytest.approx(1.0, abs=0.05) and found.clipped == 0 and found.seconds == 2.0
    assert measure(np.clip(10 * samples, -1, 1), 16_000).clipped > 0.3


# Parts of recordings, and what commands write


def test_segments_of_a_recording_are_cut(tmp_path, checks):
    whole = np.stack([tone(8, 44_100, seed=0), tone(8, 44_100, seed=1)], 1)
    soundfile.write(tmp_path / "talk.wav", whole, 44_100)
    spans = [(0.5, 2.0, None), (1.5, 2.5, 1), (6.0, None, 0), (7.0, 9.0, None), (3.0, 3.01, None)]
    items = [item(tmp_path / "talk.wav", f"s{n}", start=a, end=b, channel=c) for n, (a, b, c) in enumerate(spans)]
    done = check_items(items, checks)
    assert [o.fault for o in done[3:]] == ["bad times", "too short"]
    assert [len(heard(o)) for o in done[:3]] == [24_000, 16_000, 32_000]
    (tmp_path / "other").mkdir()
    other = checks._replace(channel=1, folder=str(tmp_path / "other"))
    one_side = check_items([item(tmp_path / "talk.wav", "x", start=1.5, end=2.5)], other)
    np.testing.assert_array_equal(heard(one_side[0]), heard(done[1]))
    assert {(o.measures.sample_rate, o.measures.num_channels) for o in done[:3]} == {(44_100, 2)}


def test_a_segment_that_is_all_of_its_file_is_used_as_it_is(tmp_path, checks):
    write_wavs(tmp_path, ["a.wav"])
    done = one(checks, tmp_path / "a.wav", start=0.0, end=1.02)
    assert done.cut["recording"]["sources"][0]["source"] == str(tmp_path / "a.wav")


def test_commands(tmp_path, checks):
    write_wavs(tmp_path, ["a.wav"], 2.0)
    command = f"cat {tmp_path / 'a.wav'}"
    items = [item(command, "w", kind=COMMAND), item(command, "p", kind=COMMAND, start=0.5, end=1.0)]
    whole, part = check_items(items, checks)
    np.testing.assert_allclose(heard(whole), tone(2), atol=1e-3)
    np.testing.assert_allclose(heard(part), tone(2)[8000:16_000], atol=1e-3)
    failed = one(checks, "echo no such tape >&2; exit 3", kind=COMMAND)
    assert failed.fault == "unreadable audio" and "ended with 3 (no such tape)" in failed.detail
    assert one(checks, "true", kind=COMMAND).fault in ("unreadable audio", "too short")


# What only Lhotse can put together


def test_cuts_and_shards(tmp_path, checks):
    cuts, _, _ = write_cuts_and_tokenizer(tmp_path, [0.5, 0.6])
    padded = next(iter(cuts)).pad(duration=1.0)
    outcome = one(checks, json.dumps(padded.to_dict()), kind=CUT)
    np.testing.assert_allclose(heard(outcome)[:8000], tone(0.5), atol=1e-3)
    assert len(heard(outcome)) == 16_000
    gone = Recording("r", [AudioSource("file", [0], "/gone.wav")], 16_000, 16_000, 1.0)
    cut = MonoCut("c", 0.0, 1.0, 0, [SupervisionSegment("c", "r", 0, 1, text="X")], recording=gone)
    assert one(checks, json.dumps(cut.to_dict()), kind=CUT).fault == "unreadable audio"
    assert one(checks, json.dumps({"type": "MonoCut"}), kind=CUT).fault == "unreadable audio"

    (tmp_path / "shar").mkdir()
    with SharWriter(tmp_path / "shar", {"recording": "flac"}, shard_size=2) as writer:
        for cut in cuts:
            writer.write(cut)
    (shard,) = (tmp_path / "shar").glob("cuts.*")
    items = [item(shard, f"s{line}", kind=SHARD)._replace(line=line) for line in (1, 2, 3)]
    done = check_items(items, checks)
    np.testing.assert_allclose(heard(done[1]), tone(0.6, seed=1), atol=1e-3)
    assert len(heard(done[0])) == 8000 and "not in the shard" in done[2].detail
    (tar,) = (tmp_path / "shar").glob("recording.*")
    tar.write_bytes(tar.read_bytes()[:1500])
    assert {o.fault for o in check_items(items, checks)} == {"unreadable audio"}


def test_what_phones_record_is_read_and_written_as_flac(tmp_path, checks):
    """M4A, by its channels, whole and in parts."""
    sides = np.stack([tone(2, seed=0), tone(2, seed=1)], 1)
    path = write_media(tmp_path / "a.m4a", sides, 16_000)
    mixed, right = one(checks, path, "mixed"), one(checks, path, "right", channel=1)
    for outcome, expected in ((mixed, sides.mean(1)), (right, sides[:, 1])):
        samples = heard(outcome)
        assert outcome.cut["recording"]["sources"][0]["source"].endswith(".flac") and 2 <= len(samples) / 16_000 < 2.1
        # Lossy: the same sound, not another channel's.
        assert np.corrcoef(samples[2_000:30_000], expected[2_000:30_000])[0, 1] > 0.8
    assert one(checks, path, channel=2).fault == "bad channel"
    first, second = check_items([item(path, "x", end=1.0), item(path, "y", start=1.0, end=1.5, channel=1)], checks)
    assert len(heard(first)) == 16_000 and len(heard(second)) == 8_000
    assert np.corrcoef(heard(second), sides[16_000:24_000, 1])[0, 1] > 0.8
