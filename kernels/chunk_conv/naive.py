"""Reference of `chunk_conv1d`: fp64, tap by tap from the definition."""

import torch
from torch import Tensor


def chunk_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor,
    chunk_size: int | Tensor | None,
    glu: bool = False,
) -> Tensor:
    """x (B, T, D) or, with a GLU, (B, T, 2D), weight (D, k), bias (D,) or None -> (B, T, D) fp64."""
    if glu:
        values, gates = x.double().chunk(2, 2)
        x = values * gates.sigmoid()
    (B, T, D), k = x.shape, weight.shape[1]
    time = torch.arange(T, device=x.device)
    outputs = []
    for b in range(B):
        C = T if chunk_size is None else int(chunk_size[b]) if isinstance(chunk_size, Tensor) else chunk_size
        length = int(lengths[b])
        last = (time // C + 1) * C - 1  # of each frame's chunk
        output = torch.zeros(T, D, dtype=torch.float64, device=x.device)
        if bias is not None:
            output = output + bias.double()
        for j in range(k):
            read = time + j - k // 2
            counts = (read >= 0) & (read < length) & (read <= last)
            value = torch.where(counts[:, None], x[b, read.clamp(0, T - 1)].double(), 0.0)
            output = output + weight[:, j].double() * value
        outputs.append(torch.where((time < length)[:, None], output, 0.0))
    return torch.stack(outputs)
