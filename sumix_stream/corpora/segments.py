"""Segments of long recordings as FLAC files; each recording is decoded once, from its start to its end.

Seeking to each segment costs a search in the file each time, and does not show where a recording has a hole. What both
ways cost is in egs/voxpopuli/RESULTS.md.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from sumix_stream.audio import AudioError, check_samples, resample
from sumix_stream.corpora.names import require_plain_name
from sumix_stream.corpora.preparation import empty_folder, write_flac
from sumix_stream.corpora.stages import replace_text, sha256

BLOCK_SECONDS = 30.0  # decoded at once: the memory that a recording of any length takes
READ_SAMPLES = 1024
MAX_OVERRUN = 0.1  # seconds that a segment may end after its recording; it is cut there


class Segment(NamedTuple):
    """What to cut: `spans` are (start, end) in seconds, in order; what lies between them is left out."""

    id: str
    spans: tuple[tuple[float, float], ...]
    channel: int | None = None  # from 0; None: the average of all


class Piece(NamedTuple):
    """A segment that was cut: its file (relative to the folder), samples at 16 kHz, bytes and checksum."""

    file: str
    num_samples: int
    num_bytes: int
    sha256: str


class CutRecording(NamedTuple):
    """What became of a recording's segments, by id: a piece, or why there is none (fault, detail)."""

    pieces: dict[str, Piece]
    faults: dict[str, tuple[str, str]]


def cut_recording(path: Path, segments: Sequence[Segment], folder: Path, record: Path) -> CutRecording:
    """Write `folder/<id>.flac` (16 kHz mono) of each segment, and `record`, which tells what was done.

    Nothing is done where `record` tells that these segments of this file were cut, and the pieces are there. Raises
    ValueError for an id that is no plain name.
    """
    for segment in segments:
        require_plain_name(segment.id, str(path))
    key = _key(path, segments)
    if (done := _read_record(record, key, folder)) is not None:
        return done
    record.unlink(missing_ok=True)
    done = _cut(path, segments, empty_folder(folder)) if path.is_file() else _fail(segments, "missing audio", str(path))
    record.parent.mkdir(parents=True, exist_ok=True)
    replace_text(record, json.dumps({"key": key, **done._asdict()}))
    return done


def _key(path: Path, segments: Sequence[Segment]) -> str:
    size = path.stat().st_size if path.is_file() else None
    wanted = [segment if segment.channel is not None else segment[:2] for segment in segments]
    return hashlib.sha256(json.dumps([path.name, size, wanted]).encode()).hexdigest()


def _read_record(record: Path, key: str, folder: Path) -> CutRecording | None:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if found.pop("key", None) != key:
        return None
    pieces = {id: Piece(*piece) for id, piece in found["pieces"].items()}
    for piece in pieces.values():
        path = folder / piece.file
        if not path.is_file() or path.stat().st_size != piece.num_bytes:
            return None
    return CutRecording(pieces, {id: (fault, detail) for id, (fault, detail) in found["faults"].items()})


def _fail(segments: Sequence[Segment], fault: str, detail: str) -> CutRecording:
    return CutRecording({}, {segment.id: (fault, detail) for segment in segments})


def _cut(path: Path, segments: Sequence[Segment], folder: Path) -> CutRecording:
    try:
        with soundfile.SoundFile(path) as file:
            seconds = file.frames / file.samplerate
            impossible = {segment.id: _impossible(segment, seconds, file.channels) for segment in segments}
            wanted = [segment for segment in segments if impossible[segment.id] is None]
            done, num_lost = _write_pieces(file, wanted, folder)
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        return _fail(segments, "unreadable audio", f"{path}: {reason}")
    if num_lost > 0:
        # Nobody knows where the hole is, and what lies after it is displaced.
        detail = f"{path}: {num_lost / file.samplerate:.2f} of its {seconds:.2f} s do not decode"
        return _fail(segments, "unreadable audio", detail)
    bad_times = {id: ("bad times", detail) for id, detail in impossible.items() if detail is not None}
    return CutRecording(done.pieces, done.faults | bad_times)


def _impossible(segment: Segment, seconds: float, num_channels: int) -> str | None:
    """Why a segment cannot lie in a recording of so many seconds and channels."""
    if segment.channel is not None and segment.channel >= num_channels:
        return f"channel {segment.channel} of a recording that has {num_channels} (the first is 0)"
    edges = [edge for span in segment.spans for edge in span]
    ordered = edges == sorted(edges) and all(a < b for a, b in segment.spans)
    if not edges or not np.isfinite(edges).all() or edges[0] < 0 or not ordered:
        return f"{edges} s are no times in order"
    if edges[-1] > seconds + MAX_OVERRUN:
        return f"ends at {edges[-1]:.2f} s, after the end of the audio ({seconds:.2f} s)"
    return None


def _read(file: soundfile.SoundFile, block: np.ndarray) -> int:
    """Fill `block` (samples, channels) from the file; returns how many samples there were.

    In small steps: at the end of an Ogg Vorbis file with a hole, a larger read of libsndfile 1.2.2 returns old memory
    in place of what is missing, as if all samples were there.
    """
    num_read = 0
    while num_read < len(block):
        wanted = block[num_read : num_read + READ_SAMPLES]
        num_got = len(file.read(out=wanted))
        num_read += num_got
        if num_got < len(wanted):
            break
    return num_read


def _write_pieces(file: soundfile.SoundFile, segments: Sequence[Segment], folder: Path) -> tuple[CutRecording, int]:
    """Decode a file and write each segment as soon as it is there; also returns how many samples did not decode.

    To the end, although the last segment may end before: only then is it known whether samples are missing.
    """
    rate, start = file.samplerate, 0
    done = CutRecording({}, {})
    waiting = [(segment, []) for segment in segments]
    block = np.empty((round(BLOCK_SECONDS * rate), file.channels), np.float32)
    while num_read := _read(file, block):
        samples, end = {None: block[:num_read].mean(axis=1)}, start + num_read
        for channel in range(file.channels) if any(s.channel is not None for s, _ in waiting) else ():
            samples[channel] = block[:num_read, channel].copy()
        later = []
        for segment, parts in waiting:
            for a, b in segment.spans:
                low, high = max(round(a * rate), start), min(round(b * rate), end)
                if low < high:
                    parts.append(samples[segment.channel][low - start : high - start])
            if min(round(segment.spans[-1][1] * rate), file.frames) > end:
                later.append((segment, parts))
                continue
            try:
                audio = resample(check_samples(np.concatenate(parts), rate), rate)
            except AudioError as error:
                done.faults[segment.id] = ("unreadable audio", str(error))
                continue
            path = folder / f"{segment.id}.flac"
            num_samples = write_flac(path, audio)
            done.pieces[segment.id] = Piece(path.name, num_samples, path.stat().st_size, sha256(path))
        waiting, start = later, end
    return done, file.frames - start
