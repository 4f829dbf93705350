"""Every utterance's audio is decoded and measured; what training cannot read as it is, is written as FLAC.

A file that libsndfile reads is used where it lies. Segments of long recordings, what commands write, and cuts that only
Lhotse can put together become 16 kHz mono FLAC files; a recording of any length is decoded once.
"""

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from sumix_stream.audio import MIX, AudioError, check_rate, check_samples, open_audio, read_audio, resample
from sumix_stream.corpora.faults import FaultyUtterance, check_duration
from sumix_stream.corpora.preparation import SAMPLE_RATE, make_cut, write_flac
from sumix_stream.corpora.readers.base import COMMAND, CUT, FILE, SHARD, Item
from sumix_stream.corpora.segments import Segment, cut_recording

WINDOW_SECONDS = 0.02  # of which the level is the root mean square
ACTIVE_DB = 30.0  # below the level of the loud windows, a window holds a pause
SILENT_PEAK = 4 / 32768  # of an utterance that holds nothing
CANCELLED_DB = 20.0  # that averaging channels may cost
_BITS_PER_SECOND = 200  # no codec is below: of a longer length than that the header did not know


class Measures(NamedTuple):
    """What is heard of an utterance."""

    sample_rate: int  # Hz
    num_channels: int
    seconds: float
    peak: float  # 1: full scale
    level: float  # dB below full scale of its loud windows (95th percentile)
    active: float  # seconds within ACTIVE_DB of that
    clipped: float  # share of samples in flat tops at full scale


class Checks(NamedTuple):
    """What audio must keep to, and where it goes that is written."""

    folder: str  # for FLAC files
    max_seconds: float = 30.0
    min_seconds: float = 0.1
    channel: int | None = None  # of files with several, where the source names none; None: the average


class Checked(NamedTuple):
    """An utterance that can be used: its Lhotse cut as a dict, and what is heard."""

    cut: dict
    measures: Measures


Outcome = Checked | FaultyUtterance


def check_items(items: Sequence[Item], checks: Checks) -> list[Outcome]:
    """What becomes of each item, in their order. Neighbours that are parts of one recording are cut in one go."""
    outcomes: list[Outcome] = []
    for _, group in groupby(items, key=_recording):
        members = list(group)
        if members[0].kind == SHARD:
            outcomes += _survived(_check_shard, members, checks)
        elif members[0].kind == COMMAND or not members[0].whole:
            outcomes += _survived(_check_recording, members, checks)
        else:
            for item in members:
                outcomes += _survived(_check, [item], checks)
    return outcomes


def _survived(
    check: Callable[[list[Item], Checks], list[Outcome]], members: list[Item], checks: Checks
) -> list[Outcome]:
    """What a check says; a file that a decoder fails on in a way of its own does not end the run."""
    try:
        return check(members, checks)
    except FaultyUtterance as error:
        return [error] * len(members)
    except OSError:
        raise  # a full disk
    except Exception as error:
        detail = f"{members[0].audio[:200]}: {type(error).__name__}: {error}"
        return [FaultyUtterance("unreadable audio", detail)] * len(members)


def _recording(item: Item) -> tuple[str, str, bool]:
    return item.kind, item.audio, item.whole and item.kind != COMMAND


def _check(members: list[Item], checks: Checks) -> list[Outcome]:
    (item,) = members
    return [_check_cut(item, checks) if item.kind == CUT else check_file(item, item.audio, checks)]


def check_file(item: Item, path: str, checks: Checks) -> Checked:
    """An utterance that is the whole of a file.

    Raises:
        FaultyUtterance: the file is missing, damaged, silent, too long or short; channels cancel or are not there.
    """
    rate, num_channels, frames, known = _header(path)
    if rate is None:  # libsndfile does not read it; whatever else is installed might
        return _written(item, *_read_otherwise(item, path, checks), 1, checks)
    if known:
        check_duration(frames / rate, checks.min_seconds, checks.max_seconds)
    channel = item.channel if item.channel is not None else checks.channel
    if channel is not None and num_channels == 1 and item.channel is None:
        channel = None  # --channel is for files that have several
    if channel is not None and channel >= num_channels:
        raise FaultyUtterance("bad channel", f"{path}: channel {channel} of {num_channels} (the first is 0)")
    if known and num_channels == 1:
        try:
            samples, rate = read_audio(path)
        except AudioError as error:
            raise FaultyUtterance("unreadable audio", str(error)) from None
        return _checked(item, path, samples, rate, 1, None, len(samples), checks)
    samples, num_read = _read_channel(path, rate, channel, checks.max_seconds, known)
    if not known:
        return _written(item, samples, rate, num_channels, checks)
    if num_read < frames:
        raise FaultyUtterance("unreadable audio", f"{path}: {num_read} of its {frames} samples decode; copy it again")
    return _checked(item, path, samples, rate, num_channels, channel, num_read, checks)


