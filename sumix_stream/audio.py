"""Audio files and other sample rates: read, check, resample, for whole utterances and for streams."""

import functools
import logging
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from sumix_stream.timebase import Timebase
from sumix_stream.trees import check_count

MODEL_RATE = Timebase().sample_rate
MIN_RATE, MAX_RATE = 4_000, 192_000  # Hz
_MAX_PEAK = 32.0  # floats beyond this are integers that nobody scaled
_MAX_PHASES = 1 << 24  # reduced rates multiplied: those with no common factor would hold back seconds of a stream
_ZERO_CROSSINGS, _ROLLOFF = 6, 0.99  # of the resampling filter: those of torchaudio
_FEW_PHASES = 8  # up to so many, each is filtered by itself; more are gathered
_GATHERED = 4096  # outputs whose inputs are gathered at once: they stay in the cache
_BLOCKS_PER_SECOND = 200  # a stream of tiny pushes is resampled in blocks of 5 ms

_BLOCK = 1 << 20  # frames read at a time
_UNKNOWN = 1 << 62  # frames from which on a header says that it does not know
_MAX_SAMPLES = 1 << 30  # of one channel: 4 GiB as floats, 18 hours at 16 kHz
_SUSPICIOUS_SAMPLES = 1 << 26  # 70 minutes at 16 kHz
_LEAST_FLAC = 0.02  # bytes a sample; speech takes about one, digital silence a hundredth of this
_CANCELLED = 1e-3  # of the channels' mean power: what remains of those that cancel each other
_HEADERLESS = (".raw", ".pcm", ".sln", ".sln16", ".s16", ".s16le", ".ulaw", ".alaw", ".ul", ".al", ".vox", ".g721")

_log = logging.getLogger(__name__)


class AudioError(ValueError):
    """Audio that cannot be used; the message names the file or the samples' fault, and the remedy."""


