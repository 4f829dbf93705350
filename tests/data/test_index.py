"""Indexes of manifests: made once, by one process, made anew when the manifest changes, damage named by its line."""

import gzip
import json
import logging
import multiprocessing
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from trees import WORDS, write_cuts_and_tokenizer

from sumix_stream.corpora.shar import write_shar
from sumix_stream.data import ManifestError, load_cuts
from sumix_stream.data.batching import index as module
from sumix_stream.data.batching.index import UNKNOWN, CutIndex
from sumix_stream.data.manifests import cut_text
from sumix_stream.tokenizer import train_tokenizer


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_cuts_and_tokenizer(tmp_path, [0.5 + 0.1 * i for i in range(7)])


def place(manifest: Path) -> Path:
    return manifest.with_name(f".{manifest.name}.index")


def indexes(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir())


@pytest.fixture
def no_survey(monkeypatch):
    """From here on, a manifest may not be read through again."""

    def forbidden(*_):
        raise AssertionError("read again")

    return lambda: [
        monkeypatch.setattr(source, "survey", forbidden) for source in (module.TextSource, module.SharSource)
    ]


def manifest_of_kind(tree, kind: str) -> Path:
    _, manifest, _ = tree
    if kind == "shar":
        write_shar(manifest, manifest.parent / "shar" / "train", shard_size=3)
        return manifest.parent / "shar" / "train"
    if kind == "text":
        plain = manifest.with_suffix("")
        plain.write_bytes(gzip.decompress(manifest.read_bytes()).rstrip())  # the last line has no end
        return plain
    return manifest


@pytest.mark.parametrize("kind", ["gzip", "text", "shar"])
def test_any_cut_can_be_read_without_those_before(tree, kind, no_survey):
    cuts, _, tokenizer = tree
    manifest = manifest_of_kind(tree, kind)
    CutIndex(manifest, tokenizer)
    assert len(indexes(place(manifest))) == 1
    no_survey()
    index = CutIndex([manifest, manifest], tokenizer)
    cuts, again = list(cuts), list(load_cuts(manifest))
    assert len(index) == 14
    for number in (13, 0, 6, 7, 3):
        found, cut = index.read(number), cuts[number % 7]
        assert (found.id, found.duration, cut_text(found)) == (cut.id, cut.duration, cut_text(cut))
        np.testing.assert_array_equal(found.load_audio(), again[number % 7].load_audio())
        assert index.columns.duration[number] == cut.duration
        assert index.columns.num_tokens[number] == len(tokenizer.encode(cut_text(cut)))
    speakers = index.columns.speaker[:7]
    assert [speakers[i] == speakers[j] for i, j in ((0, 3), (0, 6), (0, 1), (1, 2))] == [True, True, False, False]


def test_shar_needs_its_tar_files_only(tree):
    cuts, manifest, tokenizer = tree
    index = CutIndex(manifest_of_kind(tree, "shar"), tokenizer)
    expected = [cut.load_audio() for cut in cuts]
    for path in manifest.parent.glob("*.flac"):
        path.unlink()
    for number in (5, 1, 6):
        np.testing.assert_array_equal(index.read(number).load_audio(), expected[number])


def test_an_index_can_be_sent_to_a_worker(tree):
    cuts, manifest, tokenizer = tree
    index = CutIndex([manifest, manifest_of_kind(tree, "shar")], tokenizer)
    copy = pickle.loads(pickle.dumps(index))
    assert [copy.read(number).id for number in (2, 11)] == [list(cuts.ids)[2], list(cuts.ids)[4]]


@pytest.mark.parametrize("kind", ["gzip", "text", "shar"])
def test_a_changed_manifest_is_indexed_anew(tree, kind, caplog):
    cuts, _, tokenizer = tree
    manifest = manifest_of_kind(tree, kind)
    CutIndex(manifest, tokenizer)
    before = indexes(place(manifest))
    if kind == "shar":
        shutil.rmtree(manifest)
        write_shar(tree[1], manifest, shard_size=5)
        ids = list(cuts.ids)
    else:
        lines = gzip.decompress(manifest.read_bytes()) if kind == "gzip" else manifest.read_bytes()
        lines = b"".join(lines.splitlines(keepends=True)[2:])
        manifest.write_bytes(gzip.compress(lines) if kind == "gzip" else lines)
        ids = [json.loads(line)["id"] for line in lines.splitlines() if line]
    with caplog.at_level(logging.WARNING):
        index = CutIndex(manifest, tokenizer)
    assert [index.read(number).id for number in range(len(index))] == ids
    assert caplog.messages == [f"{manifest}: changed since it was indexed, or indexed by another release; indexed anew"]
    assert len(indexes(place(manifest))) == 1 and indexes(place(manifest)) != before  # the old one is gone


