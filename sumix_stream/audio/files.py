"""Recordings of any kind, read whole or in blocks: files, bytes of an upload, pipes.

WAV, FLAC, Ogg, Opus, MP3 and others by libsndfile; what it does not know (M4A, MP4, WebM, ...) by PyAV where it is
installed; WAV and samples without a header also from pipes, as they come. Memory is that of a block, however long
they are.
"""

import io
import logging
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import soundfile

from sumix_stream.audio import media
from sumix_stream.audio.channels import MIX, Channel, OneChannel, one_channel
from sumix_stream.audio.listing import HEADERLESS
from sumix_stream.audio.pcm import PcmStream, RawFormat, wav_stream
from sumix_stream.audio.samples import AudioError, check_rate

STANDARD_INPUT = "-"
_BLOCK = 1 << 16  # frames read at a time
_UNKNOWN = 1 << 62  # frames from which on a header says that it does not know
_MAX_SAMPLES = 1 << 30  # of one channel in memory: 4 GiB as floats, 18 hours at 16 kHz
_SUSPICIOUS_SAMPLES = 1 << 26  # 70 minutes at 16 kHz
_LEAST_FLAC = 0.02  # bytes a sample; speech takes about one, digital silence a hundredth of this

_log = logging.getLogger(__name__)
Source = str | os.PathLike | bytes


class Limits(NamedTuple):
    """What a recording may have at most; None: any. More raises AudioError before it is kept."""

    num_bytes: int | None = None  # of the file as it is
    seconds: float | None = None


NO_LIMITS = Limits()


class Decoder(Protocol):
    """Samples of one kind of file. Errors are AudioErrors without the file's name, or the library's own."""

    sample_rate: int
    num_channels: int
    num_samples: int | None  # that a header announces

    def blocks(self) -> Iterator[np.ndarray]:
        """Float32 (n, channels), once."""


class AudioFile:
    """A recording that is open: `sample_rate` in Hz, `num_channels`, and `num_samples` of each, None where no header
    says so."""

    def __init__(self, name: str, decoder: Decoder, limits: Limits) -> None:
        self.name, self._decoder, self._limits = name, decoder, limits
        self.sample_rate, self.num_channels = check_rate(decoder.sample_rate), decoder.num_channels
        self.num_samples = decoder.num_samples
        self._check_seconds(self.num_samples or 0, "announces")

    def blocks(self) -> Iterator[np.ndarray]:
        """Float32 (n, channels), n of any size, from the beginning to the end, once.

        Raises AudioError naming the file where it cannot be decoded, is truncated, empty, or longer than the limits.
        """
        num_samples = 0
        with _named(self.name):
            for block in self._decoder.blocks():
                if not len(block):
                    continue
                num_samples += len(block)
                self._check_seconds(num_samples, "holds more than")
                yield block
            if self.num_samples is not None and num_samples < self.num_samples:
                raise AudioError(_truncated(num_samples))
            if not num_samples:
                raise AudioError("holds no samples; remove it or record it again")

    def mono(self, channel: Channel = MIX) -> Iterator[np.ndarray]:
        """Float32 (n,) in [-1, 1] of one channel or of the average of all; as `blocks`, also for samples that are not
        finite, and for a channel that is not there."""
        with _named(self.name):
            mixed = OneChannel(channel, self.num_channels, self.sample_rate, self.name)
            yield from one_channel(self.blocks(), mixed)

    def _check_seconds(self, num_samples: int, verb: str) -> None:
        most = self._limits.seconds
        if most is not None and num_samples > most * self.sample_rate:
            much = f"{num_samples / self.sample_rate:,.1f} s, more than the" if verb == "announces" else "the"
            raise AudioError(f"{verb} {much} {most:g} s that are allowed; cut it into parts")


@contextmanager
def open_audio(
    source: Source, *, raw: RawFormat | None = None, limits: Limits = NO_LIMITS, name: str | None = None
) -> Iterator[AudioFile]:
    """A recording, to be read in blocks.

    Args:
        source: a path, `-` for standard input, a pipe's path, or the bytes of a file.
        raw: what the samples are of a file that has no header.
        limits: of files that are not trusted.
        name: for messages; the path by default.
    Raises:
        AudioError: naming what is missing or no audio, and the remedy: a library to install, or a command.
    """
    shown = name or ("the uploaded audio" if isinstance(source, bytes) else os.fspath(source))
    if shown == STANDARD_INPUT:
        shown = "standard input"
    with ExitStack() as opened, _named(shown):
        yield AudioFile(shown, _decoder(source, shown, raw, limits, opened), limits)


