"""`chunk_conv1d` one chunk at a time. B streams of any age, C' frames of this chunk, D channels, k taps."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sumix_kernels.arguments import check_frames, check_lengths, known_whole
from sumix_kernels.chunk_conv.op import check_taps


def chunk_conv1d_step(
    x: Tensor,
    lengths: Tensor,
    history: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    glu: bool = False,
) -> tuple[Tensor, Tensor]:
    """Convolve one chunk, and keep its last frames for the next.

    x (B, C', D), or (B, C', 2D) with a GLU, lengths (B,) valid frames of this chunk, history (B, k//2, D) the frames
    before it, after the GLU (zeros at the start), weight (D, k), bias (D,) or None -> (B, C', D) in x's dtype, padded
    frames zero, and the next history. Equal to the frames of `chunk_conv1d`.

    Raises ValueError where shapes do not fit.
    """
    B, num_frames, width = check_frames(x)
    D = width // 2 if glu else width
    lengths = check_lengths(lengths, x)
    half = check_taps(weight, bias, x, glu) // 2
    if history.shape != (B, half, D):
        raise ValueError(f"history must be (B, k//2, D) = {(B, half, D)}, got {tuple(history.shape)}")
    whole = known_whole(lengths, num_frames)
    if not whole:
        padding = (torch.arange(num_frames, device=x.device) >= lengths[:, None])[:, :, None]
        x = x.masked_fill(padding, 0)
    x = F.glu(x) if glu else x
    frames = torch.cat([history.to(x.dtype), x, x.new_zeros(B, half, D)], 1)
    with torch.autocast(x.device.type, enabled=False):
        bias = None if bias is None else bias.float()
        y = F.conv1d(frames.float().mT, weight.float()[:, None], bias, groups=D).mT
    if whole:
        return y.to(x.dtype), frames[:, num_frames : num_frames + half].to(history.dtype, copy=True)
    kept = lengths[:, None] + torch.arange(half, device=x.device)  # the last k//2 before the end of what is valid
    history = frames.gather(1, kept[:, :, None].expand(-1, -1, D)).to(history.dtype)
    return y.masked_fill(padding, 0).to(x.dtype), history
