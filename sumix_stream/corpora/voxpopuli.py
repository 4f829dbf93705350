"""VoxPopuli (Wang and others, ACL 2021, CC0): recordings of the European Parliament, transcribed in 16 languages.

Layout, annotations and addresses are those of Lhotse's recipe. Lhotse makes manifests of segments inside the hours-long
recordings; here they are cut to files once.
"""

import ast
import csv
import gzip
import json
import tarfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lhotse import MonoCut
from lhotse.recipes.voxpopuli import ASR_LANGUAGES, DOWNLOAD_BASE_URL, YEARS
from lhotse.utils import resumable_download, safe_extract

from sumix_stream.corpora.faults import (
    Fault,
    FaultyUtterance,
    check_duration,
    check_speaking_rate,
    check_text,
    log_faults,
    print_summary,
    read_report,
    write_report,
)
from sumix_stream.corpora.names import require_plain_name
from sumix_stream.corpora.preparation import (
    SAMPLE_RATE,
    cut_texts,
    finish,
    join_manifests,
    make_cut,
    read_lines,
    write_cuts,
)
from sumix_stream.corpora.segments import CutRecording, Segment, cut_recording
from sumix_stream.corpora.shar import write_shar
from sumix_stream.corpora.stages import Stages, parallel, sha256
from sumix_stream.corpora.text import remove_punctuation
from sumix_stream.tokenizer import train_tokenizer

PARTS = {"train": "train", "dev": "valid", "test": "test"}  # the corpus's word -> ours
COLUMNS = {"session_id", "start_time", "end_time", "speaker_id", "split", "normed_text"}


class Limits(NamedTuple):
    """What training segments must keep to; dev and test segments beyond them are kept, and named in the report."""

    min_seconds: float = 0.5
    max_seconds: float = 100.0
    min_rate: float = 3.0  # characters a second
    max_rate: float = 30.0


DEFAULT_LIMITS = Limits()


class Annotation(NamedTuple):
    """A row of the annotations: a transcribed segment of a session."""

    part: str
    session: str
    segment: Segment
    text: str  # normalised
    speaker: str


def normalise_text(text: str) -> str:
    """A transcript in lower case without punctuation and symbols; digits stay as they are.

    Apostrophes and other signs between letters: the apostrophe stays (l'homme), everything else becomes a space.
    """
    return remove_punctuation(unicodedata.normalize("NFC", text).lower())


def read_annotations(path: Path, language: str, segments: str = "times") -> list[Annotation]:
    """The rows of `asr_<language>.tsv.gz` (columns divided by `|`) for train, dev and test.

    Ids are session, language (sessions are of many) and, as Lhotse's, the row within the session. `segments`: `times`
    is from start to end; `vad` is the voiced stretches, joined, as the corpus's own script cuts them. Times that are no
    numbers become NaN.

    Raises:
        ValueError: no such table, columns are missing, or a session's id is no plain name.
    """
    annotations: list[Annotation] = []
    counts: dict[str, int] = defaultdict(int)
    num_unused = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="replace", newline="") as file:
            rows = csv.DictReader(file, delimiter="|")
            needed = COLUMNS | ({"vad"} if segments == "vad" else set())
            found = rows.fieldnames or ()
            if missing := needed - set(found):
                raise ValueError(
                    f"{path}: no columns {', '.join(sorted(missing))} in it (found: {', '.join(found)}); it must be "
                    f"asr_{language}.tsv.gz of the corpus, divided by |"
                )
            for row in rows:
                if row["split"] not in PARTS:
                    num_unused += 1
                    continue
                session = require_plain_name(row["session_id"] or "", f"{path}, line {rows.line_num}: session_id")
                counts[session] += 1
                segment = Segment(f"{session}-{language}-{counts[session]}", _spans(row, segments))
                text = normalise_text(row["normed_text"] or "")
                annotations.append(Annotation(PARTS[row["split"]], session, segment, text, row["speaker_id"] or ""))
    except (OSError, EOFError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); copy or download it again") from error
    if num_unused:
        print(f"{path}: {num_unused} rows belong to none of train, dev and test")
    if not annotations:
        raise ValueError(f"{path}: no segments of train, dev or test in it; download it again")
    return annotations


def _spans(row: dict[str, str], segments: str) -> tuple[tuple[float, float], ...]:
    try:
        if segments == "vad":
            return tuple((float(span[0]), float(span[1])) for span in ast.literal_eval(row["vad"]))
        return ((float(row["start_time"]), float(row["end_time"])),)
    except (ValueError, TypeError, SyntaxError, IndexError):
        return ((float("nan"), float("nan")),)