def _header(path: str) -> tuple[int | None, int, int, bool]:
    """Rate, channels, samples, and whether it can be read by them; rate None: not a file of libsndfile's."""
    if not os.path.isfile(path):
        raise FaultyUtterance("missing audio", f"{path}: no such file")
    try:
        with soundfile.SoundFile(path) as file:
            rate, num_channels, frames, seekable = file.samplerate, file.channels, file.frames, file.seekable()
        check_rate(rate)
    except AudioError as error:
        raise FaultyUtterance("unreadable audio", f"{path}: {error}") from None
    except (soundfile.SoundFileError, RuntimeError, OSError):
        return None, 0, 0, False
    # What cannot be sought in (GSM, G.721) cannot be read whole by those who do not know its length.
    known = seekable and 0 <= frames and frames / rate * _BITS_PER_SECOND <= 8 * os.path.getsize(path) + 1000
    return rate, num_channels, frames, known


def _read_otherwise(item: Item, path: str, checks: Checks) -> tuple[np.ndarray, int]:
    channel = item.channel if item.channel is not None else checks.channel
    try:
        with open_audio(path) as file:
            if channel is None or (file.num_channels == 1 and item.channel is None):
                channel = MIX  # --channel is for files that have several
            elif channel >= file.num_channels:
                raise FaultyUtterance("bad channel", f"{path}: channel {channel} of {file.num_channels} (from 0)")
            return np.concatenate(list(file.mono(channel))), file.sample_rate
    except AudioError as error:
        raise FaultyUtterance("unreadable audio", str(error)) from None


def _read_channel(path: str, rate: int, channel: int | None, max_seconds: float, known: bool) -> tuple[np.ndarray, int]:
    """Samples (S,) of a channel or of the average; at most a second more than may be, and how many were read."""
    try:
        with soundfile.SoundFile(path) as file:
            wanted = round((max_seconds + 1) * rate)
            if known:
                block = file.read(wanted, dtype="float32", always_2d=True)
            else:
                block = _read_to_the_end(file, wanted)
    except (soundfile.SoundFileError, RuntimeError, OSError, MemoryError) as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise FaultyUtterance("unreadable audio", f"{path}: cannot be decoded ({reason})") from None
    if channel is not None:
        return np.ascontiguousarray(block[:, channel]), len(block)
    mean = block.mean(axis=1)
    if len(block) and block.shape[1] > 1:
        loudest, averaged = np.sqrt(np.square(block).mean(0)).max(), np.sqrt(np.square(mean).mean())
        if loudest > SILENT_PEAK and averaged < loudest * 10 ** (-CANCELLED_DB / 20):
            detail = f"{path}: the average of its {block.shape[1]} channels is nearly silent; take one with --channel 0"
            raise FaultyUtterance("channels cancel", detail)
    return mean, len(block)


def _read_to_the_end(file: soundfile.SoundFile, most: int) -> np.ndarray:
    """Up to `most` samples (S, channels) of a file of unknown length.

    At its end libsndfile 1.2.2 fails to seek after it has read what there was: what it wrote tells how much.
    """
    blocks = []
    while (wanted := min(file.samplerate, most - sum(map(len, blocks)))) > 0:
        block = np.full((wanted, file.channels), np.nan, np.float32)
        try:
            read, ended = len(file.read(out=block)), False
        except soundfile.SoundFileError:
            read, ended = int(np.isfinite(block[:, 0]).sum()), True
        blocks.append(block[:read])
        if ended or read < wanted:
            break
    return np.concatenate(blocks)


