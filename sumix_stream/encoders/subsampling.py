"""Convolutional front ends: normalisation, then strided convolutions, four or eight feature frames to an encoder frame.

Neither adds look-ahead: encoder frame t of subsampling s depends on feature frames s(t-1)+1 .. st+s-1, so a chunk of C
encoder frames needs exactly its own sC feature frames. Frames before the first and after the last of an utterance count
as zero at every stage.

B batch, T0 feature frames, F mel bins, H channels, T = ceil(T0 / s) encoder frames, D channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sumix_kernels.training import training_branches
from sumix_stream.config import EncoderConfig
from sumix_stream.encoders.masking import mask_frames
from sumix_stream.encoders.states import SeparableSubsamplingState, SubsamplingState
from sumix_stream.features import NUM_BINS
from sumix_stream.timebase import Timebase

_SILU_GAIN = 1.68  # keeps the mean square of a normal variable: 1 / sqrt(E[silu(x) ** 2])


def make_subsampling(config: EncoderConfig, timebase: Timebase) -> nn.Module:
    """The front end of a configuration. Raises ValueError where the timebase is of another subsampling."""
    if timebase.subsampling != config.subsampling:
        raise ValueError(
            f"encoder.subsampling is {config.subsampling}, the timebase's {timebase.subsampling}: "
            "use the configuration's own timebase"
        )
    kind = ConvSubsampling if config.subsampling == 4 else SeparableSubsampling
    return kind(NUM_BINS, config.subsampling_channels, config.dim, config.dropout, timebase)


class ConvSubsampling(nn.Module):
    """(B, T0, F) -> (B, T, D) by four: two convolutions of 3 by 3 with strides of 2."""

    def __init__(self, num_bins: int, channels: int, dim: int, dropout: float, timebase: Timebase) -> None:
        super().__init__()
        self.timebase = timebase
        self.channels = channels
        self.num_bins = num_bins
        self.register_buffer("feature_mean", torch.zeros(num_bins))
        self.register_buffer("feature_std", torch.ones(num_bins))
        # Time is padded by hand (history on the left); mel bins by one on each side.
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=(0, 1))
        self._make_later_stages(channels)
        self.out = nn.Linear(channels * -(-num_bins // timebase.subsampling), dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def _make_later_stages(self, channels: int) -> None:
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=(0, 1))

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Store mean and standard deviation of features, (F,) each. Raises ValueError for what cannot be these."""
        for name, buffer, value in (("mean", self.feature_mean, mean), ("std", self.feature_std, std)):
            value = torch.as_tensor(value, dtype=buffer.dtype)
            if value.shape != buffer.shape or not value.isfinite().all() or (name == "std" and not (value > 0).all()):
                raise ValueError(f"feature {name} must be {tuple(buffer.shape)} finite (std positive) numbers")
            buffer.copy_(value)

    def init_state(self, batch_size: int) -> SubsamplingState:
        return SubsamplingState(self._past(batch_size), self._past(batch_size, 2))

    def _past(self, batch_size: int, stride: int = 1) -> Tensor:
        """Zeros for the frame before a stage: features (B, 1, F), or what lies `stride` below them (B, H, 1, F')."""
        shape = (1, self.num_bins) if stride == 1 else (self.channels, 1, -(-self.num_bins // stride))
        return torch.zeros(batch_size, *shape, device=self.feature_mean.device)

    def forward(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Whole utterances: feats (B, T0, F), lengths (B,) -> (B, T, D), (B,)."""
        branches = training_branches(feats, self)
        if branches and not feats.requires_grad:
            x = mask_frames((feats - self.feature_mean) / self.feature_std, lengths)
            y = self._convolve(branches, x, lengths)
            # Channels come last there, bins in `out`'s weights.
            weight = self.out.weight.unflatten(1, (self.channels, -1)).transpose(1, 2).flatten(1)
            out_lengths = self.timebase.num_encoder_frames(lengths)
            dropout = self.dropout.p if self.training else 0.0
            y = F.linear(y, weight, self.out.bias)
            return branches.masked_norm(y, self.norm, out_lengths, dropout), out_lengths
        out, out_lengths, _ = self.step(feats, lengths, self.init_state(feats.shape[0]))
        return out, out_lengths

    def _convolve(self, branches, x: Tensor, lengths: Tensor) -> Tensor:
        """Normalised features (B, T0, F) through the convolutions, compiled: (B, T, F' H), bins first."""
        return branches.front_end(x, self.conv1, self.conv2, lengths)

    def step(self, feats: Tensor, lengths: Tensor, state: SubsamplingState) -> tuple[Tensor, Tensor, SubsamplingState]:
        """One chunk after the past in `state`; a chunk that another follows holds a whole number of encoder frames."""
        x, hidden = self._first_stage(feats, lengths, state)
        y = F.silu(self.conv2(_to_odd(hidden)))
        return *self._last_stage(y, lengths), SubsamplingState(x[:, -1:], hidden[:, :, -1:])

    def _first_stage(self, feats: Tensor, lengths: Tensor, state: SubsamplingState) -> tuple[Tensor, Tensor]:
        """Normalised features (B, 1 + T0, F) and what the second stage reads (B, H, 1 + T1, F/2), with their pasts."""
        x = mask_frames((feats - self.feature_mean) / self.feature_std, lengths)
        x = torch.cat([state.feats.to(x.dtype), x], dim=1)
        hidden = F.silu(self.conv1(_to_odd(x.unsqueeze(1))))
        return x, _joined(state.hidden, hidden, (lengths + 1) // 2)

    def _last_stage(self, y: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.out(y.transpose(1, 2).flatten(2)))
        out_lengths = self.timebase.num_encoder_frames(lengths)
        return mask_frames(self.dropout(y), out_lengths), out_lengths


class SeparableStage(nn.Module):
    """A depthwise convolution of 3 by 3 with strides of 2, a product over channels, SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride=2, padding=(0, 1), groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, 1 + T, F), its first frame of the past -> (B, H, ceil(T / 2), ceil(F / 2))."""
        return F.silu(self.pointwise(self.depthwise(_to_odd(x))))


class SeparableSubsampling(ConvSubsampling):
    """(B, T0, F) -> (B, T, D) by eight, as in the Fast Conformer (arXiv 2305.05084): one convolution of 3 by 3 and two
    depthwise-separable ones, all with strides of 2."""

    def _make_later_stages(self, channels: int) -> None:
        self.stages = nn.ModuleList(SeparableStage(channels) for _ in range(2))
        # PyTorch's own beginning shrinks the signal threefold a layer and adds constants that do not shrink: after five
        # layers the norm saw 1 part of speech in 100, and small models stood still.
        nn.init.normal_(self.conv1.weight, std=_SILU_GAIN / 3)
        nn.init.zeros_(self.conv1.bias)
        for stage in self.stages:
            nn.init.normal_(stage.depthwise.weight, std=1 / 3)
            nn.init.normal_(stage.pointwise.weight, std=_SILU_GAIN / channels**0.5)
            nn.init.zeros_(stage.depthwise.bias)
            nn.init.zeros_(stage.pointwise.bias)

    def init_state(self, batch_size: int) -> SeparableSubsamplingState:
        return SeparableSubsamplingState(*(self._past(batch_size, stride) for stride in (1, 2, 4)))

    def _convolve(self, branches, x: Tensor, lengths: Tensor) -> Tensor:
        return branches.separable_front_end(x, self.conv1, self.stages, lengths)

    def step(
        self, feats: Tensor, lengths: Tensor, state: SeparableSubsamplingState
    ) -> tuple[Tensor, Tensor, SeparableSubsamplingState]:
        x, hidden = self._first_stage(feats, lengths, state)
        second, third = self.stages
        hidden2 = _joined(state.hidden2, second(hidden), (lengths + 3) // 4)
        next_state = SeparableSubsamplingState(x[:, -1:], hidden[:, :, -1:], hidden2[:, :, -1:])
        return *self._last_stage(third(hidden2), lengths), next_state


def _joined(past: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
    """The frame before x (B, H, T, F), and x, zero at and past the lengths."""
    return torch.cat([past.to(x.dtype), mask_frames(x.transpose(1, 2), lengths).transpose(1, 2)], dim=2)


def _to_odd(x: Tensor) -> Tensor:
    """x (B, H, T, F), with a frame of zeros at its end where T is even: what strides of two take."""
    return x if x.shape[2] % 2 else F.pad(x, (0, 0, 0, 1))