def read_audio(
    source: Source,
    channel: Channel = MIX,
    *,
    raw: RawFormat | None = None,
    limits: Limits = NO_LIMITS,
    name: str | None = None,
) -> tuple[np.ndarray, int]:
    """All samples of a recording: mono float32 in [-1, 1], and its sample rate in Hz.

    Args:
        channel: from 0, or `mix`: the average of all, which is logged, with a warning where they cancel each other.
        source, raw, limits, name: as for `open_audio`.

    Raises AudioError naming the file where it is missing, no audio, truncated, empty, not finite or too large.
    """
    with open_audio(source, raw=raw, limits=limits, name=name) as file, _named(file.name):
        _check_fits(file.num_samples or 0, file.sample_rate)
        blocks, num_samples = [], 0
        try:
            for block in file.mono(channel):
                num_samples += len(block)
                _check_fits(num_samples, file.sample_rate)
                blocks.append(block)
            return np.concatenate(blocks), file.sample_rate
        except MemoryError:
            raise AudioError("does not fit into memory; cut it into parts") from None


def _check_fits(num_samples: int, rate: int) -> None:
    if num_samples > _MAX_SAMPLES:
        hours = num_samples / rate / 3600
        raise AudioError(f"holds or announces {hours:,.1f} hours, more than fit into memory at once; cut it into parts")


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except AudioError as error:
        if str(error).startswith(f"{name}: "):
            raise
        raise AudioError(f"{name}: {error}") from None


def _truncated(num_samples: int) -> str:
    return f"truncated, its header announces more audio than there is ({num_samples} samples); copy it again"


def _decoder(source: Source, name: str, raw: RawFormat | None, limits: Limits, opened: ExitStack) -> Decoder:
    if isinstance(source, bytes):
        _check_bytes(len(source), limits)
        return _of_file(io.BytesIO(source), None, len(source), name, raw, opened)
    path = Path(source)
    if os.fspath(source) == STANDARD_INPUT:
        mode = os.fstat(sys.stdin.fileno()).st_mode
        if not stat.S_ISREG(mode):
            return _of_pipe(opened.enter_context(open(os.dup(sys.stdin.fileno()), "rb", 0)), name, raw, limits, opened)
        path = Path(f"/dev/fd/{sys.stdin.fileno()}")
    try:
        found = path.stat()
    except OSError as error:
        fault = "no such audio file; check the path" if isinstance(error, FileNotFoundError) else f"{error.strerror}"
        raise AudioError(fault) from None
    if stat.S_ISDIR(found.st_mode):
        raise AudioError("is a folder, not an audio file")
    try:
        file = opened.enter_context(open(path, "rb", buffering=0 if not stat.S_ISREG(found.st_mode) else -1))
    except OSError as error:
        raise AudioError(f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(found.st_mode):
        return _of_pipe(file, name, raw, limits, opened)
    _check_bytes(found.st_size, limits)
    return _of_file(file, path, found.st_size, name, raw, opened)


def _check_bytes(num_bytes: int, limits: Limits) -> None:
    if limits.num_bytes is not None and num_bytes > limits.num_bytes:
        raise AudioError(f"more than the {limits.num_bytes:,} bytes that are allowed; cut it into parts")


def _of_pipe(file: BinaryIO, name: str, raw: RawFormat | None, limits: Limits, opened: ExitStack) -> Decoder:
    """WAV and raw samples as they come; anything else is first written to a temporary file, to its end."""
    if file.isatty():
        raise AudioError("is a terminal: pipe audio into it (arecord -f S16_LE -r 16000 -t wav | ...)")
    num_read = 0

    def read(count: int) -> bytes:
        nonlocal num_read
        data = file.read(count) or b""
        num_read += len(data)
        _check_bytes(num_read, limits)
        return data

    if raw is not None:
        return PcmStream(read, raw.checked())
    begun = bytearray()
    if (stream := wav_stream(read, begun)) is not None:
        return stream
    aside = opened.enter_context(tempfile.TemporaryFile())
    aside.write(begun)
    _log.info("%s: is read to its end before it is decoded (only WAV and raw samples are decoded as they come)", name)
    shutil.copyfileobj(_Reader(read), aside)
    aside.seek(0)
    return _of_file(aside, None, num_read, name, None, opened)


class _Reader(NamedTuple):
    read: Callable[[int], bytes]


def _of_file(
    file: BinaryIO, path: Path | None, num_bytes: int, name: str, raw: RawFormat | None, opened: ExitStack
) -> Decoder:
    """Of a file that can be sought in."""
    if raw is not None:
        return PcmStream(file.read, raw.checked())
    try:
        # As bytes: a name on the disk need not be UTF-8.
        sound = opened.enter_context(_Sequential(file if path is None else os.fsencode(path)))
    except (soundfile.SoundFileError, RuntimeError, OSError, TypeError) as error:
        if isinstance(error, TypeError) or Path(name).suffix.lower() in HEADERLESS:  # soundfile's, for .raw
            raise AudioError(f"cannot be decoded (no header); {_headerless(name)}") from None
        return _of_media(file, name, _reason(error), opened)
    return _Soundfile(sound, num_bytes)


def _of_media(file: BinaryIO, name: str, reason: str, opened: ExitStack) -> Decoder:
    av = media.pyav()
    if av is None:
        raise AudioError(f"cannot be decoded ({reason}); replace it, or {media.how_to_convert(name)}")
    file.seek(0)
    try:
        decoder = media.MediaStream(av, file, name)
    except AudioError as error:
        raise AudioError(f"cannot be decoded ({reason}; by PyAV: {error}); replace or re-encode it") from None
    opened.callback(decoder.close)
    return decoder


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).rstrip(".")