def test_a_change_that_keeps_the_size_is_seen(tree):
    cuts, _, tokenizer = tree
    manifest = manifest_of_kind(tree, "text")
    assert CutIndex(manifest, tokenizer).columns.duration[2] == cuts["utt-02"].duration == 0.7
    text = manifest.read_text()
    manifest.write_text(text.replace('"duration": 0.7', '"duration": 0.6'))
    assert len(manifest.read_text()) == len(text)
    assert CutIndex(manifest, tokenizer).columns.duration[2] == 0.6


def test_another_tokenizer_counts_its_tokens_only(tree, tmp_path, no_survey):
    cuts, manifest, tokenizer = tree
    first = CutIndex(manifest, tokenizer)
    other = train_tokenizer(WORDS[:7], tmp_path / "other.model", model_type="word")
    no_survey()
    tokens = CutIndex(manifest, other).columns.num_tokens.tolist()
    known = [set(cut_text(cut).split()) <= set(WORDS[:7]) for cut in cuts]
    assert tokens == [3 if all_known else UNKNOWN for all_known in known] and any(known) and not all(known)
    assert len(list(indexes(place(manifest))[0].glob("tokens-*.npy"))) == 2
    assert CutIndex(manifest, tokenizer).columns.num_tokens.tolist() == first.columns.num_tokens.tolist()


def test_damaged_token_counts_are_counted_again(tree):
    _, manifest, tokenizer = tree
    tokens = CutIndex(manifest, tokenizer).columns.num_tokens
    (path,) = place(manifest).glob("*/tokens-*.npy")
    path.write_bytes(path.read_bytes()[:-5])
    assert CutIndex(manifest, tokenizer).columns.num_tokens.tolist() == tokens.tolist()


@pytest.mark.parametrize(
    "line, said",
    [
        (b'{"id": "utt', "JSONDecodeError"),
        (b'{"id": "a", "type": "MonoCut"}', "missing 3 required positional arguments"),
        (b'{"id": "a", "sources": [], "sampling_rate": 8, "num_samples": 8, "duration": 1}', "a Recording, not a cut"),
        (b"17", "TypeError"),
        (b"", "JSONDecodeError"),
    ],
    ids=["cut short", "no times", "a recording", "a number", "blank"],
)
@pytest.mark.parametrize("kind", ["gzip", "text"])
def test_a_damaged_line_is_named(tree, kind, line, said):
    *_, tokenizer = tree
    manifest = manifest_of_kind(tree, kind)
    with gzip.open(manifest, "ab") if kind == "gzip" else open(manifest, "ab") as file:
        file.write(b"" if kind == "gzip" else b"\n")
        file.write(line + b"\n" + line)
    with pytest.raises(ManifestError, match=rf"{manifest.name}, line 8: damaged \(.*{said}"):
        CutIndex(manifest, tokenizer)
    assert indexes(place(manifest)) == []  # nothing half done is left


