"""VoxPopuli in its own layout: what is cut, normalised, left out, done again."""

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import soundfile
from conftest import ROOT
from lhotse.recipes.voxpopuli import prepare_voxpopuli as lhotse_prepare
from trees import write_voxpopuli

from sumix_stream.config.reader import load_recipe
from sumix_stream.corpora import voxpopuli as module
from sumix_stream.corpora.faults import read_report
from sumix_stream.corpora.preparation import read_stats
from sumix_stream.corpora.voxpopuli import (
    Limits,
    balanced_texts,
    normalise_text,
    prepare_voxpopuli,
    read_annotations,
)
from sumix_stream.data import TrainLoader, load_cuts, read_valid
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import Tokenizer

PLENARY = "-0900-PLENARY-3-"  # and the language: what ids have in the middle
# Limits that fit the tree: of its segments one is too long, one misaligned.
OPTIONS = {"limits": Limits(0.5, 15.0, 3.0, 30.0), "vocab_size": 30, "jobs": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for language in ("en", "de"):
        write_voxpopuli(folder, language)
    return folder


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    prepare_voxpopuli(out, corpus=corpus, **OPTIONS)
    return out


def cuts_of(out, name):
    return {cut.id.replace(f"{PLENARY}en-", "-"): cut for cut in load_cuts(out / f"cuts_{name}.jsonl.gz")}


def texts(cuts):
    return {id: cut.supervisions[0].text for id, cut in cuts.items()}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Mr. President, it’s 9 o'clock – really?", "mr president it's 9 o'clock really"),
        ("L’HOMME 'entre' les États-Unis", "l'homme entre les états unis"),
        ("50 % of €3,5 bn (2017/18)", "50 of 3 5 bn 2017 18"),
        ("E\u0301TAT  \n ÄÖÜß", "état äöüß"),
        ("snake_case", "snake case"),
        ("...", ""),
    ],
)
def test_normalised(text, expected):
    assert normalise_text(text) == expected == normalise_text(expected)


def test_what_is_kept(prepared):
    assert texts(cuts_of(prepared, "train")) == {
        "20170101-1": "mr president the house is full it is 9 o'clock",
        "20170101-2": "we welcome the report it's good",
        "20170101-3": "it overlaps the one before by a second",
        "20190606-1": "this recording stops early",
    }
    assert texts(cuts_of(prepared, "valid")) == {
        "20180202-1": "members of the parliament",
        "20180202-2": "short but kept in dev",
    }
    assert texts(cuts_of(prepared, "test")) == {"20180202-3": "the vote will take place tomorrow"}
    assert cuts_of(prepared, "train_en").keys() == cuts_of(prepared, "train").keys()
    supervision = cuts_of(prepared, "train")["20170101-1"].supervisions[0]
    assert (supervision.speaker, supervision.language) == ("100", "en")


def test_what_is_left_out_is_named(prepared):
    found = {
        (f.part, f.id.replace(f"{PLENARY}en-", "-")): (f.fault, f.kept) for f in read_report(prepared / "left_out.tsv")
    }
    left_out = {
        "20170101-4": "too short",
        "20170101-5": "too long",
        "20170101-6": "misaligned",  # too slow
        "20170101-7": "misaligned",  # too fast
        "20170101-8": "empty transcript",
        "20170101-9": "non-Latin transcript",
        "20170101-10": "bad times",  # after the end
        "20170101-11": "bad times",
        "20170101-12": "bad times",
        "20190303-1": "missing audio",
        "20190404-1": "unreadable audio",
        "20190505-1": "unreadable audio",
        "20190606-2": "bad times",
    }
    expected = {("train en", id): (fault, False) for id, fault in left_out.items()}
    assert found == expected | {("valid en", "20180202-2"): ("too short", True)}


def test_segments_are_where_the_table_says(prepared, corpus):
    whole, rate = soundfile.read(corpus / f"raw_audios/original/2017/20170101{PLENARY[:-1]}_original.ogg")
    for id, (start, end) in {"20170101-2": (5.0, 8.5), "20170101-3": (7.5, 11.25)}.items():
        cut = cuts_of(prepared, "train")[id]
        assert cut.duration == end - start
        assert abs(cut.load_audio()[0] - whole[round(start * rate) : round(end * rate)]).max() < 1e-4