def _checked(
    item: Item,
    path: str,
    samples: np.ndarray,
    rate: int,
    num_channels: int,
    channel: int | None,
    num_samples: int,
    checks: Checks,
) -> Checked:
    try:
        samples = check_samples(samples, rate)
    except AudioError as error:
        raise FaultyUtterance("unreadable audio", f"{path}: {error}") from None
    check_duration(num_samples / rate, checks.min_seconds, checks.max_seconds)
    measures = measure(samples, rate)._replace(num_channels=num_channels)
    if measures.peak < SILENT_PEAK:
        raise FaultyUtterance("silent", f"{path}: its loudest sample is {measures.peak * 32768:.1f} of 32768")
    options = {"sample_rate": rate, "num_channels": num_channels, "channel": channel}
    speaker, language = item.speaker or None, item.language or None
    cut = make_cut(item.id, path, num_samples, item.text, speaker, language, **options)
    return Checked(cut.to_dict(), measures)


def _written(item: Item, samples: np.ndarray, rate: int, num_channels: int, checks: Checks) -> Checked:
    """Of samples that no file holds as training reads it: written, then checked like any file."""
    where = item.audio if item.kind == FILE else item.id
    try:
        samples = check_samples(samples, rate)
        check_duration(len(samples) / rate, checks.min_seconds, checks.max_seconds)
        path = _place(item.id, checks)
        write_flac(path, resample(samples, rate))
    except AudioError as error:
        raise FaultyUtterance("unreadable audio", f"{where}: {error}") from None
    written, _ = read_audio(path)
    done = _checked(item, str(path), written, SAMPLE_RATE, 1, None, len(written), checks)
    return done._replace(measures=done.measures._replace(sample_rate=rate, num_channels=num_channels))


def _place(id: str, checks: Checks) -> Path:
    """Where the FLAC file of an utterance goes: in one of 256 folders, so that none of them is huge."""
    folder = Path(checks.folder) / hashlib.sha256(id.encode()).hexdigest()[:2]
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{id}.flac"


