"""What libsndfile does not read (M4A, MP4, WebM, AAC, WMA, AMR, ...), decoded by PyAV, which brings FFmpeg's codecs.

A recording keeps the clock of its container: where the sound of a film begins late, or a browser paused, there is
silence.
"""

import logging
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from sumix_stream.audio.samples import AudioError

SUFFIXES = (".m4a", ".mp4", ".aac", ".webm", ".wma", ".mkv", ".mka", ".mov", ".amr", ".3gp", ".m4b", ".avi")
# Containers that hold their own samples. Others name files and addresses to read, and files of others are not trusted.
_CONTAINERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,webm,wv".split(",")
)
_MAX_JITTER = 0.1  # seconds by which times may be off without a hole
_MAX_HOLE = 3600.0  # seconds: a longer one is a damaged clock
_TRUSTED_LENGTHS = "mov"  # whose header counts what is in the file
_MISSING = 1.0  # seconds that may be missing at its end

_log = logging.getLogger(__name__)


def pyav() -> ModuleType | None:
    """PyAV, or None where it is not installed."""
    try:
        import av
    except ImportError:
        return None
    return av


def how_to_convert(name: str) -> str:
    """What to do with a file where PyAV is not installed."""
    command = f"ffmpeg -i {shlex.quote(name)} -vn {shlex.quote(str(Path(name).with_suffix('.wav').name))}"
    return f"for M4A, MP4, WebM, AAC and the like: pip install 'sumix-stream[media]', or convert it: {command}"


class MediaStream:
    """The sound of a file in blocks.

    Args:
        file: open for reading, at its beginning.
        name: for the log.
    Raises:
        AudioError: what it holds cannot be decoded, or is no sound; without the file's name.
    """

    num_samples = None  # headers of most containers do not know

    def __init__(self, av: ModuleType, file: BinaryIO, name: str) -> None:
        self._av = av
        try:
            options = {"format_whitelist": ",".join(_CONTAINERS)}
            self._container = av.open(file, options=options, metadata_errors="replace")
        except (av.FFmpegError, ValueError, OSError) as error:
            raise AudioError(_reason(error)) from None
        tracks = self._container.streams.audio
        if not tracks:
            self.close()
            raise AudioError("it holds no sound, only pictures or text")
        if len(tracks) > 1:
            _log.warning("%s: the first of its %d sound tracks is used", name, len(tracks))
        self._track = tracks[0]
        self._frames = self._decoded()
        self._first = next(self._frames, None)
        if self._first is None:
            self.close()
            raise AudioError("it holds no samples")
        self.sample_rate, self.num_channels = self._first.sample_rate, self._first.layout.nb_channels

    def blocks(self) -> Iterator[np.ndarray]:
        """Float32 (n, channels), about a second each. Raises AudioError where decoding fails."""
        held: list[np.ndarray] = []
        num_held = num_given = 0
        for block in self._timed():
            held.append(block)
            num_held += len(block)
            if num_held >= self.sample_rate:
                yield np.concatenate(held)
                num_given, num_held, held = num_given + num_held, 0, []
        if held:
            yield np.concatenate(held)
        self._check_length((num_given + num_held) / self.sample_rate)

    def close(self) -> None:
        self._container.close()

    def _decoded(self) -> Iterator[Any]:
        """Frames as the codec gives them."""
        seconds = 0.0
        try:
            for frame in self._container.decode(self._track):
                yield frame
                seconds += frame.samples / frame.sample_rate
        except (self._av.FFmpegError, ValueError, OSError) as error:
            raise AudioError(f"after {seconds:.1f} s: {_reason(error)}") from None

    def _timed(self) -> Iterator[np.ndarray]:
        """Blocks (n, channels), with silence where the container's clock has no sound."""
        origin = (self._container.start_time or 0) / self._av.time_base
        num_samples, frame = 0, self._first
        resampler = kind = None
        while frame is not None:
            if (frame.format.name, frame.layout.name, frame.sample_rate) != kind:  # of a stream that changes midway
                if resampler is not None:
                    for done in resampler.resample(None):
                        num_samples += done.samples
                        yield _samples(done)
                kind = frame.format.name, frame.layout.name, frame.sample_rate
                options = {"format": "fltp", "layout": self._first.layout.name, "rate": self.sample_rate}
                resampler = self._av.AudioResampler(**options)
            if frame.time is not None:
                missing = frame.time - origin - num_samples / self.sample_rate
                if missing > _MAX_HOLE:
                    raise AudioError(f"after {num_samples / self.sample_rate:.1f} s there is a hole of {missing:.0f} s")
                if missing > _MAX_JITTER:
                    hole = round(missing * self.sample_rate)
                    num_samples += hole
                    for start in range(0, hole, self.sample_rate):
                        yield np.zeros((min(self.sample_rate, hole - start), self.num_channels), np.float32)
            for done in resampler.resample(frame):
                num_samples += done.samples
                yield _samples(done)
            frame = next(self._frames, None)
        for done in resampler.resample(None):
            yield _samples(done)

    def _check_length(self, seconds: float) -> None:
        if _TRUSTED_LENGTHS not in self._container.format.name or self._track.duration is None:
            return
        announced = float(self._track.duration * self._track.time_base)
        if seconds < announced - _MISSING:
            raise AudioError(f"it is truncated: its header announces {announced:.1f} s, {seconds:.1f} s decode")


def _samples(frame: Any) -> np.ndarray:
    return np.ascontiguousarray(frame.to_ndarray().T, np.float32)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".").splitlines()[0]
