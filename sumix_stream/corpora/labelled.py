"""Recordings with labels, for the task `classification`: of folders that are labels, or of a table with them.

Cuts name the recordings where they are; nothing is copied.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import soundfile
from lhotse.utils import fastcopy
from tqdm.auto import tqdm

from sumix_stream.audio import AudioError
from sumix_stream.audio.listing import audio_files
from sumix_stream.corpora.preparation import make_cut, read_lines, shuffled, write_cuts, write_stats
from sumix_stream.corpora.stages import Stages
from sumix_stream.labels import NONE, ONE, LabelError, Labels

PARTS = ("train", "valid", "test")
TEN_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE, NOISES = "_unknown_", "_silence_", "_background_noise_"
UNKNOWN_SHARE = 10  # of twelve classes: one in ten of the other words, so that each class has about as many


class Labelled(NamedTuple):
    """A recording, or a stretch of one, and what it is."""

    id: str
    path: Path
    labels: Mapping[str, str]  # of each set
    speaker: str | None
    part: str
    start: float = 0.0  # seconds
    duration: float | None = None  # seconds; None: to the end


def check_labels(paths: Iterable[str | Path], labels: Labels) -> None:
    """Raises LabelError naming file, line and cut of the first label that is missing or unknown (of `.jsonl[.gz]`)."""
    for path in map(Path, paths):
        if not path.is_file() or not path.name.endswith((".jsonl", ".jsonl.gz")):
            continue
        for number, line in enumerate(read_lines(path), 1):
            try:
                cut = json.loads(line)
                text = " ".join(str(one.get("text") or "") for one in cut.get("supervisions", ())).strip()
            except (ValueError, AttributeError):
                continue  # whoever reads cuts says what is wrong
            if fault := labels.fault(text):
                raise LabelError(f"{path}:{number}: {cut.get('id')} {fault}; prepare it anew, or mend the labels")


def folders(corpus: Path, task: str = "words", valid: float = 0.1, test: float = 0.2) -> list[Labelled]:
    """Of a folder for each label, such as Speech Commands' (P. Warden, arXiv 1804.03209) or of wake words.

    Parts are those of `validation_list.txt` and `testing_list.txt`, where the corpus has them; else speakers
    (`SPEAKER_nohash_N`, otherwise each recording) are drawn into shares, by their names alone.

    Args:
        task: `words`, each folder a label; or `12`, ten words, `_unknown_` for the others, and `_silence_`.
    Raises:
        ValueError: there are no folders with recordings, or not the words of the task.
    """
    found = {}
    for folder in sorted(corpus.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            with suppress(AudioError):  # a folder without recordings
                found[folder.name] = audio_files(folder)
    noises = found.pop(NOISES, [])
    if not found:
        raise ValueError(f"--corpus {corpus}: no folders with recordings in it; each label is a folder")
    if task == "12" and (missing := [word for word in TEN_WORDS if word not in found]):
        raise ValueError(f"--corpus {corpus}: no folder {missing[0]}, which the task of 12 classes has; give --task 35")
    listed = {
        line: part
        for part, name in (("valid", "validation_list.txt"), ("test", "testing_list.txt"))
        if (corpus / name).is_file()
        for line in (corpus / name).read_text().split()
    }
    rows = []
    for name, files in found.items():
        other = task == "12" and name not in (*TEN_WORDS, UNKNOWN, SILENCE)
        for file in files:
            key, id = f"{name}/{file.name}", f"{name}-{file.stem}"
            if other and _number(key) % UNKNOWN_SHARE:
                continue
            speaker = file.stem.split("_nohash_")[0]
            part = listed.get(key, "train") if listed else part_of(speaker, valid, test)
            rows.append(Labelled(id, file, {ONE: UNKNOWN if other else name}, speaker, part))
    if task == "12":
        rows += _silences(noises, sum(row.labels[ONE] == TEN_WORDS[0] for row in rows))
    return rows


def _silences(noises: Sequence[Path], number: int) -> list[Labelled]:
    """About so many seconds of background noise; each recording's last fifth is for validation and test."""
    rows, each = [], -(-number // max(1, len(noises)))
    for path in noises:
        seconds = soundfile.info(path).duration
        for n in range(each):
            start = round((seconds - 1.0) * n / max(1, each - 1), 2) if each > 1 else 0.0
            share = start / seconds
            part = "train" if share + 1 / seconds <= 0.8 else "valid" if share + 1 / seconds <= 0.9 else "test"
            rows.append(Labelled(f"silence-{path.stem}-{n}", path, {ONE: SILENCE}, None, part, start, 1.0))
    return rows


def table(path: Path, audio: Path, columns: Sequence[str], valid: float = 0.1, test: float = 0.2) -> list[Labelled]:
    """Of a table (`.tsv`, `.csv`, or `.jsonl` with an object a line) with a column `path` and columns of labels.

    Where it has them, `part` (train, valid, test) and `speaker` are used; an empty label is `none`.

    Args:
        audio: folder that paths are relative to.
        columns: sets of labels.
    Raises:
        LabelError: a column or a path is missing; names the file and the line.
    """
    rows = []
    for number, row in _lines(path):
        for name in ("path", *columns):
            if name not in row:
                raise LabelError(f"{path}:{number}: no column {name!r}; it has {', '.join(row)}")
        if not row["path"]:
            raise LabelError(f"{path}:{number}: the path is empty")
        speaker = row.get("speaker") or None
        part = row.get("part") or part_of(speaker or row["path"], valid, test)
        if part not in PARTS:
            raise LabelError(f"{path}:{number}: part must be one of {', '.join(PARTS)}, got {part!r}")
        labels = {name: " ".join(str(row[name] or NONE).split()) for name in columns}
        rows.append(Labelled(Path(row["path"]).stem, audio / row["path"], labels, speaker, part))
    if not rows:
        raise LabelError(f"{path}: no rows in it")
    return rows


def _lines(path: Path) -> Iterable[tuple[int, dict]]:
    if path.suffix == ".jsonl":
        for number, line in enumerate(read_lines(path), 1):
            try:
                yield number, dict(json.loads(line))
            except (ValueError, TypeError):
                raise LabelError(f"{path}:{number}: no JSON object") from None
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        for row in reader:
            yield reader.line_num, row


def part_of(name: str, valid: float, test: float) -> str:
    """Of a speaker, by the name alone: additions to a corpus move nobody."""
    share = _number(name) / 2**32
    return "test" if share < test else "valid" if share < test + valid else "train"


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def prepare_labelled(rows: Sequence[Labelled], out_dir: str | Path, *, seed: int = 0) -> None:
    """Write `cuts_train`, `cuts_valid` and `cuts_test.jsonl.gz`, `labels.yaml` and `stats.npz` to `out_dir`.

    Raises ValueError for a part without recordings; LabelError for a label of validation or test that training lacks.
    """
    stages = Stages(Path(out_dir).resolve())
    parts = {part: [row for row in rows if row.part == part] for part in PARTS}
    for part, members in parts.items():
        if not members:
            raise ValueError(f"no recordings for {part} among {len(rows)}: give larger shares, or more speakers")
    labels = Labels.of(row.labels for row in parts["train"])
    for row in rows:
        if fault := labels.fault(labels.text(row.labels)):
            raise LabelError(f"{row.path}: {row.id}, of {row.part}, {fault}: no recording of training has it")
    told = hashlib.sha256(repr(sorted(rows)).encode()).hexdigest()

    def write(part: str, members: Sequence[Labelled]) -> None:
        cuts = [_cut(row, labels) for row in tqdm(members, desc=part, unit="cut", disable=None)]
        write_cuts(shuffled(cuts, seed) if part == "train" else cuts, stages.out_dir / f"cuts_{part}.jsonl.gz")

    for part, members in parts.items():
        stages.run(part, {"rows": told, "seed": seed}, partial(write, part, members), [f"cuts_{part}.jsonl.gz"])
    write_labels = partial((stages.out_dir / "labels.yaml").write_bytes, labels.to_bytes())
    stages.run("labels", {"rows": told}, write_labels, ["labels.yaml"])
    stages.run("stats", {}, lambda: write_stats(stages.out_dir), ["stats.npz"])
    stages.write_checksums()
    for name, members in labels.sets.items():
        counts = Counter(row.labels[name] for row in parts["train"])
        print(f"{name}: {len(members)} labels, of which training has {min(counts.values())} to {max(counts.values())}")


def _cut(row: Labelled, labels: Labels):
    info = soundfile.info(row.path)
    text = labels.text(row.labels)
    cut = make_cut(
        row.id, row.path, info.frames, text, row.speaker, None, sample_rate=info.samplerate, num_channels=info.channels
    )
    if row.duration is None:
        return cut
    duration = min(row.duration, cut.duration - row.start)
    supervisions = [fastcopy(cut.supervisions[0], duration=duration)]
    return fastcopy(cut, start=row.start, duration=duration, supervisions=supervisions)


def intents(
    path: Path, audio: Path, columns: Sequence[str] | None = None, valid: float = 0.1, test: float = 0.2
) -> list[Labelled]:
    """Of `{id: {"intent": ..., "slots": {...}}}`, recordings `AUDIO/ID.*`; parts by the id, as no speaker is named.

    Args:
        columns: `intent` and slots; None: those that have two labels at least.
    Raises LabelError naming the id where an entry is none, or has no recording; or a slot that nobody fills.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        given = {id: {"intent": one["intent"], **one.get("slots", {})} for id, one in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabelError(f'{path}: not {{id: {{"intent": ..., "slots": {{...}}}}}} ({error})') from None
    recordings = {file.stem: file for file in audio_files(audio)}
    clean = {id: {name: " ".join(str(label).split()) for name, label in one.items()} for id, one in given.items()}
    found = {
        name: {one.get(name, NONE) for one in clean.values()}
        for name in dict.fromkeys(n for o in clean.values() for n in o)
    }
    for name in columns or ():
        if name not in found:
            raise LabelError(f"--labels {name}: nothing in {path} has it; it has {', '.join(found)}")
    chosen = columns or [name for name, members in found.items() if len(members) > 1]
    rows = []
    for id, one in clean.items():
        if id not in recordings:
            raise LabelError(f"{path}: {id} has no recording in {audio}")
        labels = {name: one.get(name, NONE) for name in chosen}
        rows.append(Labelled(id, recordings[id], labels, None, part_of(id, valid, test)))
    return rows
