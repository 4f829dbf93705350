"""Conformer convolution module whose depthwise convolution never crosses a chunk's right edge.

B batch, T frames, D channels, k taps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sumix_kernels import chunk_conv1d, chunk_conv1d_step
from sumix_stream.config import EncoderConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.masking import mask_frames


class ChunkConvolution(nn.Module):
    """Pointwise to 2D, GLU, depthwise (past open, future ends with the chunk), LayerNorm, SiLU, pointwise.

    The module's first LayerNorm is the conformer layer's.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        dim, self.kernel_size = config.dim, config.conv_kernel
        self.expand = nn.Linear(dim, 2 * dim)
        depthwise = nn.Conv1d(dim, dim, self.kernel_size, groups=dim)
        self.weight = nn.Parameter(depthwise.weight.detach().squeeze(1).clone())
        self.bias = nn.Parameter(depthwise.bias.detach().clone())
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim)

    def init_state(self, batch_size: int) -> Tensor:
        """The last k//2 inputs of the depthwise convolution, (B, k//2, D)."""
        dim = self.weight.shape[0]
        return torch.zeros(batch_size, self.kernel_size // 2, dim, device=self.weight.device)

    def forward(self, x: Tensor, lengths: Tensor, context: ChunkContext) -> Tensor:
        """x (B, T, D), lengths (B,) -> (B, T, D)."""
        y = chunk_conv1d(self.expand(x), self.weight, self.bias, lengths, context.chunk_size, glu=True)
        return self._finish(y, lengths)

    def step(self, x: Tensor, lengths: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One chunk x (B, <= C, D) with lengths (B,) valid frames."""
        y, state = chunk_conv1d_step(self.expand(x), lengths, state, self.weight, self.bias, glu=True)
        return self._finish(y, lengths), state

    def _finish(self, y: Tensor, lengths: Tensor) -> Tensor:
        return mask_frames(self.out(F.silu(self.norm(y))), lengths)
