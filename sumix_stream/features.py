"""The one filter bank: 80 log-mel bins, for whole utterances and for streams; for batches see data/batch_fbank.py.

Definition (that of kaldi-native-fbank with the options sherpa-onnx sets for NeMo-style transducers): 16 kHz, 25 ms Hann
windows every 10 ms centred on their shift (snip_edges=false: both ends mirrored), no dither, no DC removal, preemphasis
0.97 within the window, 512-point power spectrum, slaney mel filters of unit area from 0 to 8000 Hz, natural logarithm
floored at 2**-23. Samples in [-1, 1]; no normalisation, the model does that.

The spectrum is taken in float64. Quiet bins beside a loud one lose all their digits to float32 rounding, which depends
on how many frames are transformed at once. Here no frame's arithmetic depends on its neighbours: whole utterances and
streams are the same bits, whatever the split. What surrounds the transform is compiled where Numba is installed.

Letters: S samples, T feature frames, M = 80 bins.
"""

import functools
from collections.abc import Callable

import kaldi_native_fbank as knf
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from sumix_stream.timebase import Timebase
from sumix_stream.trees import check_count

LogMel = Callable[[np.ndarray, int], np.ndarray]  # (S,) whose frame f starts at sample 160 f, T -> features (T, M)

NUM_BINS = 80
TIMEBASE = Timebase()
_RATE, _SHIFT, _LENGTH = TIMEBASE.sample_rate, TIMEBASE.frame_shift, TIMEBASE.frame_length
BEFORE = TIMEBASE.lookbehind_samples  # frame f reads samples [f * _SHIFT - BEFORE, f * _SHIFT - BEFORE + _LENGTH)
AFTER = _LENGTH - BEFORE - _SHIFT // 2  # at most so many samples beyond the end are read by the last frame
FFT_SIZE = 512
PREEMPHASIS = 0.97
FLOOR = 2.0**-23
BLOCK = 128  # frames transformed at once: they stay in the cache, and hour-long input takes no more memory


def mel_filters() -> np.ndarray:
    """Slaney mel filters of unit area, float32 (FFT_SIZE // 2 + 1, M).

    They are kaldi-native-fbank's own, with its float32 rounding: filters made in float64 differ by up to 5e-4.
    """
    mel, frame = knf.MelBanksOptions(), knf.FrameExtractionOptions()
    mel.num_bins, mel.low_freq, mel.high_freq, mel.is_librosa = NUM_BINS, 0, _RATE // 2, True
    frame.samp_freq, frame.frame_length_ms = _RATE, 1000 * _LENGTH / _RATE
    return np.array(knf.MelBanks(mel, frame).get_matrix()).T.copy()


def hann_window() -> np.ndarray:
    """(_LENGTH,) float64; its first element is zero."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_LENGTH) / _LENGTH)


@functools.cache
def _constants() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Window (_LENGTH,); of the filters one behind the other: the frequencies (N,) that each reads, their weights (N,),
    and where each begins (M,)."""
    inside = [np.flatnonzero(column) for column in mel_filters().T]
    bins = [np.arange(found[0], found[-1] + 1) for found in inside]
    weights = [column[band] for column, band in zip(mel_filters().T, bins, strict=True)]
    begins = np.cumsum([0, *map(len, bins[:-1])])
    return hann_window(), np.concatenate(bins), np.concatenate(weights), begins


def numpy_log_mel(extended: np.ndarray, num_frames: int) -> np.ndarray:
    """Samples (S,), of which frame f begins at sample 160 f -> features (num_frames, M) float32.

    No matrix product: the bits of one depend on how many frames there are and on where in a block a frame lies.
    """
    window, bins, weights, begins = _constants()
    feats = np.empty((num_frames, NUM_BINS), dtype=np.float32)
    for begin in range(0, num_frames, BLOCK):
        block = feats[begin : begin + BLOCK]
        samples = extended[begin * _SHIFT :][: (len(block) - 1) * _SHIFT + _LENGTH].astype(np.float64)
        # A window's first sample has no predecessor to be emphasised by, but the Hann window is zero there.
        samples[1:] -= PREEMPHASIS * samples[:-1]
        frames = np.zeros((len(block), FFT_SIZE))
        np.multiply(sliding_window_view(samples, _LENGTH)[::_SHIFT], window, out=frames[:, :_LENGTH])
        squares = np.square(np.fft.rfft(frames).view(np.float64))
        power = (squares[:, 0::2] + squares[:, 1::2]).astype(np.float32)
        np.add.reduceat(power[:, bins] * weights, begins, axis=1, out=block)
        np.log(np.maximum(block, np.float32(FLOOR), out=block), out=block)
    return feats


@functools.cache
def compiled_log_mel() -> LogMel:
    """As `numpy_log_mel`, in a quarter of its time, compiled by Numba. Raises ImportError where that is missing."""
    from sumix_kernels import cpu

    window, filters = hann_window(), np.ascontiguousarray(mel_filters().T)
    inside = [np.flatnonzero(row) for row in filters]
    bounds = np.array([[bins[0], bins[-1] + 1] for bins in inside])
    floor = np.float32(FLOOR)

    def log_mel(extended: np.ndarray, num_frames: int) -> np.ndarray:
        feats = np.empty((num_frames, NUM_BINS), np.float32)
        for begin in range(0, num_frames, BLOCK):
            block = feats[begin : begin + BLOCK]
            frames = np.zeros((len(block), FFT_SIZE))
            cpu.cut_frames(extended[begin * _SHIFT :], _SHIFT, PREEMPHASIS, window, frames)
            cpu.log_mel(np.fft.rfft(frames), filters, bounds, floor, block)
        return feats

    return log_mel


