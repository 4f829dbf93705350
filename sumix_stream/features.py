"""The one filter bank: 80 log-mel bins, for whole utterances, for padded batches (any device) and for streams.

Definition (that of kaldi-native-fbank with the options sherpa-onnx sets for NeMo-style transducers): 16 kHz, 25 ms Hann
windows every 10 ms centred on their shift (snip_edges=false: both ends mirrored), no dither, no DC removal, preemphasis
0.97 within the window, 512-point power spectrum, slaney mel filters of unit area from 0 to 8000 Hz, natural logarithm
floored at 2**-23. Samples in [-1, 1]; no normalisation, the model does that.

The spectrum is taken in float64. Quiet bins beside a loud one lose all their digits to float32 rounding, which depends
on how many frames are transformed at once; in float64 whole utterances, batches and streams agree whatever the split.

Letters: B batch, S samples, T feature frames, M = 80 bins.
"""

import functools
from collections.abc import Callable

import kaldi_native_fbank as knf
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sumix_stream.timebase import Timebase

NUM_BINS = 80
_TIMEBASE = Timebase()
_RATE, _SHIFT, _LENGTH = _TIMEBASE.sample_rate, _TIMEBASE.frame_shift, _TIMEBASE.frame_length
_BEFORE = _TIMEBASE.lookbehind_samples  # frame f reads samples [f * _SHIFT - _BEFORE, f * _SHIFT - _BEFORE + _LENGTH)
_AFTER = _LENGTH - _BEFORE - _SHIFT // 2  # at most so many samples beyond the end are read by the last frame
FFT_SIZE = 512
PREEMPHASIS = 0.97
FLOOR = 2.0**-23
BLOCK = 1024  # frames transformed at once: bounds the memory of hour-long input


def mel_filters() -> np.ndarray:
    """Slaney mel filters of unit area, float32 (FFT_SIZE // 2 + 1, M).

    They are kaldi-native-fbank's own, with its float32 rounding: filters made in float64 differ by up to 5e-4.
    """
    mel, frame = knf.MelBanksOptions(), knf.FrameExtractionOptions()
    mel.num_bins, mel.low_freq, mel.high_freq, mel.is_librosa = NUM_BINS, 0, _RATE // 2, True
    frame.samp_freq, frame.frame_length_ms = _RATE, 1000 * _LENGTH / _RATE
    return np.array(knf.MelBanks(mel, frame).get_matrix()).T.copy()


def hann_window() -> Tensor:
    """(_LENGTH,) float64; its first element is zero."""
    return torch.hann_window(_LENGTH, periodic=True, dtype=torch.float64)


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Hann window (_LENGTH,) in the spectrum's type and mel filters (FFT_SIZE // 2 + 1, M) in float32."""
    spectrum_dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
    return hann_window().to(device, spectrum_dtype), torch.from_numpy(mel_filters()).to(device)