def read_audio(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """All samples of a file that libsndfile reads (WAV, FLAC, OGG Vorbis and Opus, MP3, ...): mono float32 in [-1, 1],
    and its sample rate in Hz. Channels are averaged, which is logged.

    Raises AudioError naming the file where it is missing, no audio, truncated, empty, not finite or too large.
    """
    path = Path(path)
    if not path.is_file():
        fault = "is a folder, not an audio file" if path.is_dir() else "no such audio file; check the path"
        raise AudioError(f"{path}: {fault}")
    try:
        # As bytes: a name on the disk need not be UTF-8.
        with _Sequential(os.fsencode(path)) as file:
            rate, channels, cut_short = file.samplerate, file.channels, _cut_short(file)
            expected = file.frames if 0 < file.frames < _UNKNOWN else None
            samples, cancelled = _read_mono(file, expected, path.stat().st_size)
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise AudioError(f"{path}: cannot be decoded ({reason}); {_remedy(path)}") from None
    except AudioError as error:
        raise AudioError(f"{path}: {error}") from None
    except MemoryError:
        raise AudioError(f"{path}: does not fit into memory; cut it into parts") from None
    except TypeError:  # soundfile's, for .raw: it has no header, and wants one in arguments
        raise AudioError(f"{path}: cannot be decoded (no header); {_remedy(path)}") from None
    if cut_short or (expected is not None and len(samples) < expected):
        raise AudioError(
            f"{path}: truncated, its header announces more audio than there is ({len(samples)} samples); copy it again"
        )
    if len(samples) == 0:
        raise AudioError(f"{path}: holds no samples; remove it or record it again")
    if channels > 1:
        _log.info("%s: the average of its %d channels is used", path, channels)
    if cancelled:
        _log.warning(
            "%s: its %d channels cancel each other, hardly anything is left of their average: use one of them alone",
            *(path, channels),
        )
    try:
        return check_samples(samples, rate), rate
    except AudioError as error:
        raise AudioError(f"{path}: {error}") from None


class _Sequential(soundfile.SoundFile):
    """A file read from its beginning to its end: soundfile seeks after each read, which a FLAC of unknown length and
    telephone codecs refuse."""

    def seekable(self) -> bool:
        return False


def _read_mono(file: soundfile.SoundFile, expected: int | None, num_bytes: int) -> tuple[np.ndarray, bool]:
    """The average of the channels (S,), and whether they cancel each other, read in blocks: what many channels, or a
    header that exaggerates, could ask for is never held."""
    check_rate(file.samplerate)
    _check_size(expected or 0, file.format, num_bytes, file.samplerate)
    blocks: list[np.ndarray] = []
    num_samples, power, mono_power = 0, 0.0, 0.0
    while True:
        block = file.read(_BLOCK, dtype="float32", always_2d=True)  # a number: not all formats can be sought in
        if not len(block):
            break
        num_samples += len(block)
        _check_size(num_samples, file.format, num_bytes, file.samplerate)
        blocks.append(block.mean(axis=1))
        if file.channels > 1:
            power += float(np.einsum("ij,ij->", block, block)) / file.channels
            mono_power += float(np.dot(blocks[-1], blocks[-1]))
        if len(block) < _BLOCK:
            break
    samples = blocks[0] if len(blocks) == 1 else np.concatenate([*blocks, np.zeros(0, np.float32)])
    return samples, mono_power < _CANCELLED * power


def _check_size(num_samples: int, form: str, num_bytes: int, rate: int) -> None:
    hours = num_samples / rate / 3600
    if num_samples > _MAX_SAMPLES:
        raise AudioError(f"holds or announces {hours:,.1f} hours, more than fit into memory at once; cut it into parts")
    if form == "FLAC" and num_samples > _SUSPICIOUS_SAMPLES and num_bytes < num_samples * _LEAST_FLAC:
        raise AudioError(
            f"{num_bytes:,} bytes hold or announce {hours:,.1f} hours: as little FLAC is digital silence or a damaged "
            "header; cut out what is sound"
        )


def _remedy(path: Path) -> str:
    if path.suffix.lower() in _HEADERLESS:
        return (
            f"what {path.suffix} files hold is not said in them: give them a header, for telephone audio by "
            "`sox -t raw -r 8000 -e signed -b 16 -c 1 OLD NEW.wav` (or -e a-law, -e mu-law with -b 8)"
        )
    return "replace or re-encode it"


def _cut_short(file: soundfile.SoundFile) -> bool:
    """Whether a WAV file is shorter than its header says; libsndfile only notes that in its log.

    A header of (nearly) 0xFFFFFFFF bytes is how programs that write to a pipe say that they do not know.
    """
    announced = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.M)
    return bool(announced) and int(announced[2]) < int(announced[1]) < 0x7FFF_0000


def check_samples(samples: np.ndarray, rate: int) -> np.ndarray:
    """Samples as 1-D float32 in [-1, 1]; int16 is scaled, other integers are refused as ambiguous.

    Samples (S, 1) are one channel too. Raises AudioError for another shape or type, NaN or infinity,
    unscaled integers, and for a rate that is not an integer in 4000..192000 Hz.
    """
    check_rate(rate)
    samples = np.asarray(samples)
    if samples.ndim == 2 and samples.shape[1] == 1:  # a block of sounddevice's
        samples = samples[:, 0]
    if samples.ndim != 1:
        raise AudioError(f"samples must be one-dimensional (one channel), got shape {samples.shape}; average channels")
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / 32768
    if samples.dtype.kind != "f":
        raise AudioError(f"samples must be float in [-1, 1] or int16, got {samples.dtype}; convert them")
    samples = samples.astype(np.float32, copy=False)
    if len(samples) == 0:
        return samples
    peak = max(samples.max(), -samples.min())  # NaN if any is
    if not math.isfinite(peak):
        where = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise AudioError(f"sample {where} is {samples[where]}; samples must be finite: repair the recording")
    if peak > _MAX_PEAK:
        raise AudioError(f"samples must be in [-1, 1], got a peak of {peak:g}; divide 16-bit values by 32768")
    return samples


def check_rate(rate: float) -> int:
    """A sample rate in Hz as an integer; 16000.0 is one. Raises AudioError for one outside 4000..192000."""
    number = isinstance(rate, int | float | np.integer | np.floating) and not isinstance(rate, bool)
    if number and MIN_RATE <= rate <= MAX_RATE and int(rate) == rate:
        return int(rate)
    raise AudioError(f"sample rate must be an integer in {MIN_RATE}..{MAX_RATE} Hz, got {rate!r}")


