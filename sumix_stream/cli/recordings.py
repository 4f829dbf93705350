"""Recordings that a command is given, and where what is recognised of them goes."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sumix_stream.audio import RawFormat, open_audio
from sumix_stream.audio.channels import Channel
from sumix_stream.audio.files import STANDARD_INPUT, AudioFile
from sumix_stream.audio.listing import audio_files
from sumix_stream.streaming.captions import CaptionStyle
from sumix_stream.streaming.transcripts import FORMATS, TSV_HEAD, Transcript

BAD_INPUT = 2  # exit code


class Job(NamedTuple):
    """A recording, and the file for its transcript; None: standard output."""

    path: Path
    target: Path | None


@dataclass(frozen=True)
class Wanted:
    """What is to be heard of which recordings, and written how; format None: lines for people."""

    jobs: list[Job]
    format: str | None
    channel: Channel
    split: bool
    raw: RawFormat | None
    style: CaptionStyle


def plan(
    paths: Sequence[Path], out: Path | None, form: str | None, overwrite: bool = False, headerless: bool = False
) -> list[Job]:
    """The recordings of files and folders. Names of transcripts: `OUT/NAME.FORMAT`, for recordings in a folder with the
    path below it; where two would have one name, both keep the ending of theirs: `OUT/NAME.wav.FORMAT`.

    Raises ValueError for an empty folder, for two recordings with one name even so, and for a file that is there
    already unless `overwrite`.
    """
    found: list[tuple[Path, Path]] = []  # recording, name
    for path in paths:
        if path.is_dir():
            found += [(file, file.relative_to(path)) for file in audio_files(path, headerless)]
        else:
            found.append((path, Path("stdin" if _is_standard_input(path) else path.name)))
    if out is None:
        return [Job(path, None) for path, _ in found]
    short = [name.with_suffix(f".{form}") for _, name in found]
    taken = _counts(short)
    targets = [
        out / (name.with_name(f"{name.name}.{form}") if taken[_key(brief)] > 1 else brief)
        for (_, name), brief in zip(found, short, strict=True)
    ]
    first: dict[str, Path] = {}
    for (path, _), target in zip(found, targets, strict=True):
        if (other := first.setdefault(_key(target), path)) is not path:
            raise ValueError(
                f"{other} and {path} would both be written to {target}: give the folder that holds both, or run twice "
                "with an --out each"
            )
        there = [target, *target.parent.glob(f"{_glob(target.stem)}.channel*{target.suffix}")]
        if not overwrite and (old := next((file for file in there if file.exists()), None)):
            raise ValueError(f"{old} is there already: --overwrite replaces it, or name another --out")
    return [Job(path, target) for (path, _), target in zip(found, targets, strict=True)]


def _glob(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def _key(path: Path) -> str:
    return str(path).casefold()  # some file systems do not tell capitals apart


def _counts(paths: Sequence[Path]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for path in paths:
        counts[_key(path)] = counts.get(_key(path), 0) + 1
    return counts


def _is_standard_input(path: Path) -> bool:
    return str(path) in (STANDARD_INPUT, "/dev/stdin", "/dev/fd/0")


def shown_name(path: Path) -> str:
    """Of a recording, in what is printed."""
    return "standard input" if str(path) == STANDARD_INPUT else str(path)


def each_recording(wanted: Wanted, one: Callable[[AudioFile, Channel, int | None], Transcript | bool]) -> int:
    """Call `one` with every recording, the channel to be heard, and its number where channels are split; write the
    transcripts it returns. An error in one recording is named and stops no other.

    Returns the exit code: 0, 1 if any call said False, 2 if a recording failed.
    """
    code, failed = 0, 0
    writer, command = _Writer(wanted), Path(sys.argv[0]).name
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text in any encoding
    for job in wanted.jobs:
        try:
            for done, channel in _transcripts(job.path, wanted, one):
                if isinstance(done, Transcript):
                    writer.write(job, done, channel)
                elif not done:
                    code = max(code, 1)
        except BrokenPipeError:  # nobody reads what is printed
            raise
        except Exception as error:
            name = shown_name(job.path)
            known = isinstance(error, ValueError | OSError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            named = reason if reason.startswith(f"{name}: ") else f"{name}: {reason}"
            print(f"{command}: {named}", file=sys.stderr)
            failed += 1
    if failed and len(wanted.jobs) > 1:
        print(f"{command}: {failed} of {len(wanted.jobs)} files could not be recognised", file=sys.stderr)
    return BAD_INPUT if failed else code


def _transcripts(path: Path, wanted: Wanted, one: Callable) -> Iterator[tuple[Transcript | bool, int | None]]:
    if not wanted.split:
        with open_audio(path, raw=wanted.raw) as file:
            yield one(file, wanted.channel, None), None
        return
    with _again_and_again(path) as source:
        channel, count = 0, 1
        while channel < count:
            with open_audio(source, raw=wanted.raw, name=shown_name(path)) as file:
                count = file.num_channels
                yield one(file, channel, channel), channel
            channel += 1


@contextmanager
def _again_and_again(path: Path) -> Iterator[Path]:
    """A path that can be opened several times: of what comes through a pipe a copy."""
    is_input = _is_standard_input(path)
    mode = os.fstat(sys.stdin.fileno()).st_mode if is_input else path.stat().st_mode if path.exists() else stat.S_IFREG
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        yield Path(f"/dev/fd/{sys.stdin.fileno()}") if is_input else path
        return
    with (
        tempfile.NamedTemporaryFile() as copy,
        open(sys.stdin.fileno() if is_input else path, "rb", closefd=not is_input) as file,
    ):
        shutil.copyfileobj(file, copy)
        copy.flush()
        yield Path(copy.name)


class _Writer:
    """Transcripts to their files, or to standard output."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted, self._begun = wanted, False
        self._written: set[str] = set()

    def write(self, job: Job, transcript: Transcript, channel: int | None) -> None:
        text = FORMATS[self._wanted.format](transcript)
        if job.target is None:
            self._print(job, text, channel)
            return
        target = job.target
        if channel is not None:
            target = target.with_name(f"{target.stem}.channel{channel}{target.suffix}")
        if _key(target) in self._written:
            raise ValueError(f"{target} was written for another recording: rename one of them")
        self._written.add(_key(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f"{target.name}.part")
        head = TSV_HEAD if self._wanted.format == "tsv" else ""
        aside.write_text(head + text, encoding="utf-8", errors="backslashreplace")
        aside.replace(target)
        print(target, flush=True)

    def _print(self, job: Job, text: str, channel: int | None) -> None:
        form = self._wanted.format
        if form == "tsv" and not self._begun:
            print(TSV_HEAD, end="")
        if form == "txt" and (len(self._wanted.jobs) > 1 or channel is not None):
            of = "" if channel is None else f" channel {channel}"
            text = "".join(f"{shown_name(job.path)}{of}: {line}\n" for line in text.splitlines() or [""])
        self._begun = True
        print(text, end="", flush=True)
