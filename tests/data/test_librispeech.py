"""Mini LibriSpeech in LibriSpeech's own layout."""

import pytest
from data.trees import write_librispeech

from sumix_stream.data import load_cuts
from sumix_stream.data.librispeech import prepare_librispeech


def speakers(out_dir, part):
    return {cut.supervisions[0].speaker for cut in load_cuts(out_dir / f"cuts_{part}.jsonl.gz")}


@pytest.mark.parametrize("dev", [False, True])
def test_prepare(tmp_path, dev):
    root = tmp_path / "LibriSpeech"
    write_librispeech(root, "train-clean-5", ["10", "20"], 6)
    write_librispeech(root, "test-clean", ["30"], 2)
    if dev:
        write_librispeech(root, "dev-clean-2", ["40"], 2)
    prepare_librispeech(tmp_path / "data", corpus=root if dev else tmp_path, vocab_size=32)
    assert speakers(tmp_path / "data", "train") == {"10", "20"}
    assert speakers(tmp_path / "data", "valid") == {"40" if dev else "30"}
    assert speakers(tmp_path / "data", "test") == {"30"}


def test_only_mini_is_prepared(tmp_path):
    with pytest.raises(ValueError, match=r"--parts full.*only mini"):
        prepare_librispeech(tmp_path, parts="full", corpus=tmp_path)


def test_a_folder_without_the_training_part_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"--corpus {tmp_path}.*train-clean-5"):
        prepare_librispeech(tmp_path / "data", corpus=tmp_path)


def test_validation_readers_are_needed(tmp_path):
    write_librispeech(tmp_path, "train-clean-5", ["10"], 2)
    with pytest.raises(ValueError, match="dev-clean-2 or test-clean"):
        prepare_librispeech(tmp_path / "data", corpus=tmp_path)
