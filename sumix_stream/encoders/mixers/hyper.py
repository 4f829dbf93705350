"""HyperMixer (arXiv 2203.03691): a perceptron over time whose weights are made of the frames themselves, for utterances
of any length. A baseline under full context: a frame's weights go to all others at once.

    W_1, W_2 = MLP_1(x + p), MLP_2(x + p)    y = W LayerNorm(W_2 GELU(W_1^T x)) + b

B batch, T frames, D channels; p: sinusoids of the frame's place.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sumix_stream.config import EncoderConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.masking import frame_mask, mask_frames

WHOLE_ONLY = "mixer hypermixer hears whole utterances only: use full context, or another mixer to stream"


class HyperMixer(nn.Module):
    """Time and memory are linear in T; nothing of it can be computed before the utterance has ended."""

    peak_rate = 7e-4

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        dim, self.dropout = config.dim, config.dropout
        self.collect, self.distribute = (
            nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)) for _ in range(2)
        )
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim)

    @property
    def residual_outputs(self) -> list[nn.Linear]:
        """The last product before the residual sum."""
        return [self.out]

    def describe(self) -> str:
        return "HyperMixer"

    def state_grows(self, context: ChunkContext) -> bool:
        return False

    def init_state(self, batch_size: int, context: ChunkContext) -> None:
        raise ValueError(WHOLE_ONLY)

    def step(self, x: Tensor, lengths: Tensor, state: None, context: ChunkContext) -> tuple[Tensor, None]:
        raise ValueError(WHOLE_ONLY)

    def forward(self, x: Tensor, lengths: Tensor, context: ChunkContext) -> Tensor:
        """x (B, T, D), lengths (B,) -> (B, T, D). Raises ValueError for a context of chunks."""
        if context.chunk_size is not None:
            raise ValueError(f"{WHOLE_ONLY} (train.chunk_size full, --chunk full), got {context}")
        placed = x + _places(x)
        valid = frame_mask(lengths, x.shape[1]).unsqueeze(-1)
        collect = self.collect(placed).masked_fill(~valid, 0.0)
        y = self.out(self.norm(self.distribute(placed) @ F.gelu(collect.mT @ x)))
        return F.dropout(mask_frames(y, lengths), self.dropout, self.training)


def _places(x: Tensor) -> Tensor:
    """(T, D): sines of each frame's place in half of the channels, cosines in the other."""
    half = -(-x.shape[2] // 2)
    frequencies = torch.exp(torch.arange(half, device=x.device) * (-math.log(10_000.0) / half))
    angles = torch.arange(x.shape[1], device=x.device).unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)[:, : x.shape[2]].to(x.dtype)
