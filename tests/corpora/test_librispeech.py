"""LibriSpeech in its own layout: which parts are used, what is left out, what is done again."""

import hashlib
import logging
import re

import numpy as np
import pytest
import soundfile
from lhotse.recipes import librispeech as lhotse_librispeech
from trees import tone, write_librispeech

from sumix_stream.corpora import librispeech
from sumix_stream.corpora.faults import read_report
from sumix_stream.corpora.librispeech import SELECTIONS, prepare_librispeech, read_librispeech_part
from sumix_stream.data import load_cuts
from sumix_stream.tokenizer import Tokenizer


def ids(out_dir, name):
    return [cut.id for cut in load_cuts(out_dir / f"cuts_{name}.jsonl.gz")]


def speakers(out_dir, name):
    return {id.split("-")[0] for id in ids(out_dir, name)}


def modified(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def tree(tmp_path):
    """All parts of LibriSpeech, a speaker each, and what can be wrong with an utterance in two of them."""
    root = tmp_path / "corpus" / "LibriSpeech"
    for speaker, part in enumerate(SELECTIONS["960h"].download, 10):
        write_librispeech(root, part, [str(speaker)], 6)
    for folder, speaker in ((root / "train-clean-100/10/7", 10), (root / "test-clean/15/7", 15)):
        (folder / f"{speaker}-7-0000.flac").unlink()
        flac = folder / f"{speaker}-7-0001.flac"
        flac.write_bytes(flac.read_bytes()[:-500])
        soundfile.write(folder / f"{speaker}-7-0002.flac", tone(2.5), 16_000)
        soundfile.write(folder / f"{speaker}-7-0009.flac", tone(1), 16_000)
        table = folder / f"{speaker}-7.trans.txt"
        lines = table.read_text().splitlines()
        lines[3] = lines[3].split()[0]
        lines[4] = lines[4].split()[0] + " ЭХО"
        table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


FAULTS = {
    "0000": "missing audio",
    "0001": "unreadable audio",
    "0003": "empty transcript",
    "0004": "non-Latin transcript",
    "0009": "no transcript",
}


def test_960h(tree, caplog, capsys):
    out = tree / "data"
    with caplog.at_level(logging.WARNING):
        prepare_librispeech(
            out, parts="960h", corpus=tree / "corpus", vocab_size=30, max_seconds=2, num_valid=5, jobs=2
        )
    assert speakers(out, "train") == {"10", "11", "12"}
    assert len(ids(out, "train")) == 1 + 6 + 6 and ids(out, "train") != sorted(ids(out, "train"))
    assert len(ids(out, "valid")) == 5 and speakers(out, "valid") <= {"13", "14"}
    assert ids(out, "dev-clean") + ids(out, "dev-other") == [f"{s}-7-{i:04d}" for s in (13, 14) for i in range(6)]
    assert (
        ids(out, "test") == ids(out, "test-clean") == ["15-7-0002", "15-7-0005"]
    )  # the long one is kept in a test set
    assert speakers(out, "test-other") == {"16"}
    found = {(fault.part, fault.id): fault.fault for fault in read_report(out / "left_out.tsv")}
    expected = {
        (part, f"{s}-7-{n}"): f for part, s in (("train-clean-100", 10), ("test-clean", 15)) for n, f in FAULTS.items()
    }
    assert found == expected | {("train-clean-100", "10-7-0002"): "too long"}
    named = {record.getMessage().split()[0] for record in caplog.records if "left out" in record.getMessage()}
    assert named == {id for _, id in found}
    assert "test-clean: 2 of the 2620 published utterances (1 empty transcript, 1 missing audio" in caplog.text
    assert "test-clean: 1 left out: no transcript" in capsys.readouterr().out
    assert Tokenizer.load(out / "tokenizer.model").vocab_size == 30


def test_the_second_run_does_nothing_and_another_setting_only_what_it_needs(tree, capsys):
    def prepare(**options):
        options = {"parts": "100h", "corpus": tree / "corpus", "vocab_size": 20, **options}
        prepare_librispeech(tree / "data", shar=tree / "shar", **options)
        return {line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "already done" in line}

    parts = {"train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other"}
    assert not prepare()
    before = modified(tree)
    shar = {str(tree / "shar" / name) for name in ("train", "valid", *parts - {"train-clean-100"})}
    assert prepare() == parts | {"manifests", "tokenizer", "stats"} | shar
    assert modified(tree) == before
    assert prepare(vocab_size=21) == parts | {"manifests"} | shar
    assert prepare(vocab_size=21, max_seconds=1.5) == parts - {"train-clean-100"} | shar - {
        str(tree / "shar" / "train")
    }
    assert prepare(vocab_size=21, seed=1) == parts - {"train-clean-100"} | shar - {str(tree / "shar" / "train")}


def test_interrupted(tree, capsys):
    out = tree / "data"
    options = {"parts": "100h", "corpus": tree / "corpus", "vocab_size": 20}
    prepare_librispeech(out, **options)
    whole = {path.name: path.read_bytes() for path in out.glob("cuts_*")}
    (out / ".dev-other.completed").unlink()
    (out / "cuts_dev-other.jsonl.gz").write_bytes(b"half of i")
    (out / ".stats.completed").unlink()
    capsys.readouterr()
    prepare_librispeech(out, **options)
    assert "train-clean-100: already done" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in out.glob("cuts_*")} == whole


