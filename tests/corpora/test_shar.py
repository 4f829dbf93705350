"""Manifests with their audio in Lhotse's Shar format: written, gone on with, read, trained on."""

from dataclasses import replace

import numpy as np
import pytest
from trees import write_cuts_and_tokenizer

from sumix_stream.config import DataConfig
from sumix_stream.corpora.shar import write_shar
from sumix_stream.data import ManifestError, TrainLoader, load_cuts
from sumix_stream.timebase import Timebase


@pytest.fixture
def tree(tmp_path):
    cuts, manifest, tokenizer = write_cuts_and_tokenizer(tmp_path, [0.6 + 0.1 * i for i in range(7)])
    assert write_shar(manifest, tmp_path / "shar" / "train", shard_size=3, jobs=2)
    return cuts, manifest, tokenizer, tmp_path / "shar" / "train"


def test_cuts_come_back_with_their_audio(tree):
    cuts, manifest, _, folder = tree
    assert len(list(folder.iterdir())) == 6
    for path in manifest.parent.glob("*.flac"):
        path.unlink()  # the tar files need them no more
    found = load_cuts(folder)
    for _ in range(2):
        assert [cut.id for cut in found] == [cut.id for cut in cuts]
    for cut, original in zip(found, cuts, strict=True):
        assert cut.supervisions[0].text == original.supervisions[0].text
        assert cut.load_audio().shape == (1, original.num_samples)


def test_audio_is_the_same_samples(tree):
    cuts, _, _, folder = tree
    for cut, original in zip(load_cuts(folder), cuts, strict=True):
        np.testing.assert_array_equal(cut.load_audio(), original.load_audio())


def test_written_once_and_gone_on_with(tree):
    _, manifest, _, folder = tree
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not write_shar(manifest, folder, shard_size=3)
    (folder / "cuts.000001.jsonl.gz").unlink()  # interrupted before the second shard was whole
    assert write_shar(manifest, folder, shard_size=3)
    after = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    changed = {path.name for path in after if after[path] != before[path]}
    assert changed == {"cuts.000001.jsonl.gz", "recording.000001.tar"} and after.keys() == before.keys()
    assert write_shar(manifest, folder, shard_size=4)
    assert len(list(folder.iterdir())) == 4


def test_training_on_shards_is_training_on_files(tree):
    _, manifest, tokenizer, folder = tree
    config = DataConfig(max_duration=2.0, num_buckets=2, speed_perturb=(0.9,))
    for num_workers in (0, 1):
        config = replace(config, num_workers=num_workers)
        batches = [
            list(TrainLoader(config, cuts, tokenizer, Timebase(), seed=3).epoch_batches(1))
            for cuts in (manifest, folder)
        ]
        assert len(batches[0]) == len(batches[1]) > 2
        for a, b in zip(*batches, strict=True):
            assert a.ids == b.ids and a.texts == b.texts
            np.testing.assert_array_equal(a.feats, b.feats)


@pytest.mark.parametrize("kind", ["empty", "cuts", "truncated", "no audio"])
def test_bad_folders_are_refused_by_name(tree, tmp_path, kind):
    *_, folder = tree
    tar = folder / "recording.000001.tar"
    if kind == "empty":
        folder = tmp_path / "nothing"
        folder.mkdir()
    elif kind == "cuts":
        (folder / "cuts.000001.jsonl.gz").write_text("not gzip")
    elif kind == "truncated":
        tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    else:
        tar.write_bytes(b"")
    with pytest.raises(ManifestError, match=str(folder)):
        list(load_cuts(folder))


def test_shard_size_is_checked(tree):
    with pytest.raises(ValueError, match="shard_size must be at least 1"):
        write_shar(tree[1], tree[3], shard_size=0)
