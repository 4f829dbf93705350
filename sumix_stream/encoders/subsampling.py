"""Convolutional front end: normalisation, then two strided convolutions, four feature frames to one encoder frame.

B batch, T0 feature frames, F mel bins, H channels, T = ceil(T0 / 4) encoder frames, D channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sumix_kernels.training import training_branches
from sumix_stream.encoders.masking import mask_frames
from sumix_stream.encoders.states import SubsamplingState
from sumix_stream.timebase import Timebase


class ConvSubsampling(nn.Module):
    """(B, T0, F) -> (B, T, D); the front end adds no look-ahead.

    Encoder frame t depends on feature frames 4t-3 .. 4t+3, so a chunk of C encoder frames needs exactly its own 4C
    feature frames. Frames before the first and after the last of an utterance count as zero at both stages.
    """

    def __init__(self, num_bins: int, channels: int, dim: int, dropout: float, timebase: Timebase) -> None:
        super().__init__()
        if timebase.subsampling != 4:
            raise ValueError(f"two stride-2 convolutions subsample by 4, got subsampling {timebase.subsampling}")
        self.timebase = timebase
        self.channels = channels
        self.num_bins = num_bins
        self.register_buffer("feature_mean", torch.zeros(num_bins))
        self.register_buffer("feature_std", torch.ones(num_bins))
        # Time is padded by hand (history on the left); mel bins by one on each side.
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=(0, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=(0, 1))
        self.out = nn.Linear(channels * ((num_bins + 3) // 4), dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def init_state(self, batch_size: int) -> SubsamplingState:
        device = self.feature_mean.device
        return SubsamplingState(
            torch.zeros(batch_size, 1, self.num_bins, device=device),
            torch.zeros(batch_size, self.channels, 1, (self.num_bins + 1) // 2, device=device),
        )

    def forward(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Whole utterances: feats (B, T0, F), lengths (B,) -> (B, T, D), (B,)."""
        branches = training_branches(feats, self)
        if branches and not feats.requires_grad:
            x = mask_frames((feats - self.feature_mean) / self.feature_std, lengths)
            y = branches.front_end(x, self.conv1, self.conv2, lengths)
            # Channels come last there, bins in `out`'s weights.
            weight = self.out.weight.unflatten(1, (self.channels, -1)).transpose(1, 2).flatten(1)
            out_lengths = self.timebase.num_encoder_frames(lengths)
            dropout = self.dropout.p if self.training else 0.0
            y = F.linear(y, weight, self.out.bias)
            return branches.masked_norm(y, self.norm, out_lengths, dropout), out_lengths
        out, out_lengths, _ = self.step(feats, lengths, self.init_state(feats.shape[0]))
        return out, out_lengths

    def step(self, feats: Tensor, lengths: Tensor, state: SubsamplingState) -> tuple[Tensor, Tensor, SubsamplingState]:
        """One chunk after the past in `state`; a chunk that another follows holds a multiple of four frames."""
        x = mask_frames((feats - self.feature_mean) / self.feature_std, lengths)
        x = torch.cat([state.feats.to(x.dtype), x], dim=1)
        hidden = F.silu(self.conv1(_to_odd(x.unsqueeze(1))))
        hidden = mask_frames(hidden.transpose(1, 2), (lengths + 1) // 2).transpose(1, 2)
        hidden = torch.cat([state.hidden.to(x.dtype), hidden], dim=2)
        next_state = SubsamplingState(x[:, -1:], hidden[:, :, -1:])
        y = F.silu(self.conv2(_to_odd(hidden)))
        y = self.norm(self.out(y.transpose(1, 2).flatten(2)))
        out_lengths = self.timebase.num_encoder_frames(lengths)
        return mask_frames(self.dropout(y), out_lengths), out_lengths, next_state


def _to_odd(x: Tensor) -> Tensor:
    """x (B, H, T, F), with a frame of zeros at its end where T is even: what strides of two take."""
    return x if x.shape[2] % 2 else F.pad(x, (0, 0, 0, 1))