def fastest_log_mel() -> LogMel:
    """What computes the features of recognition here."""
    try:
        return compiled_log_mel()
    except ImportError:  # no Numba, or not for this processor
        return numpy_log_mel


def _as_float32(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(
            f"samples must be a 1-D float array in [-1, 1], got shape {samples.shape}, dtype {samples.dtype}"
        )
    return samples.astype(np.float32, copy=False)


def _mirror_both_ends(samples: np.ndarray, num_frames: int) -> np.ndarray:
    """What the frames of an utterance shorter than a window read: it and its mirror images, as often as it takes."""
    if num_frames == 0:
        return samples
    index = np.arange(-BEFORE, (num_frames - 1) * _SHIFT - BEFORE + _LENGTH) % (2 * len(samples))
    return samples[np.minimum(index, 2 * len(samples) - 1 - index)]


def whole_fbank(samples: np.ndarray, log_mel: LogMel | None = None) -> np.ndarray:
    """Filter bank of a whole utterance: float samples (S,) at 16 kHz in [-1, 1] -> (T, M) float32.

    T = (S + 80) // 160. Raises ValueError for anything but a 1-D float array.
    """
    stream = FbankStream(log_mel)
    return np.concatenate([stream.accept(samples), stream.finish()])


class FbankStream:
    """The filter bank of one utterance that arrives in pieces: `whole_fbank`, each frame as soon as it is known.

    Holds one window of samples, whatever the pushes and however long the stream.

    Args:
        log_mel: what computes the frames; None = the fastest there is.
    """

    def __init__(self, log_mel: LogMel | None = None) -> None:
        self._log_mel = log_mel or fastest_log_mel()
        self._held = np.empty(_LENGTH, dtype=np.float32)  # from the first sample that the next frame reads
        self._num_held = 0
        self._num_samples = 0
        self._num_frames = 0
        self._finished = False

    @property
    def num_frames(self) -> int:
        """Frames that have been given out."""
        return self._num_frames

    @property
    def nbytes(self) -> int:
        """Bytes of the remainder: samples kept for frames to come."""
        return self._held.nbytes

    def accept(self, samples: np.ndarray) -> np.ndarray:
        """Any number of float samples (n,) at 16 kHz in [-1, 1] -> (m, M) frames that became complete (m may be 0).

        Raises ValueError for anything but a 1-D float array, and after `finish`.
        """
        self._check_open()
        samples = _as_float32(samples)
        self._num_samples += len(samples)
        # The first window begins with the mirrored start of the utterance.
        missing = _LENGTH if self._num_frames else _LENGTH - BEFORE
        if self._num_held + len(samples) < missing:
            self._hold(samples)
            return np.zeros((0, NUM_BINS), np.float32)
        extended, self._num_held = np.concatenate([self._held[: self._num_held], samples]), 0
        if self._num_frames == 0:
            extended = np.concatenate([extended[:BEFORE][::-1], extended])
        return self._emit(extended, (len(extended) - _LENGTH) // _SHIFT + 1)

    def finish(self) -> np.ndarray:
        """The remaining frames (m, M), which read the mirrored end of the utterance."""
        self._check_open()
        self._finished = True
        rest, self._num_held = self._held[: self._num_held], 0
        if self._num_frames == 0:  # shorter than the first window: neither end has been mirrored
            num_frames = TIMEBASE.num_feature_frames(len(rest))
            return self._emit(_mirror_both_ends(rest, num_frames), num_frames)
        num_frames = TIMEBASE.num_feature_frames(self._num_samples) - self._num_frames
        return self._emit(np.concatenate([rest, rest[: -AFTER - 1 : -1]]), num_frames)

    def save(self) -> tuple[np.ndarray, dict[str, int]]:
        """The remainder (n,) float32, and plain values: all that this stream knows of its past."""
        values = {"num_samples": self._num_samples, "num_frames": self._num_frames, "finished": int(self._finished)}
        return self._held[: self._num_held].copy(), values

    @classmethod
    def restore(cls, held: np.ndarray, values: dict[str, int]) -> "FbankStream":
        """The inverse of `save`. Raises ValueError for what it does not write: the counts follow from each other."""
        stream = cls()
        num_samples = check_count("num_samples", values["num_samples"])
        finished = check_count("finished", values["finished"], 1)
        whole = (BEFORE + num_samples - _LENGTH) // _SHIFT + 1 if num_samples >= _LENGTH - BEFORE else 0
        num_frames = TIMEBASE.num_feature_frames(num_samples) if finished else whole
        num_held = 0 if finished else num_samples + (BEFORE - whole * _SHIFT if whole else 0)
        if values["num_frames"] != num_frames:
            raise ValueError(f"{num_samples} samples give {num_frames} frames, not {values['num_frames']}")
        if held.shape != (num_held,) or held.dtype != np.float32 or not np.isfinite(held).all():
            raise ValueError(f"a filter bank holds ({num_held},) finite float32 here, got {held.shape} {held.dtype}")
        stream._hold(held)
        stream._num_samples, stream._num_frames, stream._finished = num_samples, num_frames, bool(finished)
        return stream

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("this stream is finished: make a new FbankStream for the next utterance")

    def _hold(self, samples: np.ndarray) -> None:
        self._held[self._num_held : self._num_held + len(samples)] = samples
        self._num_held += len(samples)

    def _emit(self, extended: np.ndarray, num_frames: int) -> np.ndarray:
        if num_frames == 0:
            return np.zeros((0, NUM_BINS), np.float32)
        self._num_frames += num_frames
        if not self._finished:
            self._hold(extended[num_frames * _SHIFT :])
        return self._log_mel(extended, num_frames)
