"""Depthwise convolution that never reads past a chunk's end: checks and choice of backend.

B batch, T frames, C frames of a chunk, D channels, k taps.
"""

from torch import Tensor

from sumix_kernels import backend as backends
from sumix_kernels.arguments import check_frames, check_frames_of_chunk, check_lengths
from sumix_kernels.chunk_conv import naive, torch

MAX_TAPS = 63  # of the Triton backend, which holds them in registers


def chunk_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor,
    chunk_size: int | Tensor | None,
    *,
    glu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Dynamic chunk convolution (arXiv 2304.09325): y_t = bias + sum_j weight[:, j] v_{t + j - k//2}, over the taps
    whose frame is valid and not after the last frame of t's own chunk. The past is open across chunks.

    v is x or, with `glu`, x[..., :D] * sigmoid(x[..., D:]), of which no tensor is kept.

    Args:
        x: (B, T, D), with `glu` (B, T, 2D); fp16, bf16, fp32 or fp64; any strides (channels that do not lie side by
            side are copied first on a GPU). Frames past an utterance's length are never read.
        weight: (D, k) with k odd.
        bias: (D,) or None.
        lengths: (B,) valid frames, 0..T.
        chunk_size: frames; None = the whole utterance is one chunk; or (B,), one for each utterance, where T or more
            means the whole utterance.
        glu: gate the frames first, the second half of their channels being the gates.
        backend: "auto", "triton" (k <= 63), "torch", "naive".

    Returns:
        (B, T, D) in x's dtype, accumulated in fp32, zero past an utterance's length. Gradients are deterministic, in
        the dtypes of x, weight and bias.

    Raises:
        ValueError: shapes or values out of range (of tensors on the CPU); an unknown backend.
        RuntimeError: backend "triton" where it cannot run.
    """
    check_frames(x)
    implementations = {"triton": _triton, "torch": torch.chunk_conv1d, "naive": _naive}
    if check_taps(weight, bias, x, glu) > MAX_TAPS and backend == "auto":
        del implementations["triton"]
    implementation = backends.choose(backend, implementations, x, weight, bias)
    lengths = check_lengths(lengths, x)
    size = check_frames_of_chunk(chunk_size, x)
    if not x.shape[1]:
        return x[..., : len(weight)].clone()
    return implementation(x, weight, bias, lengths, size, glu)


def check_taps(weight: Tensor, bias: Tensor | None, x: Tensor, glu: bool) -> int:
    """Number of taps k."""
    width = x.shape[2]
    if glu and width % 2:
        raise ValueError(f"x must be (B, T, 2D) with a GLU, got {tuple(x.shape)}")
    D = width // 2 if glu else width
    if weight.dim() != 2 or weight.shape[0] != D or weight.shape[1] % 2 == 0:
        raise ValueError(f"weight must be (D, k) = ({D}, odd) for x {tuple(x.shape)}, got {tuple(weight.shape)}")
    if bias is not None and bias.shape != (D,):
        raise ValueError(f"bias must be (D,) = ({D},) for x {tuple(x.shape)}, got {tuple(bias.shape)}")
    return weight.shape[1]


def _triton(x: Tensor, weight: Tensor, *rest) -> Tensor:
    from sumix_kernels.chunk_conv import triton

    if weight.shape[1] > MAX_TAPS:
        raise ValueError(f"weight must have at most {MAX_TAPS} taps for backend 'triton', got {tuple(weight.shape)}")
    return triton.chunk_conv1d(x, weight, *rest)


def _naive(x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor, chunk_size: int | Tensor, glu) -> Tensor:
    size = chunk_size.flatten() if isinstance(chunk_size, Tensor) else chunk_size
    return naive.chunk_conv1d(x, weight, bias, lengths, size, glu).to(x.dtype)