def measure(samples: np.ndarray, rate: int) -> Measures:
    """What is heard in samples (S,), S > 0."""
    magnitude = np.abs(samples)
    peak = float(magnitude.max())
    width = max(1, round(WINDOW_SECONDS * rate))
    if len(samples) < width:
        power = np.square(samples).mean(keepdims=True)
    else:
        windows = samples[: len(samples) // width * width].reshape(-1, width)
        power = np.einsum("nw,nw->n", windows, windows) / width
    loud = float(np.partition(power, (at := int(0.95 * (len(power) - 1))))[at])
    active = WINDOW_SECONDS * int((power > loud * 10 ** (-ACTIVE_DB / 10)).sum()) if loud > 0 else 0.0
    clipped = 0.0
    if peak >= 0.98:
        top = magnitude >= 0.995 * peak
        clipped = float((top[1:] & top[:-1]).mean()) if len(top) > 1 else 0.0
    level = 10 * np.log10(max(loud, 1e-12))
    return Measures(
        *(rate, 1, len(samples) / rate, round(peak, 5), round(float(level), 2), round(active, 2), round(clipped, 6))
    )


# Parts of recordings, and what commands write


def _check_recording(members: list[Item], checks: Checks) -> list[Outcome]:
    first = members[0]
    if first.kind != COMMAND:
        return _check_parts(members, first.audio, checks)
    with tempfile.TemporaryDirectory(dir=checks.folder) as aside:
        path = Path(aside) / f"{hashlib.sha256(first.audio.encode()).hexdigest()[:16]}.audio"
        with open(path, "wb") as file:
            done = subprocess.run(
                first.audio, shell=True, stdout=file, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
            )
        if done.returncode != 0:
            said = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            detail = f"{first.audio}: the command ended with {done.returncode} ({said[:200]})"
            return [FaultyUtterance("unreadable audio", detail) for _ in members]
        return _check_parts(members, str(path), checks)


def _check_parts(members: list[Item], path: str, checks: Checks) -> list[Outcome]:
    """Of one file: an utterance that is all of it is used as it is, the others are cut."""
    try:
        rate, num_channels, frames, known = _header(path)
        if rate is None or not known:
            return _check_parts_decoded(members, path, checks)
    except FaultyUtterance as error:
        return [error] * len(members)
    seconds, kept = frames / rate, members[0].kind != COMMAND
    ends = [seconds if item.end is None else item.end for item in members]
    if kept and len(members) == 1 and members[0].start == 0 and abs(ends[0] - seconds) < 0.1:
        return _check([members[0]._replace(end=None)], checks)
    segments, outcomes = [], {}
    for item, end in zip(members, ends, strict=True):
        channel = item.channel if item.channel is not None else checks.channel if num_channels > 1 else None
        try:
            check_duration(end - item.start, checks.min_seconds, checks.max_seconds)
        except FaultyUtterance as error:
            outcomes[item.id] = error
            continue
        segments.append(Segment(item.id, ((item.start, end),), channel))
    name = hashlib.sha256(members[0].audio.encode()).hexdigest()[:24]
    folder = Path(checks.folder) / name
    cut = cut_recording(Path(path), segments, folder, folder.with_suffix(".json")) if segments else None
    for item in members:
        if item.id in outcomes:
            continue
        if item.id in cut.faults:
            outcomes[item.id] = FaultyUtterance(*cut.faults[item.id])
            continue
        try:
            done = check_file(item._replace(channel=None), str(folder / cut.pieces[item.id].file), checks)
            measures = done.measures._replace(sample_rate=rate, num_channels=num_channels)
            outcomes[item.id] = done._replace(measures=measures)
        except FaultyUtterance as error:
            outcomes[item.id] = error
    return [outcomes[item.id] for item in members]


def _check_parts_decoded(members: list[Item], path: str, checks: Checks) -> list[Outcome]:
    """Of a file that libsndfile cannot read in blocks: decoded to one that it can."""
    with tempfile.TemporaryDirectory(dir=checks.folder) as aside:
        whole = Path(aside) / "whole.w64"
        try:
            with open_audio(path) as file:
                form = {"samplerate": file.sample_rate, "channels": file.num_channels, "subtype": "FLOAT"}
                with soundfile.SoundFile(whole, "w", format="W64", **form) as decoded:
                    for block in file.blocks():
                        decoded.write(block)
        except AudioError as error:
            raise FaultyUtterance("unreadable audio", str(error)) from None
        return _check_parts([item._replace(kind=COMMAND) for item in members], str(whole), checks)


# What only Lhotse can put together


def _check_cut(item: Item, checks: Checks) -> Checked:
    from lhotse.serialization import deserialize_item

    from sumix_stream.data.manifests import UtteranceError, load_samples

    try:
        cut = deserialize_item(json.loads(item.audio))
        check_duration(cut.duration, checks.min_seconds, checks.max_seconds)
        rate, samples = cut.sampling_rate, load_samples(cut)
    except UtteranceError as error:
        raise FaultyUtterance("unreadable audio", str(error)) from None
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        detail = f"no cut that Lhotse can read ({type(error).__name__}: {error})"
        raise FaultyUtterance("unreadable audio", detail) from None
    done = _written(item, samples, SAMPLE_RATE, 1, checks)
    return done._replace(measures=done.measures._replace(sample_rate=rate))


def _check_shard(members: list[Item], checks: Checks) -> list[Outcome]:
    """Utterances of one shard, in the order of its lines, each written as a file."""
    wanted = {item.line: place for place, item in enumerate(members)}
    outcomes: list[Outcome] = [FaultyUtterance("unreadable audio", f"{m.audio}: not in the shard") for m in members]
    try:
        for line, cut in enumerate(_shard(members[0].audio), 1):
            if line in wanted:
                item = members[wanted[line]]
                outcomes[wanted[line]] = _of_shard(item, cut, checks)
    except Exception as error:  # whatever tar and Lhotse raise: what was read before it is good
        reason = FaultyUtterance("unreadable audio", f"{members[0].audio}: damaged ({type(error).__name__}: {error})")
        outcomes = [reason if isinstance(o, FaultyUtterance) and "not in the" in o.detail else o for o in outcomes]
    return outcomes


def _shard(cuts: str) -> Iterator:
    from lhotse.shar import LazySharIterator

    folder, name = os.path.split(cuts)
    number = name.split(".")[1]
    audio = sorted(str(p) for p in Path(folder).glob(f"recording.{number}.tar*"))
    return iter(LazySharIterator({"cuts": [cuts], "recording": audio[:1]}))


def _of_shard(item: Item, cut, checks: Checks) -> Outcome:
    from sumix_stream.data.manifests import UtteranceError, load_samples

    try:
        done = _written(item, load_samples(cut), SAMPLE_RATE, 1, checks)
        return done._replace(measures=done.measures._replace(sample_rate=cut.sampling_rate))
    except UtteranceError as error:
        return FaultyUtterance("unreadable audio", str(error))
    except FaultyUtterance as error:
        return error
