"""Segments of long recordings."""

import numpy as np
import pytest
import soundfile
from trees import tone, write_ogg

from sumix_stream.audio import resample
from sumix_stream.corpora import segments as module
from sumix_stream.corpora.segments import Segment, cut_recording


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "a.ogg"
    write_ogg(path, 20, 1)
    return path


def cut(path, *spans):
    wanted = [Segment(f"s{i}", tuple(span)) for i, span in enumerate(spans)]
    folder = path.parent / "out"
    return cut_recording(path, wanted, folder, path.parent / "a.json")


def samples_of(path, id):
    return soundfile.read(path.parent / "out" / f"{id}.flac", dtype="float32")[0]


@pytest.mark.parametrize("block", [0.5, 7.0, 30.0])
def test_segments_are_the_samples_of_the_whole(recording, monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK_SECONDS", block)
    spans = [((12.5, 19.25),), ((0.0, 1.0),), ((0.75, 8.3),), ((3.0, 3.5), (6.9, 7.1)), ((19.0, 20.05),)]
    done = cut(recording, *spans)
    whole = soundfile.read(recording, dtype="float32")[0]
    assert not done.faults and len(done.pieces) == len(spans)
    for i, span in enumerate(spans):
        expected = np.concatenate([whole[round(a * 16_000) : round(b * 16_000)] for a, b in span])
        found = samples_of(recording, f"s{i}")
        assert done.pieces[f"s{i}"].num_samples == len(found) == len(expected)
        np.testing.assert_allclose(found, expected, atol=1 / 32_000)


def test_other_rates_and_channels_become_16_khz_mono(tmp_path):
    path = tmp_path / "a.ogg"
    write_ogg(path, 5, 2)
    left, rate = soundfile.read(path, dtype="float32")
    assert rate == 22_050 and left.shape[1] == 2
    cut(path, [(1.0, 3.0)])
    expected = resample(left.mean(1)[rate : 3 * rate].astype(np.float32), rate, 16_000)
    np.testing.assert_allclose(samples_of(path, "s0"), expected, atol=1 / 32_000)


def test_nothing_is_cut_twice_and_what_changed_is_cut_again(recording):
    first = cut(recording, [(0.0, 1.0)], [(2.0, 3.0)])
    file = recording.parent / "out" / "s0.flac"
    time = file.stat().st_mtime_ns
    assert cut(recording, [(0.0, 1.0)], [(2.0, 3.0)]) == first and file.stat().st_mtime_ns == time
    (recording.parent / "out" / "s1.flac").write_bytes(b"")
    assert cut(recording, [(0.0, 1.0)], [(2.0, 3.0)]) == first and len(samples_of(recording, "s1")) == 16_000
    assert cut(recording, [(0.0, 1.5)]).pieces["s0"].num_samples == 24_000
    assert not (recording.parent / "out" / "s1.flac").exists()


def test_interrupted_while_cutting(recording, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "resample", fail)
        with pytest.raises(KeyboardInterrupt):
            cut(recording, [(0.0, 1.0)])
    assert cut(recording, [(0.0, 1.0)]).pieces["s0"].num_samples == 16_000


@pytest.mark.parametrize(
    "span, detail",
    [
        ([(19.0, 20.2)], "ends at 20.20 s, after the end of the audio (20.00 s)"),
        ([(2.0, 1.0)], "no times in order"),
        ([(1.0, 1.0)], "no times in order"),
        ([(-1.0, 1.0)], "no times in order"),
        ([(3.0, 4.0), (2.0, 2.5)], "no times in order"),
        ([(float("nan"), 1.0)], "no times in order"),
        ([], "no times in order"),
    ],
)
def test_impossible_times_leave_the_others_alone(recording, span, detail):
    done = cut(recording, span, [(0.0, 1.0)])
    assert set(done.pieces) == {"s1"}
    fault, why = done.faults["s0"]
    assert fault == "bad times" and detail in why


@pytest.mark.parametrize("kind", ["missing", "not audio", "hole"])
def test_recordings_that_cannot_be_used(recording, kind):
    data = recording.read_bytes()
    if kind == "missing":
        recording.unlink()
    elif kind == "not audio":
        recording.write_bytes(b"hello")
    else:
        recording.write_bytes(data[: len(data) // 2] + bytes(4000) + data[len(data) // 2 + 4000 :])
    done = cut(recording, [(0.0, 1.0)], [(15.0, 16.0)])
    assert not done.pieces and set(done.faults) == {"s0", "s1"}
    fault, detail = done.faults["s1"]
    assert fault == ("missing audio" if kind == "missing" else "unreadable audio") and str(recording) in detail
    assert kind != "hole" or "of its 20.00 s do not decode" in detail
    recording.write_bytes(data)  # once it is there, it is cut
    if kind != "hole":  # of the same size
        assert set(cut(recording, [(0.0, 1.0)], [(15.0, 16.0)]).pieces) == {"s0", "s1"}


def test_of_a_truncated_recording_the_beginning_is_used(recording):
    data = recording.read_bytes()
    recording.write_bytes(data[: len(data) // 2])
    done = cut(recording, [(0.0, 1.0)], [(15.0, 16.0)])
    assert set(done.pieces) == {"s0"} and done.faults["s1"][0] == "bad times"


def test_nan_in_a_recording_is_reported(tmp_path):
    samples = tone(3)
    samples[20_000] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    done = cut(tmp_path / "a.wav", [(0.0, 1.0)], [(1.0, 2.0)])
    assert set(done.pieces) == {"s0"}
    assert done.faults["s1"][0] == "unreadable audio" and "finite" in done.faults["s1"][1]


@pytest.mark.parametrize("id", ["../a", "a/b", "", ".a", "/a"])
def test_ids_that_lead_elsewhere_are_refused(tmp_path, id):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(ValueError, match=r"a\.wav: .* is no plain name"):
        cut_recording(tmp_path / "a.wav", [Segment(id, ((0.0, 0.5),))], tmp_path / "out", tmp_path / "a.json")
    assert (tmp_path / "out" / "kept").exists()
