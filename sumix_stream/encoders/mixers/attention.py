"""Self-attention with relative positions under a chunk context: the twin of SummaryMixing in comparisons.

Positions enter by rotation of queries and keys (arXiv 2104.09864), so scores depend on distances alone and no table
limits the length. B batch, T frames, C frames of a chunk, W cached frames, D channels, H heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sumix_stream.config import EncoderConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.masking import frame_mask, mask_frames
from sumix_stream.encoders.states import AttentionState


def chunk_mask(num_frames: int, context: ChunkContext, device: torch.device) -> Tensor:
    """(1 or B, T, T) bool, True where query frame (dim 1) may see key frame (dim 2)."""
    frames = torch.arange(num_frames, device=device)
    chunk_size, left_context = context.chunk_size, context.left_context
    if chunk_size is None:
        return torch.ones(1, num_frames, num_frames, dtype=torch.bool, device=device)
    chunks = frames // torch.as_tensor(chunk_size, device=device).reshape(-1, 1)
    behind = chunks.unsqueeze(2) - chunks.unsqueeze(1)
    if left_context is None:
        return behind >= 0
    return (behind >= 0) & (behind <= torch.as_tensor(left_context, device=device).reshape(-1, 1, 1))


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate channel pairs of x (B, H, T, d) by angles proportional to positions (T,)."""
    half = x.shape[-1] // 2
    # fp64 angles: at hour ten a position times a frequency has no fp32 fraction left.
    frequencies = 10_000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angles = positions.to(torch.float64).unsqueeze(1) * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class ChunkedAttention(nn.Module):
    """Multi-head self-attention; quadratic in T for whole utterances, a cache of L*C frames when streaming."""

    peak_rate = 7e-4  # learning rate at 144 channels; above, scores grow until each frame sees one other

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        if config.dim % (2 * config.num_heads):
            raise ValueError(
                f"encoder.dim must be a multiple of 2 * encoder.num_heads, got {config.dim} and {config.num_heads}"
            )
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.projection = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    @property
    def residual_outputs(self) -> list[nn.Linear]:
        """The last products before the residual sum."""
        return [self.out]

    def describe(self) -> str:
        return "attention"

    def state_grows(self, context: ChunkContext) -> bool:
        return context.left_context is None

    def init_state(self, batch_size: int, context: ChunkContext) -> AttentionState:
        num_frames = 0 if context.left_context is None else context.left_context * context.chunk_size
        weight = self.out.weight
        return AttentionState.init(batch_size, weight.shape[0], num_frames, weight.device)

    def forward(self, x: Tensor, lengths: Tensor, context: ChunkContext) -> Tensor:
        """x (B, T, D), lengths (B,) -> (B, T, D); dropout at its end when training."""
        query, key, value = self.projection(x).chunk(3, dim=-1)
        visible = chunk_mask(x.shape[1], context, x.device) & frame_mask(lengths, x.shape[1]).unsqueeze(1)
        y = mask_frames(self._attend(query, key, value, visible), lengths)
        return F.dropout(y, self.dropout, self.training)

    def step(
        self, x: Tensor, lengths: Tensor, state: AttentionState, context: ChunkContext
    ) -> tuple[Tensor, AttentionState]:
        """One chunk x (B, <= C, D) with lengths (B,) valid frames."""
        query, key, value = self.projection(x).chunk(3, dim=-1)
        num_cached, num_new = state.keys.shape[1], x.shape[1]
        key, value = torch.cat([state.keys, key], dim=1), torch.cat([state.values, value], dim=1)
        places = torch.arange(num_cached + num_new, device=x.device)
        visible = (places >= num_cached - state.num_valid.unsqueeze(1)) & (places < num_cached + lengths.unsqueeze(1))
        y = mask_frames(self._attend(query, key, value, visible.unsqueeze(1)), lengths)
        keep = num_cached + num_new if context.left_context is None else num_cached
        start = num_cached + num_new - keep
        num_valid = (state.num_valid + num_new).clamp(max=keep)
        return y, AttentionState(key[:, start:], value[:, start:], num_valid)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """query (B, T, D) stands at the end of key, value (B, W + T, D); visible (B or 1, T or 1, W + T)."""
        query, key, value = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        positions = torch.arange(key.shape[2], device=key.device)
        query, key = rotate(query, positions[key.shape[2] - query.shape[2] :]), rotate(key, positions)
        # A padded query that sees nothing would be NaN; it is masked afterwards, so let it see everything.
        visible = (visible | ~visible.any(-1, keepdim=True)).unsqueeze(1)
        y = F.scaled_dot_product_attention(query, key, value, visible, self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).flatten(2))