def find_recordings(corpus: Path, language: str) -> dict[str, Path]:
    """Session -> its recording: `raw_audios/original/<year>/<session>_original.ogg`, else that of the language.

    In a session's original channel everyone speaks their own language; segments of a language lie in both.
    """
    found: dict[str, Path] = {}
    for channel in ("original", language):
        for path in sorted((corpus / "raw_audios" / channel).rglob("*.ogg")):
            found.setdefault(path.stem.removesuffix(f"_{channel}"), path)
    if not found:
        raise ValueError(
            f"--corpus {corpus}: no raw_audios/original/<year>/*.ogg and no raw_audios/{language}/<year>/*.ogg in it; "
            "name the folder that holds raw_audios, or leave --corpus out to download it"
        )
    return found


def find_annotations(corpus: Path, language: str, download_dir: Path) -> Path:
    """`asr_<language>.tsv.gz` in the corpus, where its own script or a copy of its site has it; else downloaded."""
    name = f"asr_{language}.tsv.gz"
    kept = download_dir / name
    for path in (corpus / name, corpus / "annotations" / "asr" / name, corpus / "transcribed_data" / language / name):
        if path.is_file():
            return path
    if not kept.is_file():
        from torch.hub import download_url_to_file

        url = f"{DOWNLOAD_BASE_URL}/annotations/asr/{name}"
        download_dir.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(url, str(kept), progress=False)
        except OSError as error:
            raise ValueError(
                f"{name} is not in {corpus}, {corpus}/annotations/asr or {corpus}/transcribed_data/{language}, and "
                f"could not be downloaded from {url} ({error}); put it into one of them"
            ) from error
    return kept


def prepare_voxpopuli(
    out_dir: str | Path,
    *,
    languages: Sequence[str] = ("en",),
    corpus: str | Path | None = None,
    segments: str = "times",
    limits: Limits = DEFAULT_LIMITS,
    tokenizer: str = "bpe",
    vocab_size: int = 1000,
    num_valid: int = 600,
    seed: int = 0,
    jobs: int | None = None,
    shar: str | Path | None = None,
) -> None:
    """Prepare the recipe `egs/voxpopuli` under `out_dir`: segments, manifests, tokenizer, feature statistics.

    Segments go to `segments/<language>/<session>/<id>.flac`. Every language gets `cuts_{train,valid,test}_<language>`;
    `cuts_train` is all languages shuffled, `cuts_valid` a sample of `num_valid`, `cuts_test` everything.
    `left_out.tsv` names what cannot be used.

    Args:
        languages: of the 16 transcribed ones.
        corpus: folder that holds `raw_audios`; None downloads all 16 languages' recordings into `out_dir/corpus`.
        segments: `times` or `vad`; see `read_annotations`.
        tokenizer: `bpe` or `unigram`, trained on all languages; see `balanced_texts`.
        jobs: threads.
        shar: folder for a copy of the manifests with their audio in Lhotse's Shar format.
    """
    languages = list(dict.fromkeys(languages))
    unknown = [language for language in languages if language not in ASR_LANGUAGES]
    if unknown or not languages:
        raise ValueError(f"--languages {','.join(languages)}: must be of {', '.join(ASR_LANGUAGES)}")
    if segments not in ("times", "vad"):
        raise ValueError(f"--segments {segments}: must be times or vad")
    if not 0 <= limits.min_seconds < limits.max_seconds or not 0 <= limits.min_rate < limits.max_rate:
        raise ValueError(f"each limit's minimum must be at least 0 and below its maximum, got {limits}")
    if num_valid < 1:
        raise ValueError(f"num_valid must be at least 1, got {num_valid}")
    out_dir = Path(out_dir).resolve()
    corpus = Path(corpus).resolve() if corpus is not None else _download(out_dir / "corpus")
    sources = {}
    for language in languages:
        recordings = find_recordings(corpus, language)
        sources[language] = (find_annotations(corpus, language, out_dir / "annotations"), recordings)
    stages = Stages(out_dir)

    def prepare_language(language: str) -> None:
        annotations, recordings = sources[language]
        rows = read_annotations(annotations, language, segments)
        done = cut_sessions(rows, recordings, out_dir / "segments" / language, language, jobs)
        cuts, faults = make_cuts(rows, done, limits, language)
        write_report(out_dir / f"left_out_{language}.tsv", faults)
        for part, members in cuts.items():
            write_cuts(members, out_dir / f"cuts_{part}_{language}.jsonl.gz")

    def join() -> None:
        for part in PARTS.values():
            files = [out_dir / f"cuts_{part}_{language}.jsonl.gz" for language in languages]
            options = {"train": {"seed": seed}, "valid": {"limit": num_valid}, "test": {}}[part]
            join_manifests(files, out_dir / f"cuts_{part}.jsonl.gz", **options)
        faults = [fault for language in languages for fault in read_report(out_dir / f"left_out_{language}.tsv")]
        write_report(out_dir / "left_out.tsv", faults)

    for language, (annotations, recordings) in sources.items():
        made = [*(f"cuts_{part}_{language}.jsonl.gz" for part in PARTS.values()), f"left_out_{language}.tsv"]
        settings = {
            "annotations": sha256(annotations),
            "recordings": {session: [path, path.stat().st_size] for session, path in recordings.items()},
            "segments": segments,
            "limits": limits._asdict(),
        }
        stages.run(language, settings, partial(prepare_language, language), made, independent=True)
    joined = [f"cuts_{part}.jsonl.gz" for part in PARTS.values()]
    stages.run("manifests", {"num_valid": num_valid, "seed": seed}, join, [*joined, "left_out.tsv"])
    train, model = out_dir / joined[0], out_dir / "tokenizer.model"
    finish(
        stages,
        {"type": tokenizer, "size": vocab_size, "seed": seed},
        lambda: train_tokenizer(balanced_texts(train, seed), model, vocab_size, tokenizer),
    )
    if shar is not None:
        for name in joined:
            write_shar(out_dir / name, Path(shar) / name.split(".")[0].removeprefix("cuts_"), jobs=jobs)
    print_summary(read_report(out_dir / "left_out.tsv"), out_dir / "left_out.tsv")


