"""Depthwise convolution that never reads past a chunk's end: checks and choice of backend.

B batch, T frames, C frames of a chunk, D channels, k taps.
"""

from torch import Tensor

from sumix_kernels import backend as backends
from sumix_kernels.arguments import check_chunk_size, check_frames, check_lengths
from sumix_kernels.chunk_conv import naive, torch


def chunk_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor,
    chunk_size: int | Tensor | None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Dynamic chunk convolution (arXiv 2304.09325): y_t = bias + sum_j weight[:, j] x_{t + j - k//2}, over the taps
    whose frame is valid and not after the last frame of t's own chunk. The past is open across chunks.

    Args:
        x: (B, T, D), fp16, bf16, fp32 or fp64; any strides. Frames past an utterance's length do not count.
        weight: (D, k) with k odd.
        bias: (D,) or None.
        lengths: (B,) valid frames, 0..T.
        chunk_size: frames; None = the whole utterance is one chunk; or (B,), one for each utterance, where T or more
            means the whole utterance.
        backend: "auto", "torch", "naive".

    Returns:
        (B, T, D) in x's dtype, accumulated in fp32, zero past an utterance's length.

    Raises:
        ValueError: shapes or values out of range (of tensors on the CPU); an unknown backend.
        NotImplementedError: a backend that this op does not have.
    """
    implementation = backends.choose(backend, {"torch": torch.chunk_conv1d, "naive": _naive})
    check_frames(x)
    check_taps(weight, bias, x)
    lengths = check_lengths(lengths, x)
    size, _ = check_chunk_size(chunk_size, x)
    if not x.shape[1]:
        return x
    return implementation(x, weight, bias, lengths, size)


def check_taps(weight: Tensor, bias: Tensor | None, x: Tensor) -> int:
    """Number of taps k."""
    D = x.shape[2]
    if weight.dim() != 2 or weight.shape[0] != D or weight.shape[1] % 2 == 0:
        raise ValueError(f"weight must be (D, k) = ({D}, odd) for x {tuple(x.shape)}, got {tuple(weight.shape)}")
    if bias is not None and bias.shape != (D,):
        raise ValueError(f"bias must be (D,) = ({D},) for x {tuple(x.shape)}, got {tuple(bias.shape)}")
    return weight.shape[1]


def _naive(x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor, chunk_size: int | Tensor) -> Tensor:
    size = chunk_size.flatten() if isinstance(chunk_size, Tensor) else chunk_size
    return naive.chunk_conv1d(x, weight, bias, lengths, size).to(x.dtype)