def test_ids_and_times_are_those_of_lhotse(corpus, tmp_path):
    """Lhotse's recipe on the same table (but for times at which it stops), for the recordings that it finds."""
    table = corpus / "annotations" / "asr" / "asr_en.tsv.gz"
    rows = gzip.decompress(table.read_bytes()).decode().splitlines(keepends=True)
    (tmp_path / table.name).write_bytes(
        gzip.compress("".join(row for row in rows if "|?|" not in row and "|9.0|8.0|" not in row).encode())
    )
    for path in (corpus / "raw_audios").glob("*/201[78]/*.ogg"):  # it wants every part, in the language's folder
        copy = tmp_path / "raw_audios" / "en" / f"{path.stem.rsplit('_', 1)[0]}_en.ogg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    manifests = lhotse_prepare(tmp_path, tmp_path, lang="en")
    ours = {row.segment.id: row for row in read_annotations(table, "en")}
    for part in ("dev", "test"):
        assert len(manifests[part]["supervisions"]) > 0
        for theirs in manifests[part]["supervisions"]:
            row = ours["-en-".join(theirs.id.rsplit("-", 1))]
            assert row.segment.spans == ((theirs.start, theirs.end),)
            assert row.text == normalise_text(theirs.text) and row.speaker == theirs.speaker


def test_voiced_stretches(corpus, tmp_path):
    prepare_voxpopuli(tmp_path, corpus=corpus, segments="vad", **OPTIONS)
    train = cuts_of(tmp_path, "train")
    assert train["20170101-2"].duration == 1.0 + 1.5 and train["20170101-1"].duration == 3.0


