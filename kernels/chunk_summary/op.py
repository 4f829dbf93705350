"""Means over chunk windows and their way back to frames: checks and choice of backend.

SummaryMixing (arXiv 2307.07421) under chunk contexts (arXiv 2409.07165): with S_n and K_n the sum and the
number of the valid frames of chunk n,

    mean_n = sum_{m = max(0, n-L)}^{n} S_m / sum_{m = max(0, n-L)}^{n} K_m

B batch, T frames, C frames of a chunk, N chunks, L chunks of left context, D channels.
"""

from torch import Tensor
from torch.nn import functional

from sumix_kernels import backend as backends
from sumix_kernels.arguments import check_chunk_size, check_frames, check_left_context, check_lengths, check_rows
from sumix_kernels.chunk_summary import naive, torch


def chunk_summary(
    x: Tensor,
    lengths: Tensor,
    chunk_size: int | Tensor | None,
    left_context: int | Tensor | None,
    *,
    gelu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Mean over the valid frames that each chunk sees: those of its own and of the `left_context` chunks before it.

    Args:
        x: (B, T, D), fp16, bf16, fp32 or fp64; any strides. Frames past an utterance's length are never read.
        lengths: (B,) valid frames, 0..T.
        chunk_size: frames; None = the whole utterance is one chunk; or (B,), one for each utterance. A tensor belongs
            on the CPU: its smallest value decides N.
        left_context: chunks; None = unlimited; or (B,). In tensors, T or more means whole utterance and unlimited.
        gelu: average GELU(x) instead of x, without a tensor of it.
        backend: "auto", "triton", "torch", "naive".

    Returns:
        (B, N, D) in x's dtype, accumulated in fp32, N = ceil(T / chunk_size) (of the smallest chunk size). A row that
        sees no valid frame is 0. An utterance's rows do not depend on its padding nor on what it is batched with.
        Time and memory are linear in T, of the backward pass too.

    Raises:
        ValueError: shapes or values out of range (of tensors on the CPU); an unknown backend.
        RuntimeError: backend "triton" where it cannot run.
    """
    implementation = backends.choose(backend, {"triton": _triton, "torch": _torch, "naive": _naive}, x)
    check_frames(x)
    lengths = check_lengths(lengths, x)
    size, chunks = check_chunk_size(chunk_size, x)
    left = check_left_context(left_context, x, chunks)
    if not x.shape[1]:
        return x
    return implementation(x, lengths, size, left, chunks, gelu)


def broadcast_chunks(
    summary: Tensor, chunk_size: int | Tensor | None, num_frames: int, *, backend: str = "auto"
) -> Tensor:
    """Give every frame its chunk's row: summary (B, N, D) -> (B, T, D), T = num_frames, frame t gets row t // C.

    chunk_size as for `chunk_summary`, of whose result this is the way back to frames; N = ceil(T / chunk_size).

    Raises ValueError where shapes do not fit, RuntimeError for backend "triton" where it cannot run.
    """
    implementations = {"triton": _triton_broadcast, "torch": torch.broadcast_chunks, "naive": _naive_broadcast}
    implementation = backends.choose(backend, implementations, summary)
    check_frames(summary)
    if isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 0:
        raise ValueError(f"num_frames must be an integer >= 0, got {num_frames!r}")
    size = check_rows(summary, chunk_size, num_frames)
    if not num_frames:
        return summary
    return implementation(summary, size, num_frames)


def _triton(x: Tensor, *geometry) -> Tensor:
    from sumix_kernels.chunk_summary import triton

    return triton.chunk_summary(x, *geometry)


def _triton_broadcast(summary: Tensor, *geometry) -> Tensor:
    from sumix_kernels.chunk_summary import triton

    return triton.broadcast_chunks(summary, *geometry)


def _torch(x: Tensor, lengths, chunk_size, left_context, chunks: int, gelu: bool) -> Tensor:
    return torch.chunk_summary(functional.gelu(x) if gelu else x, lengths, chunk_size, left_context, chunks)


def _naive(x: Tensor, lengths, chunk_size, left_context, chunks: int, gelu: bool) -> Tensor:
    frames = functional.gelu(x.double()) if gelu else x
    mean = naive.chunk_summary(frames, lengths, _flat(chunk_size), _flat(left_context))
    assert mean.shape[1] == chunks, (mean.shape, chunks)
    return mean.to(x.dtype)


def _naive_broadcast(summary: Tensor, chunk_size: int | Tensor, num_frames: int) -> Tensor:
    return naive.broadcast_chunks(summary, _flat(chunk_size), num_frames).to(summary.dtype)


def _flat(value: int | Tensor | None) -> int | Tensor | None:
    return value.flatten() if isinstance(value, Tensor) else value
