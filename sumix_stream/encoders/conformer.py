"""Conformer encoder (arXiv 2005.08100) with SummaryMixing or attention, whole-utterance and chunk by chunk.

B batch, T0 feature frames, T encoder frames, C frames of a chunk, D channels.
"""

import torch
from torch import Tensor, nn

from sumix_kernels.training import training_branches
from sumix_stream.config import EncoderConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.base import FusedMixer
from sumix_stream.encoders.convolution import ChunkConvolution
from sumix_stream.encoders.layered import LayeredEncoder
from sumix_stream.encoders.masking import mask_frames
from sumix_stream.encoders.mixers.none import NoMixer
from sumix_stream.encoders.states import LayerState
from sumix_stream.registry import MIXERS


class FeedForward(nn.Sequential):
    """LayerNorm, D -> ffn_dim, SiLU, -> D."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(
            nn.LayerNorm(config.dim),
            nn.Linear(config.dim, config.ffn_dim),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.ffn_dim, config.dim),
            nn.Dropout(config.dropout),
        )

    def add_half(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> x + half of this branch."""
        if branches := training_branches(x, self):
            norm, expand, _, dropout, contract, _ = self
            return branches.feed_forward(x, norm, expand, contract, 0.5, dropout.p if self.training else 0.0)
        return x + 0.5 * self(x)


class ConformerLayer(nn.Module):
    """Half feed-forward, mixer, convolution, half feed-forward, LayerNorm; residual around each."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.ffn1 = FeedForward(config)
        mixer = MIXERS.get(config.mixer)(config)
        self.mixes = not isinstance(mixer, NoMixer)
        self.mixer_norm = nn.LayerNorm(config.dim) if self.mixes else nn.Identity()
        self.mixer = mixer
        self.conv_norm = nn.LayerNorm(config.dim)
        self.conv = ChunkConvolution(config)
        self.ffn2 = FeedForward(config)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        # The residual sum of all layers keeps its variance, so that frames start out as different as their features
        # are (the initialisation of GPT-2). Without it training begins on a plateau of hundreds of steps.
        self.scale_residual_outputs((4 * config.num_layers) ** -0.5)

    @property
    def residual_outputs(self) -> list[nn.Linear]:
        """The last products of the four branches before their residual sums."""
        return [self.ffn1[-2], *self.mixer.residual_outputs, self.conv.out, self.ffn2[-2]]

    @torch.no_grad()
    def scale_residual_outputs(self, factor: float) -> None:
        for parameter in (p for branch in self.residual_outputs for p in branch.parameters()):
            parameter.mul_(factor)

    def init_state(self, batch_size: int, context: ChunkContext) -> LayerState:
        return LayerState(self.mixer.init_state(batch_size, context), self.conv.init_state(batch_size))

    def forward(self, x: Tensor, lengths: Tensor, context: ChunkContext) -> Tensor:
        """x (B, T, D), lengths (B,) -> (B, T, D)."""
        x = self.ffn1.add_half(x)
        x = self._add_mixer(x, lengths, context)
        x = self._add_convolution(x, lengths, context)
        x = self.ffn2.add_half(x)
        if branches := training_branches(x, self.norm):
            return branches.masked_norm(x, self.norm, lengths)
        return mask_frames(self.norm(x), lengths)

    def _add_mixer(self, x: Tensor, lengths: Tensor, context: ChunkContext) -> Tensor:
        mixer = self.mixer
        if not self.mixes:
            return x
        if isinstance(mixer, FusedMixer) and mixer.fuses and (branches := training_branches(x, self.mixer_norm, mixer)):
            return mixer.add_to(x, self.mixer_norm, lengths, context, branches)
        return x + mixer(self.mixer_norm(x), lengths, context)

    def _add_convolution(self, x: Tensor, lengths: Tensor, context: ChunkContext) -> Tensor:
        conv = self.conv
        if branches := training_branches(x, self.conv_norm, conv):
            parts = (self.conv_norm, conv.expand, conv.weight, conv.bias, conv.norm, conv.out)
            dropout = self.dropout.p if self.training else 0.0
            return branches.convolution(x, *parts, lengths, context.chunk_size, dropout)
        return x + self.dropout(conv(self.conv_norm(x), lengths, context))

    def step(self, x: Tensor, lengths: Tensor, state: LayerState, context: ChunkContext) -> tuple[Tensor, LayerState]:
        """One chunk x (B, <= C, D) with lengths (B,) valid frames."""
        x = self.ffn1.add_half(x)
        y, mixer_state = self.mixer.step(self.mixer_norm(x), lengths, state.mixer, context)
        x = x + y
        y, conv_state = self.conv.step(self.conv_norm(x), lengths, state.conv)
        x = x + y
        x = mask_frames(self.norm(self.ffn2.add_half(x)), lengths)
        return x, LayerState(mixer_state, conv_state)


class ConformerEncoder(LayeredEncoder):
    """Layers of half a feed-forward module, a mixer, a convolution, half a feed-forward module."""

    layer = ConformerLayer