class _Filter(NamedTuple):
    """Windowed-sinc filters that make `num_phases` output samples of every `step` input samples.

    Output p of a step is the inner product of taps[p] with the inputs from offsets[p], counted from `width` inputs
    before the step's first.
    """

    taps: np.ndarray  # (num_phases, W) float32
    offsets: np.ndarray  # (num_phases,)
    step: int
    width: int

    @property
    def span(self) -> int:
        """Inputs that a step needs."""
        return 2 * self.width + self.step

    def apply(self, held: np.ndarray, num_steps: int) -> np.ndarray:
        """Inputs (n,), n >= span + (num_steps - 1) * step -> outputs (num_steps * num_phases,), float32.

        Every output is an inner product of its own, which no matrix product is: the same bits wherever a split falls.
        """
        num_phases, num_taps = self.taps.shape
        out = np.empty((num_steps, num_phases), dtype=np.float32)
        if num_phases <= _FEW_PHASES:
            for phase, (taps, offset) in enumerate(zip(self.taps, self.offsets, strict=True)):
                shape, strides = (num_steps, num_taps), (self.step * held.itemsize, held.itemsize)
                windows = as_strided(held[offset:], shape, strides, writeable=False)
                np.einsum("nw,w->n", windows, taps, out=out[:, phase])
            return out.ravel()
        windows = sliding_window_view(held, num_taps)
        size = max(1, _GATHERED // num_phases)
        for begin in range(0, num_steps, size):
            steps = np.arange(begin, min(begin + size, num_steps))[:, None]
            gathered = windows[steps * self.step + self.offsets]
            np.einsum("npw,pw->np", gathered, self.taps, out=out[begin : begin + size])
        return out.ravel()


@functools.lru_cache(maxsize=32)
def _filter(rate: int, new_rate: int) -> _Filter:
    """h(t) = b sinc(b t) cos^2(pi b t / (2 * _ZERO_CROSSINGS)) within that many zero crossings, t in input samples,
    b = _ROLLOFF * min(1, new_rate / rate); in float64 until the taps are stored."""
    step, num_phases = (r // math.gcd(rate, new_rate) for r in (rate, new_rate))
    if step * num_phases > _MAX_PHASES:
        raise AudioError(
            f"{rate} Hz cannot be resampled to {new_rate} Hz: they have no large common factor; "
            f"resample to one of 8000, 11025, 22050, 44100 or 48000 Hz first"
        )
    _log.info("audio at %d Hz is resampled to %d Hz", rate, new_rate)
    band = _ROLLOFF * min(1.0, new_rate / rate)
    reach = _ZERO_CROSSINGS / band
    width = math.ceil(reach)
    if step == 1:  # windows one sample apart: which of two equal strides einsum sums along would be its own choice
        step, num_phases = 2, 2 * num_phases
    centres = np.arange(num_phases) * (step / num_phases)
    num_taps = int(2 * reach) + 1
    first = np.minimum(np.ceil(centres - reach).astype(np.int64), width + step - num_taps)
    inputs = first[:, None] + np.arange(num_taps)
    crossings = (inputs - centres[:, None]) * band
    window = np.cos(np.clip(crossings, -_ZERO_CROSSINGS, _ZERO_CROSSINGS) * (np.pi / 2 / _ZERO_CROSSINGS)) ** 2
    return _Filter((band * np.sinc(crossings) * window).astype(np.float32), first + width, step, width)


def resample(samples: np.ndarray, rate: int, new_rate: int = MODEL_RATE) -> np.ndarray:
    """Float32 samples (S,) at `rate` Hz -> (ceil(S * new_rate / rate),) at `new_rate` Hz; as they are at equal rates.

    The windowed sinc of torchaudio's default (Hann, 6 zero crossings, rolloff 0.99), of which a stream's state is a few
    samples. Raises AudioError for an impossible rate.
    """
    stream = StreamResampler(rate, new_rate)
    return np.concatenate([stream.accept(samples), stream.finish()])


class StreamResampler:
    """Resamples one utterance that arrives in pieces: the same samples as `resample`, whatever the pieces.

    Holds at most a filter's length and 5 ms of samples, however long the stream.
    """

    def __init__(self, rate: int, new_rate: int = MODEL_RATE) -> None:
        self.rate, self.new_rate = rate, new_rate = check_rate(rate), check_rate(new_rate)
        self._num_in = self._num_out = 0
        self._finished = False
        self._pending: list[np.ndarray] = []
        self._num_pending = 0
        if rate != new_rate:
            self._filter = _filter(rate, new_rate)
            self._block = max(self._filter.step, rate // _BLOCKS_PER_SECOND)
            self._hold(np.zeros(self._filter.width, dtype=np.float32))

    @property
    def nbytes(self) -> int:
        """Bytes of samples held back for outputs to come."""
        return sum(piece.nbytes for piece in self._pending)

    def accept(self, samples: np.ndarray) -> np.ndarray:
        """Any number of float samples (n,) at `rate` -> those at `new_rate` that became computable (maybe none)."""
        if self._finished:
            raise ValueError("this stream is finished: make a new StreamResampler for the next utterance")
        samples = np.asarray(samples)
        if samples.ndim != 1 or samples.dtype.kind != "f":
            raise AudioError(f"samples must be a 1-D float array, got shape {samples.shape}, dtype {samples.dtype}")
        samples = samples.astype(np.float32)
        if self.rate == self.new_rate:
            return samples
        self._num_in += len(samples)
        self._hold(samples)
        if self._num_pending < self._filter.span + self._block:
            return np.zeros(0, dtype=np.float32)
        return self._convolve()

    def finish(self) -> np.ndarray:
        """The rest, as if silence followed; as many in all as there are sample times within the input."""
        if self._finished:
            raise ValueError("this stream is finished: make a new StreamResampler for the next utterance")
        self._finished = True
        if self.rate == self.new_rate:
            return np.zeros(0, dtype=np.float32)
        total = -(-self._num_in * self.new_rate // self.rate)
        missing = total - self._num_out
        self._hold(np.zeros(self._filter.width + self._filter.step, dtype=np.float32))
        rest = self._convolve()[:missing]
        self._pending.clear()
        return rest

    def save(self) -> tuple[np.ndarray, dict[str, int]]:
        """The samples held back (n,) float32, and plain values: all that this stream knows of its past."""
        held = np.concatenate([np.zeros(0, dtype=np.float32), *self._pending])
        return held, {"num_in": self._num_in, "num_out": self._num_out, "finished": int(self._finished)}

    def restore(self, held: np.ndarray, values: dict[str, int]) -> None:
        """Go on where the stream that gave `save` stood; of the same rates. Raises ValueError for what it does not
        write: what is held follows from the counts."""
        num_in, num_out = (check_count(name, values[name]) for name in ("num_in", "num_out"))
        finished = check_count("finished", values["finished"], 1)
        num_held = 0
        if self.rate != self.new_rate and not finished:
            steps, rest = divmod(num_out, len(self._filter.taps))
            num_held = self._filter.width + num_in - steps * self._filter.step
            if rest or not 0 <= num_held < self._filter.span + self._block:
                raise ValueError(f"a resampler never has {num_in} samples in and {num_out} out")
        elif self.rate == self.new_rate and (num_in or num_out):
            raise ValueError(f"a resampler of equal rates counts nothing, got {num_in} and {num_out}")
        if held.shape != (num_held,) or held.dtype != np.float32 or not np.isfinite(held).all():
            raise ValueError(f"a resampler holds ({num_held},) finite float32 here, got {held.shape} {held.dtype}")
        self._num_in, self._num_out, self._finished = num_in, num_out, bool(finished)
        self._pending, self._num_pending = [held], len(held)

    def _hold(self, samples: np.ndarray) -> None:
        self._pending.append(samples)
        self._num_pending += len(samples)

    def _convolve(self) -> np.ndarray:
        held = np.concatenate(self._pending)
        num_steps = (len(held) - self._filter.span) // self._filter.step + 1
        if num_steps < 1:
            return np.zeros(0, dtype=np.float32)
        out = self._filter.apply(held, num_steps)
        self._pending = [held[num_steps * self._filter.step :].copy()]
        self._num_pending = len(self._pending[0])
        self._num_out += len(out)
        return out
