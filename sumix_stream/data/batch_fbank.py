"""The filter bank of training: `sumix_stream.features` for padded batches in PyTorch, on any device.

Letters: B batch, S samples, T feature frames, M = 80 bins.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sumix_stream.features import (
    AFTER,
    BEFORE,
    FFT_SIZE,
    FLOOR,
    NUM_BINS,
    PREEMPHASIS,
    TIMEBASE,
    hann_window,
    mel_filters,
)

_SHIFT, _LENGTH = TIMEBASE.frame_shift, TIMEBASE.frame_length
_BLOCK = 1024  # frames transformed at once: bounds the memory of hour-long input


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
        num_frames = TIMEBASE.num_feature_frames(waveforms.shape[1])
        feat_lengths = TIMEBASE.num_feature_frames(lengths)
        if waveforms.numel() == 0 or num_frames == 0:
            return waveforms.new_zeros(len(waveforms), num_frames, NUM_BINS, dtype=torch.float32), feat_lengths
        feats = _log_mel(_mirror_ends(waveforms.float(), lengths), num_frames)
        padding = torch.arange(num_frames, device=feats.device) >= feat_lengths[:, None]
        return feats.masked_fill_(padding[:, :, None], 0.0), feat_lengths


def _mirror_ends(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """(B, S) -> (B, BEFORE + S + AFTER): each utterance mirrored at its own two ends, as often as it takes."""
    period = lengths[:, None].clamp_min(1)

    def reflect(index: Tensor) -> Tensor:
        folded = index % (2 * period)
        return torch.minimum(folded, 2 * period - 1 - folded)

    before = torch.arange(-BEFORE, 0, device=waveforms.device)
    after = lengths[:, None] + torch.arange(AFTER, device=waveforms.device)
    head = waveforms.gather(1, reflect(before.expand(len(lengths), -1)))
    extended = torch.cat([head, waveforms, waveforms.new_zeros(len(lengths), AFTER)], dim=1)
    return extended.scatter_(1, BEFORE + after, waveforms.gather(1, reflect(after)))


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Hann window (_LENGTH,) in the spectrum's type and mel filters (FFT_SIZE // 2 + 1, M) in float32."""
    spectrum_dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
    window = torch.from_numpy(hann_window())
    return window.to(device, spectrum_dtype), torch.from_numpy(mel_filters()).to(device)


def _log_mel(extended: Tensor, num_frames: int) -> Tensor:
    """extended (B, S'), whose frame f starts at sample f * _SHIFT -> (B, num_frames, M) float32."""
    batch_size, size = len(extended), max(1, _BLOCK // len(extended))
    feats = extended.new_empty(batch_size, num_frames, NUM_BINS, dtype=torch.float32)
    for begin in range(0, num_frames, size):
        end = min(begin + size, num_frames)
        feats[:, begin:end] = _log_mel_block(extended[:, begin * _SHIFT : (end - 1) * _SHIFT + _LENGTH])
    return feats


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
