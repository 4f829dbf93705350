"""Manifests: what is refused, left out by name, and loaded."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import MultiCut, Recording
from trees import tone, write_cuts_and_tokenizer

from sumix_stream.config import DataConfig
from sumix_stream.corpora.preparation import make_cut
from sumix_stream.data import ManifestError, UtteranceError, filter_cuts, load_cuts, read_valid
from sumix_stream.data.manifests import CutFilter, load_samples
from sumix_stream.timebase import Timebase


@pytest.fixture
def tree(tmp_path):
    return write_cuts_and_tokenizer(tmp_path, [1.0, 1.2, 1.4])


def cut_of(path: Path, samples: np.ndarray, rate: int = 16_000, **options):
    soundfile.write(path, samples, rate, **options)
    return make_cut(path.stem, path, len(samples), "ALPHA", "s")


def test_manifests_follow_each_other_and_can_be_read_again(tree):
    _, manifest, _ = tree
    cuts = load_cuts([manifest, manifest])
    assert [cut.id for cut in cuts] == ["utt-00", "utt-01", "utt-02"] * 2
    assert [cut.id for cut in cuts] == ["utt-00", "utt-01", "utt-02"] * 2
    assert cuts.is_lazy


@pytest.mark.parametrize("kind", ["missing", "suffix", "empty", "not gzip", "not cuts", "none"])
def test_a_bad_manifest_is_refused_by_name(tmp_path, kind):
    path = tmp_path / ("cuts.json" if kind == "suffix" else "cuts.jsonl.gz" if kind == "not gzip" else "cuts.jsonl")
    if kind in ("empty", "suffix"):
        path.write_text("")
    elif kind == "not gzip":
        path.write_text('{"id": 1}\n')
    elif kind == "not cuts":
        path.write_text('{"hello": 1}\n')
    with pytest.raises(ManifestError, match=r"train_cuts" if kind == "none" else path.name):
        load_cuts([] if kind == "none" else path)


def test_the_error_names_the_recipe_that_makes_the_manifest(tmp_path):
    (tmp_path / "prepare").touch()
    with pytest.raises(ManifestError, match=f"{tmp_path}/prepare"):
        load_cuts(tmp_path / "data" / "cuts_train.jsonl.gz")


def test_a_truncated_manifest_raises_where_it_ends(tmp_path):
    _, manifest, _ = write_cuts_and_tokenizer(tmp_path, [1.0] * 60)
    manifest.write_bytes(manifest.read_bytes()[: manifest.stat().st_size * 3 // 4])
    cuts = load_cuts(manifest)
    seen = []
    with pytest.raises(ManifestError, match="damaged after"):
        for cut in cuts:
            seen.append(cut.id)
    assert seen == [f"utt-{i:02d}" for i in range(len(seen))] and seen


def with_text(cut, text):
    return replace(cut, supervisions=[replace(cut.supervisions[0], text=text)])


@pytest.mark.parametrize(
    "config, text, reason",
    [
        (DataConfig(min_utterance=1.1), "ALPHA", "1.00 s is outside 1.1 to 30.0 s"),
        (DataConfig(max_utterance=0.9), "ALPHA", "1.00 s is outside 0.1 to 0.9 s"),
        (DataConfig(), "", "transcript is empty"),
        (DataConfig(), "ALPHA #", "tokenizer does not know: #"),
        (DataConfig(), "ALPHABRAVODELTAECHOGOLFHOTELINDIA", "no path: "),
        (DataConfig(), "ALPHA BRAVO", None),
    ],
    ids=["short", "long", "empty", "unknown", "no-path", "good"],
)
def test_filter_says_why(tree, config, text, reason):
    cuts, _, tokenizer = tree
    given = CutFilter(config, tokenizer, Timebase()).reason(with_text(cuts["utt-00"], text))
    assert given is None if reason is None else reason in given


def test_as_many_tokens_as_frames_is_a_path(tree):
    cuts, _, tokenizer = tree
    judge, cut = CutFilter(DataConfig(), tokenizer, Timebase()), cuts["utt-00"]
    frames = Timebase().num_encoder_frames(Timebase().num_feature_frames(16_000))
    text = "A" * (frames - 1)  # and the piece that begins a word
    assert len(tokenizer.encode(text)) == frames
    assert judge.reason(with_text(cut, text)) is None
    assert "no path" in judge.reason(with_text(cut, text + "A"))


def test_filter_logs_each_cut_once(tree, caplog):
    _, manifest, tokenizer = tree
    kept = filter_cuts(load_cuts(manifest), DataConfig(max_utterance=1.3), tokenizer, Timebase())
    with caplog.at_level(logging.WARNING):
        assert [cut.id for cut in kept] == [cut.id for cut in kept] == ["utt-00", "utt-01"]
    assert [record.getMessage().split()[0] for record in caplog.records] == ["utt-02"]


def test_other_rates_are_resampled(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.5, 8000), 8000)
    samples = load_samples(Recording.from_file(tmp_path / "a.wav").to_cut())
    assert samples.shape == (8000,) and samples.dtype == np.float32


def test_channels_are_averaged(tmp_path):
    left, right = tone(0.5, seed=1), tone(0.5, seed=2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    cut = Recording.from_file(tmp_path / "a.wav").to_cut()
    assert isinstance(cut, MultiCut)
    np.testing.assert_allclose(load_samples(cut), (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("kind", ["missing", "truncated", "not audio", "nan", "infinite", "empty"])
def test_bad_audio_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "bad.wav"
    samples = tone(0.5)
    if kind in ("nan", "infinite"):
        samples[100] = np.nan if kind == "nan" else np.inf
    cut = cut_of(path, samples, subtype="FLOAT")
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:20])
    elif kind == "not audio":
        path.write_text("hello")
    elif kind == "empty":
        soundfile.write(path, samples[:0], 16_000)
    with pytest.raises(UtteranceError, match=r"^bad: .*bad\.wav") as error:
        load_samples(cut)
    assert "\n" not in str(error.value)


def test_read_valid_is_lazy_and_leaves_bad_audio_out(tree, caplog):
    cuts, manifest, _ = tree
    utterances = read_valid(load_cuts(manifest))
    Path(cuts["utt-01"].recording.sources[0].source).write_bytes(b"")  # after the call: nothing was read yet
    with caplog.at_level(logging.WARNING):
        found = list(utterances)
    assert [(u.id, u.text, u.duration) for u in found] == [
        (id, cuts[id].supervisions[0].text, cuts[id].duration) for id in ("utt-00", "utt-02")
    ]
    assert found[1].samples.shape == (22_400,)
    assert "utt-01" in caplog.text
