"""SummaryMixing (arXiv 2307.07421; under chunk contexts arXiv 2409.07165): a mean over the visible frames in place of
self-attention, in linear time and with a state of constant size.

    f_t = GELU(W_f x_t)    s_t = GELU(W_s x_t)    h_t = GELU(W_cf f_t + W_cm mean_{n(t)} + b)

B batch, T frames, C frames of a chunk, N chunks, D channels.
"""

from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sumix_kernels import (
    DecayState,
    SummaryState,
    chunk_decay_mean,
    chunk_decay_step,
    chunk_summary,
    chunk_summary_step,
    merge_chunks,
)
from sumix_stream.config import EncoderConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.masking import mask_frames


class BlockLinear(nn.Module):
    """A block-diagonal projection: each of `num_blocks` groups of channels is mapped by its own matrix."""

    def __init__(self, dim: int, num_blocks: int) -> None:
        super().__init__()
        if dim % num_blocks:
            raise ValueError(f"encoder.dim must be a multiple of encoder.num_heads, got {dim} and {num_blocks}")
        blocks = [nn.Linear(dim // num_blocks, dim // num_blocks) for _ in range(num_blocks)]
        self.weight = nn.Parameter(torch.stack([block.weight.detach() for block in blocks]))
        self.bias = nn.Parameter(torch.cat([block.bias.detach() for block in blocks]))

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.unflatten(-1, (self.weight.shape[0], -1))
        return torch.einsum("...gi,goi->...go", blocks, self.weight).flatten(-2) + self.bias


class SummaryMixing(nn.Module):
    """The mixer, in four variants.

    fast: one projection split into local and summary halves (default). full: separate block-diagonal projections.
    lite: no local branch. expdecay: as fast, with weights decay**|distance| in the mean.
    """

    peak_rate = 1e-3  # learning rate at 144 channels: at 2e-3 some runs on five hours of speech stand still

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        dim, self.variant, self.decay = config.dim, config.summary_variant, config.decay
        self.dropout = config.dropout
        if self.variant == "full":
            self.local_projection = BlockLinear(dim, config.num_heads)
            self.summary_projection = BlockLinear(dim, config.num_heads)
        else:
            self.projection = nn.Linear(dim, dim if self.variant == "lite" else 2 * dim)
        if self.variant != "lite":
            self.merge_local = nn.Linear(dim, dim, bias=False)
        self.merge_summary = nn.Linear(dim, dim)

    @property
    def residual_outputs(self) -> list[nn.Linear]:
        """The last products before the residual sum."""
        return [self.merge_summary] if self.variant == "lite" else [self.merge_local, self.merge_summary]

    def describe(self) -> str:
        return f"SummaryMixing ({self.variant})"

    def state_grows(self, context: ChunkContext) -> bool:
        return False

    def init_state(self, batch_size: int, context: ChunkContext) -> SummaryState | DecayState:
        kind = DecayState if self.variant == "expdecay" else SummaryState
        weight = self.merge_summary.weight
        return kind.init(batch_size, weight.shape[0], context.left_context, weight.device)

    def forward(self, x: Tensor, lengths: Tensor, context: ChunkContext) -> Tensor:
        """x (B, T, D), lengths (B,) -> (B, T, D), in time and memory linear in T; dropout at its end when training."""
        local, summands = self._project(x)
        chunk_size = context.chunk_size
        if self.variant == "expdecay":
            mean = chunk_decay_mean(F.gelu(summands), lengths, chunk_size, context.left_context, self.decay)
            chunk_size = 1
        else:
            mean = chunk_summary(summands, lengths, chunk_size, context.left_context, gelu=True)
        # The product is done once a chunk, not once a frame.
        merged, local = self.merge_summary(mean), None if local is None else self.merge_local(local)
        dropout = self.dropout if self.training else 0.0
        return merge_chunks(local, merged, lengths, chunk_size, num_frames=x.shape[1], dropout=dropout)

    @property
    def fuses(self) -> bool:
        return self.variant == "fast"

    def add_to(
        self, x: Tensor, norm: nn.LayerNorm, lengths: Tensor, context: ChunkContext, branches: ModuleType
    ) -> Tensor:
        """x + forward(norm(x), lengths, context) by `sumix_kernels.training.branches`."""
        parts = (norm, self.projection, self.merge_local, self.merge_summary)
        dropout = self.dropout if self.training else 0.0
        return branches.summary_mixer(x, *parts, lengths, context.chunk_size, context.left_context, dropout)

    def step(
        self, x: Tensor, lengths: Tensor, state: SummaryState | DecayState, context: ChunkContext
    ) -> tuple[Tensor, SummaryState | DecayState]:
        """One chunk x (B, <= C, D) with lengths (B,) valid frames."""
        local, summands = self._project(x)
        if self.variant == "expdecay":
            mean, state = chunk_decay_step(F.gelu(summands), lengths, state, context.chunk_size, self.decay)
            merged = self.merge_summary(mean)
        else:
            mean, state = chunk_summary_step(summands, lengths, state, gelu=True)
            merged = self.merge_summary(mean).unsqueeze(1)
        if local is not None:
            merged = self.merge_local(local) + merged
        return mask_frames(F.gelu(merged.expand(-1, x.shape[1], -1)), lengths), state

    def _project(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Local features, None without a local branch, and what the summary's GELU takes, (B, T, D) each."""
        if self.variant == "full":
            return F.gelu(self.local_projection(x)), self.summary_projection(x)
        projected = self.projection(x)
        if self.variant == "lite":
            return None, projected
        local, summands = projected.chunk(2, dim=-1)
        return F.gelu(local), summands
