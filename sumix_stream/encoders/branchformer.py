"""Branchformer encoder (arXiv 2207.02971) with SummaryMixing or attention, whole-utterance and chunk by chunk.

Two branches hear the same frames: a mixer, and a multi-layer perceptron gated by a convolution (cgMLP). Their outputs
are concatenated and merged.

B batch, T encoder frames, C frames of a chunk, D channels, E channels of the cgMLP, k taps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sumix_kernels import chunk_conv1d, chunk_conv1d_step
from sumix_kernels.training import training_branches
from sumix_stream.config import EncoderConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.layered import LayeredEncoder
from sumix_stream.encoders.masking import mask_frames
from sumix_stream.encoders.mixers.none import NoMixer
from sumix_stream.encoders.states import LayerState
from sumix_stream.registry import MIXERS


class ConvolutionalGating(nn.Module):
    """Linear D -> E, GELU, convolutional spatial gating, linear E/2 -> D.

    The gate: half of the channels are normalised and convolved over time, depthwise, the past open and the future
    ending with the chunk; the other half is multiplied by the result.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        half, self.kernel_size = config.cgmlp_dim // 2, config.conv_kernel
        self.expand = nn.Linear(config.dim, config.cgmlp_dim)
        self.norm = nn.LayerNorm(half)
        # The gate begins at one, nearly, so that the module begins as a plain perceptron.
        self.weight = nn.Parameter(1e-6 * torch.randn(half, self.kernel_size))
        self.bias = nn.Parameter(torch.ones(half))
        self.out = nn.Linear(half, config.dim)

    def init_state(self, batch_size: int) -> Tensor:
        """The last k//2 inputs of the depthwise convolution, (B, k//2, E/2)."""
        return torch.zeros(batch_size, self.kernel_size // 2, len(self.bias), device=self.bias.device)

    def forward(self, x: Tensor, lengths: Tensor, context: ChunkContext) -> Tensor:
        """x (B, T, D), lengths (B,) -> (B, T, D)."""
        given, gate = F.gelu(self.expand(x)).chunk(2, dim=-1)
        gate = chunk_conv1d(self.norm(gate), self.weight, self.bias, lengths, context.chunk_size)
        return mask_frames(self.out(given * gate), lengths)

    def step(self, x: Tensor, lengths: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One chunk x (B, <= C, D) with lengths (B,) valid frames."""
        given, gate = F.gelu(self.expand(x)).chunk(2, dim=-1)
        gate, state = chunk_conv1d_step(self.norm(gate), lengths, state, self.weight, self.bias)
        return mask_frames(self.out(given * gate), lengths), state


class BranchformerLayer(nn.Module):
    """x + merge [mixer(LayerNorm(x)); cgMLP(LayerNorm(x))], LayerNorm; without a mixer there is nothing to merge."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        dim, mixer = config.dim, MIXERS.get(config.mixer)(config)
        self.mixes = not isinstance(mixer, NoMixer)
        self.mixer_norm = nn.LayerNorm(dim) if self.mixes else nn.Identity()
        self.mixer = mixer
        self.conv_norm = nn.LayerNorm(dim)
        self.conv = ConvolutionalGating(config)
        self.merge = nn.Linear(2 * dim, dim) if self.mixes else None
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)
        # As in a conformer's layer, of four branches: the residual sum of all layers keeps its variance.
        self.scale_residual_outputs(config.num_layers**-0.5)

    @property
    def residual_outputs(self) -> list[nn.Linear]:
        """The last product before the residual sum."""
        return [self.conv.out if self.merge is None else self.merge]

    @torch.no_grad()
    def scale_residual_outputs(self, factor: float) -> None:
        for parameter in (p for branch in self.residual_outputs for p in branch.parameters()):
            parameter.mul_(factor)

    def init_state(self, batch_size: int, context: ChunkContext) -> LayerState:
        return LayerState(self.mixer.init_state(batch_size, context), self.conv.init_state(batch_size))

    def forward(self, x: Tensor, lengths: Tensor, context: ChunkContext) -> Tensor:
        """x (B, T, D), lengths (B,) -> (B, T, D)."""
        y = self.mixer(self.mixer_norm(x), lengths, context) if self.mixes else None
        x = x + self._merged(y, self.dropout(self.conv(self.conv_norm(x), lengths, context)))
        if branches := training_branches(x, self.norm):
            return branches.masked_norm(x, self.norm, lengths)
        return mask_frames(self.norm(x), lengths)

    def step(self, x: Tensor, lengths: Tensor, state: LayerState, context: ChunkContext) -> tuple[Tensor, LayerState]:
        """One chunk x (B, <= C, D) with lengths (B,) valid frames."""
        y, mixer_state = self.mixer.step(self.mixer_norm(x), lengths, state.mixer, context)
        z, conv_state = self.conv.step(self.conv_norm(x), lengths, state.conv)
        x = mask_frames(self.norm(x + self._merged(y, z)), lengths)
        return x, LayerState(mixer_state, conv_state)

    def _merged(self, mixed: Tensor | None, convolved: Tensor) -> Tensor:
        if self.merge is None:
            return convolved
        return self.dropout(self.merge(torch.cat([mixed, convolved], dim=-1)))


class BranchformerEncoder(LayeredEncoder):
    """Layers of a mixer beside a perceptron gated by a convolution."""

    layer = BranchformerLayer
