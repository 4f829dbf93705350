"""Other sample rates: a windowed sinc, for whole utterances and for streams."""

import functools
import logging
import math
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from sumix_stream.audio.samples import MODEL_RATE, AudioError, check_rate
from sumix_stream.trees import check_count

_MAX_PHASES = 1 << 24  # reduced rates multiplied: those with no common factor would hold back seconds of a stream
_ZERO_CROSSINGS, _ROLLOFF = 6, 0.99  # of the resampling filter: those of torchaudio
_FEW_PHASES = 8  # up to so many, each is filtered by itself; more are gathered
_GATHERED = 4096  # outputs whose inputs are gathered at once: they stay in the cache
_BLOCKS_PER_SECOND = 200  # a stream of tiny pushes is resampled in blocks of 5 ms

_log = logging.getLogger(__name__)


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