def test_the_second_run_does_nothing_and_other_limits_cut_nothing_again(corpus, tmp_path, capsys):
    prepare_voxpopuli(tmp_path, corpus=corpus, shar=tmp_path / "shar", **OPTIONS)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    prepare_voxpopuli(tmp_path, corpus=corpus, shar=tmp_path / "shar", **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert capsys.readouterr().out.count("already done") == 4 + 3  # steps, Shar folders
    prepare_voxpopuli(tmp_path, corpus=corpus, **OPTIONS | {"limits": Limits(0.1, 20, 0, 99)})
    assert len(cuts_of(tmp_path, "train")) == 8
    segments = {path for path in before if path.suffix == ".flac"}
    assert segments and all(path.stat().st_mtime_ns == before[path] for path in segments)


def test_interrupted(corpus, tmp_path, monkeypatch, capsys):
    cut_recording, done = module.cut_recording, []

    def fail_at_the_third(path, *arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(path.name)
        return cut_recording(path, *arguments)

    options = {"corpus": corpus, **OPTIONS, "jobs": 1}
    with monkeypatch.context() as patch:
        patch.setattr(module, "cut_recording", fail_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            prepare_voxpopuli(tmp_path, **options)
    cut_before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.flac")}
    assert len(done) == 2 and cut_before and not (tmp_path / "cuts_train.jsonl.gz").exists()
    prepare_voxpopuli(tmp_path, **options)
    assert all(path.stat().st_mtime_ns == time for path, time in cut_before.items())
    (tmp_path / ".manifests.completed").unlink()
    capsys.readouterr()
    prepare_voxpopuli(tmp_path, **options)
    assert capsys.readouterr().out.startswith("en: already done\n")
    assert len(cuts_of(tmp_path, "train")) == 4


def test_the_door_prepares_two_languages_that_make_batches(corpus, tmp_path):
    """As on the command line, then read by the training loader as the recipe's configuration has it."""
    out = tmp_path / "data"
    command = [ROOT / "egs/voxpopuli/prepare", "--languages", "en,de", "--corpus", corpus, "--out", out]
    command += ["--vocab-size", 32, "--max-seconds", 15, "--num-valid", 3, "--jobs", 2, "--shar", tmp_path / "shar"]
    finished = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert f"train de: 4 left out: bad times (by id in {out}/left_out.tsv)" in finished.stdout
    tokenizer = Tokenizer.load(out / "tokenizer.model")
    assert tokenizer.vocab_size == 32
    mean, std = read_stats(out / "stats.npz")
    assert -17 < mean.min() and mean.max() < 5 and std.max() < 10
    config = load_recipe(
        ROOT / "egs/voxpopuli/conf/small.yaml",
        {"data.num_workers": 0, "data.speed_perturb": [], "data.concatenate.probability": 0.0},
    ).data
    for source in (out / "cuts_train.jsonl.gz", tmp_path / "shar" / "train"):
        languages = Counter(cut.supervisions[0].language for cut in load_cuts(source))
        assert languages == {"en": 4, "de": 4}
        batches = list(TrainLoader(config, source, tokenizer, Timebase(), seed=0).epoch_batches(0))
        assert sum(map(len, batches)) == 8
    assert len(list(read_valid(load_cuts(out / "cuts_valid.jsonl.gz")))) == 3


def test_a_rare_language_is_repeated_for_the_tokenizer(tmp_path):
    def line(language, text):
        return json.dumps({"supervisions": [{"language": language, "text": text}]}) + "\n"

    with gzip.open(tmp_path / "cuts.jsonl.gz", "wt") as file:
        file.writelines([line("en", "the house")] * 1600 + [line("lt", "seimas yra")] * 90)
    found = Counter(balanced_texts(tmp_path / "cuts.jsonl.gz", 0))
    assert found["the house"] == 1600
    assert found["seimas yra"] == pytest.approx(360, abs=30)  # sqrt(14400 / 900) = 4 times
    assert list(balanced_texts(tmp_path / "cuts.jsonl.gz", 0)) == list(balanced_texts(tmp_path / "cuts.jsonl.gz", 0))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"languages": ["en", "xx"]}, "--languages en,xx: must be of en, de"),
        ({"languages": []}, "--languages : must be of"),
        ({"segments": "words"}, "--segments words: must be times or vad"),
        ({"limits": Limits(min_rate=40.0)}, "below its maximum, got .*min_rate=40.0"),
        ({"num_valid": 0}, "num_valid must be at least 1, got 0"),
    ],
)
def test_arguments_are_checked(corpus, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare_voxpopuli(tmp_path, corpus=corpus, **options)


def test_a_wrong_corpus_is_refused_with_the_remedy(corpus, tmp_path, monkeypatch):
    def no_network(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setattr(module, "resumable_download", no_network)
    with pytest.raises(ValueError, match=rf"--corpus {tmp_path}: no raw_audios/original.*leave --corpus out"):
        prepare_voxpopuli(tmp_path / "data", corpus=tmp_path)
    (tmp_path / "raw_audios").symlink_to(corpus / "raw_audios")
    with pytest.raises(ValueError, match=rf"asr_en.tsv.gz is not in {tmp_path}.*no route to host.*put it into one"):
        prepare_voxpopuli(tmp_path / "data", corpus=tmp_path)
    with pytest.raises(ValueError, match=r"original_2009.tar could not be downloaded.*no route to host.*--corpus"):
        prepare_voxpopuli(tmp_path / "data")


@pytest.mark.parametrize("session", ["../../victim", "/tmp/victim", "..", "a/b", "a\\\\b", "", ".hidden", "c:x"])
def test_a_session_that_leads_elsewhere_is_refused_before_anything_is_written(corpus, tmp_path, session):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").write_text("kept")
    for path in (corpus / "raw_audios", corpus / "annotations"):
        (tmp_path / path.name).symlink_to(path)
    text = gzip.decompress((corpus / "annotations" / "asr" / "asr_en.tsv.gz").read_bytes()).decode()
    head, first, *rest = text.splitlines()
    number = head.split("|").index("session_id")
    values = first.split("|")
    values[number] = session
    (tmp_path / "asr_en.tsv.gz").write_bytes(gzip.compress("\n".join([head, "|".join(values), *rest]).encode()))
    with pytest.raises(ValueError, match=r"asr_en\.tsv\.gz, line 2: session_id: .* is no plain name"):
        prepare_voxpopuli(tmp_path / "out" / "data", corpus=tmp_path)
    assert (victim / "kept").read_text() == "kept" and list(victim.iterdir()) == [victim / "kept"]


@pytest.mark.parametrize("kind", ["not gzip", "truncated", "columns", "no rows", "vad"])
def test_a_bad_table_is_refused_by_name(corpus, tmp_path, kind):
    table = tmp_path / "asr_en.tsv.gz"
    data = (corpus / "annotations" / "asr" / table.name).read_bytes()
    text = gzip.decompress(data).decode()
    if kind == "not gzip":
        table.write_text("hello")
    elif kind == "truncated":
        table.write_bytes(data[:-20])
    elif kind == "columns":
        table.write_bytes(gzip.compress(text.replace("normed_text", "text").encode()))
    elif kind == "vad":
        table.write_bytes(gzip.compress(text.replace("|vad|", "|voice|").encode()))
    else:
        table.write_bytes(gzip.compress(text.splitlines()[0].encode()))
    message = {"columns": "no columns normed_text in it", "vad": "no columns vad", "no rows": "no segments"}
    with pytest.raises(ValueError, match=rf"asr_en.tsv.gz: .*{message.get(kind, 'cannot be read')}"):
        read_annotations(table, "en", "vad" if kind == "vad" else "times")
    assert read_annotations(Path(corpus / "annotations" / "asr" / table.name), "en")
