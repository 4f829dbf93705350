"""No mixer: frames see each other through the convolutions alone."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sumix_stream.config import EncoderConfig
from sumix_stream.context import ChunkContext


class NoState(NamedTuple):
    """Nothing is kept."""


class NoMixer(nn.Module):
    """Zeros; layers leave it out, with the LayerNorm before it."""

    peak_rate = 1e-3

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()

    @property
    def residual_outputs(self) -> list[nn.Linear]:
        return []

    def describe(self) -> str:
        return "convolutions alone"

    def state_grows(self, context: ChunkContext) -> bool:
        return False

    def init_state(self, batch_size: int, context: ChunkContext) -> NoState:
        return NoState()

    def forward(self, x: Tensor, lengths: Tensor, context: ChunkContext) -> Tensor:
        """x (B, T, D), lengths (B,) -> (B, T, D)."""
        return torch.zeros_like(x)

    def step(self, x: Tensor, lengths: Tensor, state: NoState, context: ChunkContext) -> tuple[Tensor, NoState]:
        return torch.zeros_like(x), state
