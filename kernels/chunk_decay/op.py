"""Exponentially decaying means under chunk contexts: checks and choice of backend.

B batch, T frames, C frames of a chunk, L chunks of left context, D channels.
"""

from torch import Tensor

from sumix_kernels import backend as backends
from sumix_kernels.arguments import check_chunk_size, check_frames, check_left_context, check_lengths
from sumix_kernels.chunk_decay import naive, torch


def chunk_decay_mean(
    x: Tensor,
    lengths: Tensor,
    chunk_size: int | Tensor | None,
    left_context: int | Tensor | None,
    decay: float,
    *,
    backend: str = "auto",
) -> Tensor:
    """Mean over the valid frames u that frame t sees, with weights decay^|t-u| normalised to sum 1.

    The `expdecay` variant of SummaryMixing (after arXiv 2307.07421, 2409.07165). Frame t sees its own chunk, the frames
    after it too, and the `left_context` chunks before.

    Args:
        x: (B, T, D), fp16, bf16, fp32 or fp64; any strides. Frames past an utterance's length do not count.
        lengths: (B,) valid frames, 0..T.
        chunk_size: frames; None = the whole utterance is one chunk; or (B,), one for each utterance.
        left_context: chunks; None = unlimited; or (B,). Tensors of either belong on the CPU: their values decide what
            is computed (utterances of one context together), and T or more means whole utterance and unlimited.
        decay: between 0 and 1, exclusive; of 1 it would be `chunk_summary`.
        backend: "auto", "triton", "torch", "naive".

    Returns:
        (B, T, D) in x's dtype, accumulated in fp32, zero past an utterance's length. Time and memory are linear in T
        for every chunk size.

    Raises:
        ValueError: shapes or values out of range (of tensors on the CPU); an unknown backend.
        RuntimeError: backend "triton" where it cannot run.
    """
    implementation = backends.choose(backend, {"triton": _triton, "torch": torch.chunk_decay_mean, "naive": _naive}, x)
    check_frames(x)
    lengths = check_lengths(lengths, x)
    size, chunks = check_chunk_size(chunk_size, x)
    left = check_left_context(left_context, x, chunks)
    check_decay(decay)
    if not x.shape[1]:
        return x
    return implementation(x, lengths, size, left, decay)


def check_decay(decay: float) -> float:
    if not isinstance(decay, float) or not 0 < decay < 1:
        raise ValueError(f"decay must be a number between 0 and 1, exclusive, got {decay!r}")
    return decay


def _triton(x: Tensor, *geometry) -> Tensor:
    from sumix_kernels.chunk_decay import triton

    return triton.chunk_decay_mean(x, *geometry)


def _naive(x: Tensor, lengths: Tensor, chunk_size: int | Tensor, left_context: int | Tensor | None, decay: float):
    size, left = (value.flatten() if isinstance(value, Tensor) else value for value in (chunk_size, left_context))
    return naive.chunk_decay_mean(x, lengths, size, left, decay).to(x.dtype)
