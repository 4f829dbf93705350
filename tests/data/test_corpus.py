"""What the recipes' preparations share."""

import logging

import numpy as np
import pytest
import soundfile
import torch
from data.trees import tone, write_cuts_and_tokenizer, write_librispeech

from sumix_stream.data.corpus import Stages, read_librispeech_part, read_stats, write_flac, write_stats
from sumix_stream.features import fbank


def test_stages_are_done_once_and_again_when_settings_or_earlier_stages_change(tmp_path):
    done = []

    def prepare(first, fail=False):
        def second():
            done.append("b")
            if fail:
                raise KeyboardInterrupt

        stages = Stages(tmp_path / "data")
        stages.run("a", {"n": first}, lambda: done.append("a"))
        stages.run("b", {}, second)

    with pytest.raises(KeyboardInterrupt):
        prepare(1, fail=True)
    prepare(1)
    prepare(1)
    assert done == ["a", "b", "b"]
    prepare(2)
    assert done == ["a", "b", "b", "a", "b"]


def test_stats_are_those_of_all_frames(tmp_path):
    cuts, _, _ = write_cuts_and_tokenizer(tmp_path, [0.5, 0.8, 1.0])
    write_stats(tmp_path, max_seconds=1.2)  # reached within the second utterance: the third is not read
    feats = torch.cat([fbank(cuts[id].load_audio()[0]) for id in ("utt-00", "utt-01")]).double()
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


def test_librispeech_layout(tmp_path, caplog):
    write_librispeech(tmp_path, "part", ["12", "3"], 4)
    (tmp_path / "part/12/7/12-7-0001.flac").unlink()
    (tmp_path / "part/12/7/12-7-0002.flac").write_text("not audio")
    soundfile.write(tmp_path / "part/3/7/3-7-0000.flac", tone(1, 8000), 8000)
    with caplog.at_level(logging.WARNING):
        cuts = read_librispeech_part(tmp_path / "part")
    assert [cut.id for cut in cuts] == ["12-7-0000", "12-7-0003", "3-7-0001", "3-7-0002", "3-7-0003"]
    assert [record.getMessage().split()[0] for record in caplog.records] == ["12-7-0001", "12-7-0002", "3-7-0000"]
    assert cuts[0].supervisions[0].speaker == "12" and len(cuts[0].supervisions[0].text.split()) == 3
    assert cuts[1].load_audio().shape == (1, cuts[1].num_samples)


def test_a_folder_without_transcripts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}.*LibriSpeech"):
        read_librispeech_part(tmp_path)


def test_loud_samples_are_scaled_not_clipped(tmp_path):
    samples = 4 * tone(0.3)
    assert write_flac(tmp_path / "a.flac", samples) == len(samples)
    written, rate = soundfile.read(tmp_path / "a.flac")
    assert rate == 16_000
    np.testing.assert_allclose(written, samples * 0.99 / np.abs(samples).max(), atol=1e-4)