def test_a_truncated_manifest_is_named(tmp_path):
    _, manifest, tokenizer = write_cuts_and_tokenizer(tmp_path, [0.1] * 60)
    manifest.write_bytes(manifest.read_bytes()[: manifest.stat().st_size * 3 // 4])
    with pytest.raises(ManifestError, match=rf"{manifest.name}, line [3-5]\d: damaged \(EOFError"):
        CutIndex(manifest, tokenizer)


@pytest.mark.parametrize("kind", ["truncated", "no audio", "other order", "one tar too few"])
def test_damaged_shards_are_named(tree, kind):
    folder = manifest_of_kind(tree, "shar")
    tar = folder / "recording.000001.tar"
    if kind == "truncated":
        tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    elif kind == "no audio":
        tar.write_bytes(b"")
    elif kind == "other order":
        shutil.copy(folder / "recording.000000.tar", tar)
    else:
        tar.unlink()
    with pytest.raises(ManifestError, match="2 of audio" if kind == "one tar too few" else "recording.000001.tar: "):
        CutIndex(folder, tree[2])


def test_what_changes_under_a_run_is_an_error(tree):
    _, _, tokenizer = tree
    manifest = manifest_of_kind(tree, "text")
    index = CutIndex(manifest, tokenizer)
    manifest.write_bytes(manifest.read_bytes()[40:])
    with pytest.raises(ManifestError, match=rf"{manifest.name}: cut 3 cannot be read"):
        index.read(3)


@pytest.mark.parametrize("left", [0, 2, 100, -30])
def test_a_damaged_index_is_named(tree, left):
    _, manifest, tokenizer = tree
    CutIndex(manifest, tokenizer)
    (folder,) = indexes(place(manifest))
    (folder / "cuts.npz").write_bytes((folder / "cuts.npz").read_bytes()[:left])
    with pytest.raises(ManifestError, match=f"{folder}: damaged .*remove this folder"):
        CutIndex(manifest, tokenizer)


def test_a_folder_that_cannot_be_written_sends_the_index_elsewhere(tree, tmp_path, caplog, no_survey):
    _, manifest, tokenizer = tree
    place(manifest).touch()  # a file: for root, too, no index can be made here
    CutIndex(manifest, tokenizer)
    (cached,) = (tmp_path / "cache" / "sumix-stream" / "index").iterdir()
    assert cached.name.startswith(manifest.name) and len(indexes(cached)) == 1
    no_survey()
    assert CutIndex(manifest, tokenizer).read(3).id == "utt-03"
    assert "for this run only" not in caplog.text


def test_nowhere_to_write_is_said(tree, tmp_path, caplog):
    _, manifest, tokenizer = tree
    place(manifest).touch()
    (tmp_path / "cache").touch()
    index = CutIndex(manifest, tokenizer)
    assert "for this run only" in caplog.text
    folder = Path(index._parts[0]._kept.name)
    assert index.read(3).id == "utt-03" and pickle.loads(pickle.dumps(index)).read(4).id == "utt-04"
    del index
    assert not folder.exists()


def test_processes_that_start_at_once_make_one_index(tree, monkeypatch):
    _, manifest, tokenizer = tree
    fork = multiprocessing.get_context("fork")
    start, surveys, found, survey = fork.Barrier(3), fork.Value("i", 0), fork.Queue(), module.TextSource.survey

    def slow_survey(self, folder):
        with surveys.get_lock():
            surveys.value += 1
        time.sleep(0.2)
        return survey(self, folder)

    def read():
        start.wait(60)
        found.put(CutIndex(manifest, tokenizer).read(5).id)

    monkeypatch.setattr(module.TextSource, "survey", slow_survey)
    processes = [fork.Process(target=read) for _ in range(3)]
    for process in processes:
        process.start()
    assert [found.get(timeout=60) for _ in processes] == ["utt-05"] * 3
    for process in processes:
        process.join(60)
    assert surveys.value == 1 and len(indexes(place(manifest))) == 1


def test_what_a_killed_process_left_is_cleared(tree):
    _, manifest, tokenizer = tree
    left = place(manifest) / "0123.part.abc"
    left.mkdir(parents=True)
    (left / "cuts.jsonl").write_text("half")
    assert CutIndex(manifest, tokenizer).read(1).id == "utt-01"
    assert not left.exists() and len(indexes(place(manifest))) == 1


def test_no_locks_only_cost_time(tree, monkeypatch):
    """Two that both make an index: the second finds the first's in its place, and uses it."""
    _, manifest, tokenizer = tree

    class NoLock(module.FileLock):
        def acquire(self, *args, **kwargs):
            raise NotImplementedError

    monkeypatch.setattr(module, "FileLock", NoLock)
    calls = []
    monkeypatch.setattr(module._Indexed, "_find", lambda self: calls.append(1) and None)  # as if it were not there yet
    for _ in range(2):
        assert CutIndex(manifest, tokenizer).read(2).id == "utt-02"
    assert len(calls) == 4 and len(indexes(place(manifest))) == 1


def test_cuts_in_memory_need_no_index(tree):
    cuts, manifest, tokenizer = tree
    index = CutIndex(cuts, tokenizer)
    assert index.read(4).id == "utt-04" and not place(manifest).exists()
    assert index.columns.duration.tolist() == [cut.duration for cut in cuts]
    CutIndex(load_cuts(manifest), tokenizer)  # but what load_cuts gave is read from its files
    assert place(manifest).exists()
