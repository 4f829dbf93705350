"""SummaryMixing (arXiv 2307.07421; under chunk contexts arXiv 2409.07165): a mean over the visible frames in place of
self-attention, in linear time and with a state of constant size.

    f_t = f(x_t)    s_t = s(x_t)    h_t = GELU(W_cf f_t + W_cm mean_{n(t)} + b)

The mean is of s over the visible frames. f and s are one or two layers with GELU after each.

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
    """The mixer. `encoder.summary_variant`:

    fast: f and s are the halves of one projection (default).
    full: f and s of `encoder.mlp_layers` layers each, block-diagonal over `encoder.num_heads` blocks.
    lite: s alone, as in full; h_t is the mean itself. With one layer, as before there was a choice: one plain layer,
        and GELU(W_cm mean + b).
    expdecay: fast with `encoder.decay`; it is full with `encoder.summary_decay` in the paper.

    With a decay the mean is weighted by decay**|distance|. With `encoder.summary_norm` LayerNorms follow f and s.
    """

    peak_rate = 1e-3  # learning rate at 144 channels: at 2e-3 some runs on five hours of speech stand still

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        dim, self.variant, self.decay = config.dim, config.summary_variant, config.mean_decay
        self.dropout = config.dropout
        deep = config.mlp_layers == 2 and self.variant in ("full", "lite")
        self.local_hidden = BlockLinear(dim, config.num_heads) if deep and self.variant == "full" else None
        self.summary_hidden = BlockLinear(dim, config.num_heads) if deep else None
        if self.variant == "full":
            self.local_projection = BlockLinear(dim, config.num_heads)
        if self.variant == "full" or deep:
            self.summary_projection = BlockLinear(dim, config.num_heads)
        else:
            self.projection = nn.Linear(dim, dim if self.variant == "lite" else 2 * dim)
        self.local_norm = nn.LayerNorm(dim) if config.summary_norm and self.variant == "full" else None
        self.summary_norm = nn.LayerNorm(dim) if config.summary_norm else None
        if self.variant != "lite":
            self.merge_local = nn.Linear(dim, dim, bias=False)
        self.merge_summary = None if self.variant == "lite" and deep else nn.Linear(dim, dim)

    @property
    def residual_outputs(self) -> list[nn.Module]:
        """The last products before the residual sum."""
        if self.merge_summary is None:
            return [self.summary_projection]
        return [self.merge_summary] if self.variant == "lite" else [self.merge_local, self.merge_summary]

    def describe(self) -> str:
        told = self.variant
        if self.decay is not None and self.variant != "expdecay":
            told += f", decay {self.decay:g}"
        return f"SummaryMixing ({told})"

    def state_grows(self, context: ChunkContext) -> bool:
        return False

    def init_state(self, batch_size: int, context: ChunkContext) -> SummaryState | DecayState:
        kind = SummaryState if self.decay is None else DecayState
        last = self.residual_outputs[-1].bias  # (D,)
        return kind.init(batch_size, len(last), context.left_context, last.device)

    def forward(self, x: Tensor, lengths: Tensor, context: ChunkContext) -> Tensor:
        """x (B, T, D), lengths (B,) -> (B, T, D), in time and memory linear in T; dropout at its end when training."""
        local, summands, raw = self._project(x)
        chunk_size, dropout = context.chunk_size, self.dropout if self.training else 0.0
        if self.decay is not None:
            summands = F.gelu(summands) if raw else summands
            mean = chunk_decay_mean(summands, lengths, chunk_size, context.left_context, self.decay)
            chunk_size = 1
        else:
            mean = chunk_summary(summands, lengths, chunk_size, context.left_context, gelu=raw)
        if self.merge_summary is None:
            y = mask_frames(_of_each_frame(mean, chunk_size, x.shape[1]), lengths)
            return F.dropout(y, dropout, self.training)
        # The product is done once a chunk, not once a frame.
        merged, local = self.merge_summary(mean), None if local is None else self.merge_local(local)
        return merge_chunks(local, merged, lengths, chunk_size, num_frames=x.shape[1], dropout=dropout)

    @property
    def fuses(self) -> bool:
        return self.variant == "fast" and self.decay is None

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
        local, summands, raw = self._project(x)
        if self.decay is not None:
            summands = F.gelu(summands) if raw else summands
            mean, state = chunk_decay_step(summands, lengths, state, context.chunk_size, self.decay)
        else:
            mean, state = chunk_summary_step(summands, lengths, state, gelu=raw)
            mean = mean.unsqueeze(1)
        if self.merge_summary is None:
            return mask_frames(mean.expand(-1, x.shape[1], -1), lengths), state
        merged = self.merge_summary(mean)
        if local is not None:
            merged = self.merge_local(local) + merged
        return mask_frames(F.gelu(merged.expand(-1, x.shape[1], -1)), lengths), state

    def _project(self, x: Tensor) -> tuple[Tensor | None, Tensor, bool]:
        """f, None without a local branch, and s, (B, T, D) each; and whether the last GELU of s is still to be done."""
        local = None
        if self.variant == "full":
            hidden = x if self.local_hidden is None else F.gelu(self.local_hidden(x))
            local = F.gelu(self.local_projection(hidden))
            local = local if self.local_norm is None else self.local_norm(local)
        if self.variant == "full" or self.summary_hidden is not None:
            hidden = x if self.summary_hidden is None else F.gelu(self.summary_hidden(x))
            summands = self.summary_projection(hidden)
        else:
            summands = self.projection(x)
            if self.variant != "lite":
                local, summands = summands.chunk(2, dim=-1)
                local = F.gelu(local)
        if self.summary_norm is None:
            return local, summands, True
        return local, self.summary_norm(F.gelu(summands)), False


def _of_each_frame(mean: Tensor, chunk_size: int | Tensor | None, num_frames: int) -> Tensor:
    """Means of chunks (B, N, D) -> those of their frames (B, T, D)."""
    frames = torch.arange(num_frames, device=mean.device)
    if chunk_size is None:
        return mean.expand(-1, num_frames, -1)
    if isinstance(chunk_size, int):
        return mean.index_select(1, frames // chunk_size)
    chunks = frames // chunk_size.to(mean.device).reshape(-1, 1)
    return mean.gather(1, chunks.unsqueeze(2).expand(-1, -1, mean.shape[2]))