def _log_mel(extended: Tensor, num_frames: int) -> Tensor:
    """extended (B, S'), whose frame f starts at sample f * _SHIFT -> (B, num_frames, M) float32."""
    batch_size, size = len(extended), max(1, BLOCK // len(extended))
    feats = extended.new_empty(batch_size, num_frames, NUM_BINS, dtype=torch.float32)
    for begin in range(0, num_frames, size):
        end = min(begin + size, num_frames)
        feats[:, begin:end] = _log_mel_block(extended[:, begin * _SHIFT : (end - 1) * _SHIFT + _LENGTH])
    return feats


def _log_mel_of_array(extended: np.ndarray, num_frames: int) -> Tensor:
    return _log_mel(torch.from_numpy(extended)[None], num_frames)[0]


def _log_mel_block(samples: Tensor) -> Tensor:
    window, filters = _constants(samples.device)
    samples = samples.to(window.dtype)
    # A window's first sample has no predecessor to be emphasised by, but the Hann window is zero there.
    emphasised = F.pad(samples[:, 1:] - PREEMPHASIS * samples[:, :-1], (1, 0))
    frames = emphasised.unfold(1, _LENGTH, _SHIFT)
    padded = frames.new_zeros(*frames.shape[:2], FFT_SIZE)
    torch.mul(frames, window, out=padded[..., :_LENGTH])
    squares = torch.view_as_real(torch.fft.rfft(padded)).square_()
    power = (squares[..., 0] + squares[..., 1]).to(filters.dtype)  # .sum(-1) over pairs takes longer than the transform
    with torch.autocast(samples.device.type, enabled=False):  # which would take this product in half precision
        return (power @ filters).clamp_min_(FLOOR).log_()


class BatchFbank(nn.Module):
    """Filter bank of a padded batch, on the device of its waveforms. No parameters, no gradient, no state dict.

    An utterance's features do not depend on what it is padded or batched with, nor on what the padding holds.
    """

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """waveforms (B, S) 16 kHz in [-1, 1], lengths (B,) in samples -> features (B, T, M) float32, lengths (B,).

        T belongs to the padded S, so that nothing waits for the device; frames beyond a length are zero.
        """
        if waveforms.ndim != 2 or not waveforms.is_floating_point() or lengths.shape != waveforms.shape[:1]:
            raise ValueError(
                "waveforms must be (B, S), floating point, and lengths (B,); got "
                f"{tuple(waveforms.shape)}, {waveforms.dtype}, and {tuple(lengths.shape)}"
            )
        num_frames = _TIMEBASE.num_feature_frames(waveforms.shape[1])
        feat_lengths = _TIMEBASE.num_feature_frames(lengths)
        if waveforms.numel() == 0 or num_frames == 0:
            return waveforms.new_zeros(len(waveforms), num_frames, NUM_BINS, dtype=torch.float32), feat_lengths
        feats = _log_mel(_mirror_ends(waveforms.float(), lengths), num_frames)
        padding = torch.arange(num_frames, device=feats.device) >= feat_lengths[:, None]
        return feats.masked_fill_(padding[:, :, None], 0.0), feat_lengths


def _mirror_ends(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """(B, S) -> (B, _BEFORE + S + _AFTER): each utterance mirrored at its own two ends, as often as it takes."""
    period = lengths[:, None].clamp_min(1)

    def reflect(index: Tensor) -> Tensor:
        folded = index % (2 * period)
        return torch.minimum(folded, 2 * period - 1 - folded)

    before = torch.arange(-_BEFORE, 0, device=waveforms.device)
    after = lengths[:, None] + torch.arange(_AFTER, device=waveforms.device)
    head = waveforms.gather(1, reflect(before.expand(len(lengths), -1)))
    extended = torch.cat([head, waveforms, waveforms.new_zeros(len(lengths), _AFTER)], dim=1)
    return extended.scatter_(1, _BEFORE + after, waveforms.gather(1, reflect(after)))


def _as_float32(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(
            f"samples must be a 1-D float array in [-1, 1], got shape {samples.shape}, dtype {samples.dtype}"
        )
    return samples.astype(np.float32, copy=False)


_BATCH_FBANK = BatchFbank()
_NO_FRAMES = torch.zeros(0, NUM_BINS)


def fbank(samples: np.ndarray) -> Tensor:
    """Filter bank of a whole utterance: float samples (S,) at 16 kHz in [-1, 1] -> (T, M) float32.

    T = (S + 80) // 160. Raises ValueError for anything but a 1-D float array.
    """
    waveform = torch.from_numpy(np.array(_as_float32(samples)))
    feats, _ = _BATCH_FBANK(waveform[None], torch.tensor([len(waveform)]))
    return feats[0]


class FbankStream:
    """The filter bank of one utterance that arrives in pieces: the frames of `fbank`, each as soon as it is known.

    Holds one window of samples, whatever the pushes and however long the stream.

    Args:
        log_mel: (S,) of which frame f starts at sample 160 f, and how many frames -> features (T, M); None = PyTorch.
    """

    def __init__(self, log_mel: Callable[[np.ndarray, int], Tensor] | None = None) -> None:
        self._log_mel = log_mel or _log_mel_of_array
        self._held = np.empty(_LENGTH, dtype=np.float32)  # from the first sample that the next frame reads
        self._num_held = 0
        self._num_samples = 0
        self._num_frames = 0
        self._finished = False

    @property
    def nbytes(self) -> int:
        """Bytes of the remainder: samples kept for frames to come."""
        return self._held.nbytes

    def accept(self, samples: np.ndarray) -> Tensor:
        """Any number of float samples (n,) at 16 kHz in [-1, 1] -> (m, M) frames that became complete (m may be 0).

        Raises ValueError for anything but a 1-D float array, and after `finish`.
        """
        self._check_open()
        samples = _as_float32(samples)
        self._num_samples += len(samples)
        # The first window begins with the mirrored start of the utterance.
        missing = _LENGTH if self._num_frames else _LENGTH - _BEFORE
        if self._num_held + len(samples) < missing:
            self._hold(samples)
            return _NO_FRAMES
        extended, self._num_held = np.concatenate([self._held[: self._num_held], samples]), 0
        if self._num_frames == 0:
            extended = np.concatenate([extended[:_BEFORE][::-1], extended])
        return self._emit(extended, (len(extended) - _LENGTH) // _SHIFT + 1)

    def finish(self) -> Tensor:
        """The remaining frames (m, M), which read the mirrored end of the utterance."""
        self._check_open()
        self._finished = True
        rest, self._num_held = self._held[: self._num_held], 0
        if self._num_frames == 0:  # shorter than the first window: neither end has been mirrored
            return fbank(rest)
        num_frames = _TIMEBASE.num_feature_frames(self._num_samples) - self._num_frames
        return self._emit(np.concatenate([rest, rest[: -_AFTER - 1 : -1]]), num_frames)

    def save(self) -> tuple[np.ndarray, dict[str, int]]:
        """The remainder (n,) float32, and plain values: all that this stream knows of its past."""
        values = {"num_samples": self._num_samples, "num_frames": self._num_frames, "finished": int(self._finished)}
        return self._held[: self._num_held].copy(), values

    @classmethod
    def restore(
        cls,
        held: np.ndarray,
        values: dict[str, int],
        log_mel: Callable[[np.ndarray, int], Tensor] | None = None,
    ) -> "FbankStream":
        """The inverse of `save`."""
        stream = cls(log_mel)
        if held.ndim != 1 or len(held) > _LENGTH:
            raise ValueError(f"a filter bank holds at most {_LENGTH} samples, got shape {held.shape}")
        stream._hold(held)
        stream._num_samples, stream._num_frames = values["num_samples"], values["num_frames"]
        stream._finished = bool(values["finished"])
        return stream

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("this stream is finished: make a new FbankStream for the next utterance")

    def _hold(self, samples: np.ndarray) -> None:
        self._held[self._num_held : self._num_held + len(samples)] = samples
        self._num_held += len(samples)

    @torch.no_grad()
    def _emit(self, extended: np.ndarray, num_frames: int) -> Tensor:
        if num_frames == 0:
            return _NO_FRAMES
        self._num_frames += num_frames
        if not self._finished:
            self._hold(extended[num_frames * _SHIFT :])
        return self._log_mel(extended, num_frames)