def _headerless(name: str) -> str:
    return (
        f"what {Path(name).suffix} files hold is not said in them: say it (--raw s16le,8000,1), or give them a header, "
        "for telephone audio by `sox -t raw -r 8000 -e signed -b 16 -c 1 OLD NEW.wav` (or -e a-law, -e mu-law with "
        "-b 8)"
    )


class _Sequential(soundfile.SoundFile):
    """A file read from its beginning to its end: soundfile seeks after each read, which a FLAC of unknown length and
    telephone codecs refuse."""

    def seekable(self) -> bool:
        return False


class _Soundfile:
    """By libsndfile. Raises AudioError for a header that asks for far more than its bytes could hold."""

    def __init__(self, file: soundfile.SoundFile, num_bytes: int) -> None:
        self._file, self._num_bytes = file, num_bytes
        self.sample_rate, self.num_channels = file.samplerate, file.channels
        self.num_samples = file.frames if 0 < file.frames < _UNKNOWN else None
        self._cut_short = _cut_short(file)
        check_rate(self.sample_rate)
        self._check_size(self.num_samples or 0)

    def blocks(self) -> Iterator[np.ndarray]:
        num_samples = 0
        while True:
            try:
                block = self._file.read(_BLOCK, dtype="float32", always_2d=True)
            except (soundfile.SoundFileError, RuntimeError, OSError) as error:
                raise AudioError(f"cannot be decoded ({_reason(error)}); replace or re-encode it") from None
            num_samples += len(block)
            self._check_size(num_samples)
            if len(block):
                yield block
            if len(block) < _BLOCK:
                break
        if self._cut_short:
            raise AudioError(_truncated(num_samples))

    def _check_size(self, num_samples: int) -> None:
        enough = self._file.format != "FLAC" or self._num_bytes >= num_samples * _LEAST_FLAC
        if num_samples > _SUSPICIOUS_SAMPLES and not enough:
            hours = num_samples / self.sample_rate / 3600
            raise AudioError(
                f"{self._num_bytes:,} bytes hold or announce {hours:,.1f} hours: as little FLAC is digital silence or "
                "a damaged header; cut out what is sound"
            )


def _cut_short(file: soundfile.SoundFile) -> bool:
    """Whether a WAV file is shorter than its header says; libsndfile only notes that in its log.

    A header of (nearly) 0xFFFFFFFF bytes is how programs that write to a pipe say that they do not know.
    """
    announced = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.M)
    return bool(announced) and int(announced[2]) < int(announced[1]) < 0x7FFF_0000
