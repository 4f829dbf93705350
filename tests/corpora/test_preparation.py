"""What the recipes' preparations share."""

import json

import numpy as np
import pytest
import soundfile
import torch
from trees import tone, write_cuts_and_tokenizer

from sumix_stream.audio import resample
from sumix_stream.corpora.preparation import (
    cut_texts,
    join_manifests,
    make_cut,
    read_stats,
    write_cuts,
    write_flac,
    write_lines,
    write_stats,
)
from sumix_stream.data import load_cuts
from sumix_stream.features import whole_fbank


def test_stats_are_those_of_all_frames(tmp_path):
    cuts, _, _ = write_cuts_and_tokenizer(tmp_path, [0.5, 0.8, 1.0])
    write_stats(tmp_path, max_seconds=1.2)  # reached within the second utterance: the third is not read
    feats = torch.cat([torch.from_numpy(whole_fbank(cuts[id].load_audio()[0])) for id in ("utt-00", "utt-01")]).double()
    mean, std = read_stats(tmp_path / "stats.npz")
    np.testing.assert_allclose(mean, feats.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, feats.std(0, correction=0), rtol=1e-4)


@pytest.mark.parametrize("kind", ["missing", "not npz", "other names", "shape", "nan"])
def test_bad_stats_are_refused_by_name(tmp_path, kind):
    path = tmp_path / "stats.npz"
    good = np.ones(80, np.float32)
    if kind == "not npz":
        path.write_text("hello")
    elif kind == "other names":
        np.savez(path, mean=good)
    elif kind == "shape":
        np.savez(path, mean=good, std=good[:79])
    elif kind == "nan":
        np.savez(path, mean=good * np.nan, std=good)
    with pytest.raises(ValueError, match=r"stats\.npz.*prepare"):
        read_stats(path)


def test_equal_manifests_are_equal_bytes_and_nothing_is_left_of_an_empty_one(tmp_path):
    cuts, _, _ = write_cuts_and_tokenizer(tmp_path, [0.5, 0.8])
    for name in ("a", "b"):
        write_cuts(cuts, tmp_path / f"{name}.jsonl.gz")
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert [cut.id for cut in load_cuts(tmp_path / "a.jsonl.gz")] == ["utt-00", "utt-01"]
    before = set(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no utterances for c.jsonl.gz"):
        write_cuts([], tmp_path / "c.jsonl.gz")
    assert set(tmp_path.iterdir()) == before


def test_joined_manifests(tmp_path):
    _, manifest, _ = write_cuts_and_tokenizer(tmp_path, [0.2] * 20)
    ids, out = [f"utt-{i:02d}" for i in range(20)], tmp_path / "out.jsonl.gz"

    def joined(**options):
        join_manifests([manifest], out, **options)
        return [cut.id for cut in load_cuts(out)]

    assert joined() == ids
    assert joined(seed=1) == joined(seed=1) != joined(seed=2) and sorted(joined(seed=1)) == ids
    sample = joined(limit=5)
    assert len(set(sample)) == 5 and sample == sorted(sample) and sample != ids[:5]
    assert joined(limit=20) == ids


def test_loud_samples_are_scaled_not_clipped(tmp_path):
    samples = 4 * tone(0.3)
    assert write_flac(tmp_path / "a.flac", samples) == len(samples)
    written, rate = soundfile.read(tmp_path / "a.flac")
    assert rate == 16_000
    np.testing.assert_allclose(written, samples * 0.99 / np.abs(samples).max(), atol=1e-4)


def write_manifest(folder, cuts):
    write_lines((json.dumps(cut if isinstance(cut, dict) else cut.to_dict()) for cut in cuts), folder / NAME)


NAME = "cuts_train.jsonl.gz"


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_stats_are_at_the_rate_that_training_hears(tmp_path, rate):
    """Of a signal that all rates hold: bins below 3.4 kHz equal those at 16 kHz."""
    rng = np.random.default_rng(0)
    time = np.arange(2 * rate) / rate
    tones = sum(np.sin(2 * np.pi * f * time + rng.uniform(0, 6)) for f in range(150, 3300, 50)) / 80
    soundfile.write(tmp_path / "a.wav", tones.astype(np.float32), rate, subtype="FLOAT")
    write_manifest(tmp_path, [make_cut("a", tmp_path / "a.wav", len(tones), "X", None, sample_rate=rate)])
    write_stats(tmp_path)
    expected = whole_fbank(resample(tones.astype(np.float32), rate))
    mean, _ = read_stats(tmp_path / "stats.npz")
    np.testing.assert_allclose(mean, expected.mean(0), atol=0.02)


def test_stats_hear_the_channel_and_the_stretch_of_a_cut(tmp_path, monkeypatch):
    sides = np.stack([tone(6, seed=0), 0.1 * tone(6, seed=1)], 1)
    soundfile.write(tmp_path / "a.wav", sides, 16_000, subtype="FLOAT")
    options = {"num_channels": 2, "channel": 1}
    whole = make_cut("a", tmp_path / "a.wav", 96_000, "X", None, **options)
    write_manifest(tmp_path, [whole.truncate(offset=float(n), duration=0.5).with_id(f"a{n}") for n in range(4)])
    read = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, *a, **k: read.append(len(out := original(self, *a, **k))) or out
    )
    write_stats(tmp_path)
    assert sum(read) == 4 * 8000  # not the recording, for each cut
    pieces = [sides[n * 16_000 : n * 16_000 + 8000, 1].astype(np.float32) for n in range(4)]
    feats = np.concatenate([whole_fbank(piece) for piece in pieces]).astype(np.float64)
    np.testing.assert_allclose(read_stats(tmp_path / "stats.npz")[0], feats.mean(0), rtol=1e-4)


def test_cuts_without_text_or_audio_are_passed_over(tmp_path, caplog):
    cuts, _, _ = write_cuts_and_tokenizer(tmp_path, [0.5, 0.5, 0.5, 0.5])
    silent, gone, padded, good = (cut.to_dict() for cut in cuts)
    del silent["supervisions"][0]["text"]
    gone["recording"]["sources"][0]["source"] = str(tmp_path / "gone.flac")
    padded = list(cuts)[2].pad(duration=1.0).to_dict()
    write_manifest(tmp_path, [silent, gone, padded, good])
    assert len(list(cut_texts(tmp_path / NAME))) == 3
    write_stats(tmp_path)
    assert "utt-01" in caplog.text and "gone.flac" in caplog.text
    write_manifest(tmp_path, [gone])
    with pytest.raises(ValueError, match="no audio in it can be read"):
        write_stats(tmp_path)