@pytest.mark.parametrize("dev, test", [(False, True), (True, True), (True, False)])
def test_mini(tmp_path, dev, test):
    root = tmp_path / "LibriSpeech"
    write_librispeech(root, "train-clean-5", ["10", "20"], 6)
    if test:
        write_librispeech(root, "test-clean", ["30"], 2)
    if dev:
        write_librispeech(root, "dev-clean-2", ["40"], 2)
    prepare_librispeech(tmp_path / "data", corpus=root if dev else tmp_path, vocab_size=32)
    assert speakers(tmp_path / "data", "train") == {"10", "20"}
    assert speakers(tmp_path / "data", "valid") == {"40" if dev else "30"}
    assert speakers(tmp_path / "data", "test") == {"30" if test else "40"}


def test_download_asks_lhotse_for_the_parts_and_says_what_to_do_without_a_network(tmp_path, monkeypatch):
    asked = []

    def download(folder, dataset_parts):
        asked.extend(dataset_parts)
        for i, part in enumerate(dataset_parts):
            write_librispeech(folder / "LibriSpeech", part, [str(i + 10)], 4)
        return folder / "LibriSpeech"

    monkeypatch.setattr(librispeech, "ARCHIVES", {})
    monkeypatch.setattr("lhotse.recipes.download_librispeech", download)
    prepare_librispeech(tmp_path / "data", parts="100h", download_dir=tmp_path / "corpus", vocab_size=20)
    assert asked == ["train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other"]
    assert set(asked) < set(lhotse_librispeech.LIBRISPEECH)
    assert len(ids(tmp_path / "data", "train")) == 4

    def no_network(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("lhotse.recipes.download_librispeech", no_network)
    with pytest.raises(ValueError, match=r"train-clean-5.*no route to host.*--corpus"):
        prepare_librispeech(tmp_path / "other", parts="mini")


def test_a_download_that_is_not_the_published_one_is_not_unpacked(tmp_path, monkeypatch):
    asked = []

    def download(url, filename):
        asked.append(url)
        filename.write_bytes(b"not LibriSpeech")

    def unpack(*arguments, **options):
        raise AssertionError("unpacked")

    monkeypatch.setattr(librispeech, "resumable_download", download)
    monkeypatch.setattr("lhotse.recipes.download_librispeech", unpack)
    with pytest.raises(ValueError, match=r"dev-clean\.tar\.gz: its SHA-256 is .*not the published 76f87d090650"):
        prepare_librispeech(tmp_path / "data", parts="100h", download_dir=tmp_path / "corpus", vocab_size=20)
    assert not list((tmp_path / "corpus").iterdir())  # nor kept
    assert asked and all(url.startswith("https://") for url in asked)
    with pytest.raises(ValueError, match=r"\.tar\.gz: its MD5 is ebcf15d9ce001e6cc504472fa56dea93, not the published"):
        prepare_librispeech(tmp_path / "data", parts="mini", download_dir=tmp_path / "corpus", vocab_size=20)
    assert asked[-1].startswith("https://www.openslr.org/resources/31/")
    for kind in (hashlib.sha256, hashlib.md5):
        archives = dict.fromkeys(librispeech.ARCHIVES, librispeech.Archive(12, kind(b"not LibriSpeech").hexdigest()))
        monkeypatch.setattr(librispeech, "ARCHIVES", archives)
        with pytest.raises(AssertionError, match="unpacked"):
            prepare_librispeech(tmp_path / "data", parts="100h", download_dir=tmp_path / "corpus", vocab_size=20)


def test_every_part_that_is_fetched_has_a_sum():
    fetched = {part for selection in SELECTIONS.values() for part in selection.download}
    assert fetched <= set(librispeech.ARCHIVES)
    assert all(re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", archive.sum) for archive in librispeech.ARCHIVES.values())


def test_ids_that_lead_elsewhere_are_left_out(tmp_path):
    write_librispeech(tmp_path, "train-clean-5", ["10"], 2)
    write_librispeech(tmp_path, "dev-clean-2", ["40"], 2)
    transcript = tmp_path / "train-clean-5" / "10" / "7" / "10-7.trans.txt"
    transcript.write_text(transcript.read_text() + "../../../secret ALPHA\n")
    prepare_librispeech(tmp_path / "data", corpus=tmp_path, vocab_size=20)
    (fault,) = read_report(tmp_path / "data" / "left_out.tsv")
    assert fault.fault == "bad id" and "'../../../secret' is no plain name" in fault.detail
    assert len(load_cuts(tmp_path / "data" / "cuts_train.jsonl.gz").to_eager()) == 2


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="--parts full: must be one of mini, 100h, 960h"):
        prepare_librispeech(tmp_path, parts="full", corpus=tmp_path)
    with pytest.raises(ValueError, match="num_valid at least 1, got 30.0 and 0"):
        prepare_librispeech(tmp_path, corpus=tmp_path, num_valid=0)


def test_a_folder_without_the_training_parts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=rf"--corpus {tmp_path}.*holds train-clean-5; .*leave --corpus out"):
        prepare_librispeech(tmp_path / "data", corpus=tmp_path)
    write_librispeech(tmp_path, "train-clean-100", ["10"], 2)
    with pytest.raises(ValueError, match="holds train-clean-360, train-other-500; "):
        prepare_librispeech(tmp_path / "data", parts="960h", corpus=tmp_path)
    with pytest.raises(ValueError, match="validation needs dev-clean or dev-other or test-clean or test-other"):
        prepare_librispeech(tmp_path / "data", parts="100h", corpus=tmp_path)


def test_a_folder_without_transcripts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}.*LibriSpeech"):
        read_librispeech_part(tmp_path)


def test_ids_that_occur_twice(tmp_path):
    write_librispeech(tmp_path, "part", ["12"], 2)
    (tmp_path / "part/12/7").rename(tmp_path / "part/12/6")
    write_librispeech(tmp_path, "part", ["12"], 2)
    cuts, faults = read_librispeech_part(tmp_path / "part")
    assert [cut.id for cut in cuts] == ["12-7-0000", "12-7-0001"]
    assert {(fault.id, fault.fault) for fault in faults} == {(cut.id, "id occurs twice") for cut in cuts}
    np.testing.assert_array_equal(cuts[0].load_audio().shape, (1, cuts[0].num_samples))
    assert cuts[0].supervisions[0].speaker == "12" and len(cuts[0].supervisions[0].text.split()) == 3