def cut_sessions(
    rows: Sequence[Annotation], recordings: dict[str, Path], folder: Path, language: str, jobs: int | None
) -> CutRecording:
    """Cut every session's segments; sessions that were cut before are left as they are. Paths are absolute."""
    sessions: dict[str, list[Segment]] = defaultdict(list)
    for row in rows:
        sessions[row.session].append(row.segment)

    def cut(session: str) -> tuple[Path, CutRecording]:
        absent = Path("raw_audios", "original", session[:4], f"{session}_original.ogg")
        path = recordings.get(session, absent)
        return folder / session, cut_recording(path, sessions[session], folder / session, folder / f"{session}.json")

    done = CutRecording({}, {})
    for where, (pieces, faults) in parallel(cut, sorted(sessions), jobs, f"{language}: cutting", "session"):
        done.pieces.update({id: piece._replace(file=str(where / piece.file)) for id, piece in pieces.items()})
        done.faults.update(faults)
    return done


def make_cuts(
    rows: Sequence[Annotation], done: CutRecording, limits: Limits, language: str
) -> tuple[dict[str, list[MonoCut]], list[Fault]]:
    """The cuts of each part, sorted by id, and what is left out of them, or odd in dev and test."""
    cuts: dict[str, list[MonoCut]] = {part: [] for part in PARTS.values()}
    faults = []
    for row in rows:
        id, part, optional = row.segment.id, f"{row.part} {language}", row.part == "train"
        if id in done.faults:
            faults.append(Fault(part, id, *done.faults[id]))
            continue
        piece = done.pieces[id]
        seconds = piece.num_samples / SAMPLE_RATE
        kept = False  # although a check fails
        try:
            check_text(row.text)
            kept = not optional
            check_duration(seconds, limits.min_seconds, limits.max_seconds)
            check_speaking_rate(row.text, seconds, limits.min_rate, limits.max_rate)
        except FaultyUtterance as error:
            faults.append(Fault(part, id, error.fault, error.detail, kept))
            if not kept:
                continue
        cuts[row.part].append(make_cut(id, Path(piece.file), piece.num_samples, row.text, row.speaker, language))
    log_faults(faults)
    return {part: sorted(members, key=lambda cut: cut.id) for part, members in cuts.items()}, faults


def balanced_texts(path: Path, seed: int) -> Iterator[str]:
    """The transcripts of a manifest, those of rarer languages several times, for one tokenizer of all languages.

    A language's share becomes proportional to the square root of its text: with all of VoxPopuli, Lithuanian
    grows from one word in 1,500 to one in 130. One language is given as it is.
    """
    sizes: dict[str, int] = defaultdict(int)
    for language, text in _texts(path):
        sizes[language] += len(text)
    if len(sizes) == 1:
        yield from cut_texts(path)
        return
    largest, rng = max(sizes.values()), np.random.default_rng(seed)
    for language, text in _texts(path):
        for _ in range(int(np.sqrt(largest / sizes[language]) + rng.random())):
            yield text


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    for line in read_lines(path):
        for supervision in json.loads(line)["supervisions"]:
            yield supervision["language"], supervision["text"]


def _download(folder: Path) -> Path:
    """The recordings of all transcribed languages, a year at a time (Lhotse's download would begin anew each time).

    Their publisher gives no sums, nor does Lhotse: what is fetched over https is checked when it is decoded.
    """
    archives = folder / "raw_audios"
    archives.mkdir(parents=True, exist_ok=True)
    for year in YEARS:
        name = f"original_{year}.tar"
        marker, archive = archives / f".{name}.completed", archives / name
        if marker.exists():
            continue
        try:
            resumable_download(f"{DOWNLOAD_BASE_URL}/audios/{name}", archive)
        except OSError as error:
            raise ValueError(
                f"VoxPopuli's {name} could not be downloaded to {archives} ({error}); try again (it goes on where it "
                "stopped), or give a copy with --corpus"
            ) from error
        with tarfile.open(archive) as tar:
            safe_extract(tar, archives)
        marker.touch()
        archive.unlink()
    return folder
