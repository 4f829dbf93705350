"""The mixer's last step, fused: local part, the chunk's part, GELU, dropout. Checks and choice of backend.

B batch, T frames, C frames of a chunk, N chunks, D channels.
"""

from torch import Tensor

from sumix_kernels import backend as backends
from sumix_kernels.arguments import check_frames, check_lengths, check_rows
from sumix_kernels.chunk_merge import naive, torch


def merge_chunks(
    local: Tensor | None,
    summary: Tensor,
    lengths: Tensor,
    chunk_size: int | Tensor | None,
    *,
    num_frames: int | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """h_t = dropout(GELU(local_t + summary_{t // C})) on valid frames, 0 elsewhere.

    With ``local = W_cf f`` and ``summary = W_cm mean + b`` it is the last step of SummaryMixing (arXiv 2307.07421); the
    product with the summary is done once a chunk, and the summary of each frame is never written.

    Args:
        local: (B, T, D), any strides; None where there is no local part.
        summary: (B, N, D), a row for each chunk, N = ceil(T / chunk_size) (of the smallest chunk size).
        lengths: (B,) valid frames, 0..T.
        chunk_size: frames; None = one chunk; or (B,) on the CPU. 1 takes a summary of every frame.
        num_frames: T, needed where local is None.
        dropout: probability in [0, 1) with which an element becomes 0; the others are divided by 1 - dropout. The
            triton and naive backends take the same elements, by a counter-based generator (Philox 4x32, seven rounds,
            Salmon et al. 2011) whose seed is drawn from torch's default generator of summary's device.
        backend: "auto", "triton", "torch", "naive".

    Returns:
        (B, T, D) in summary's dtype.

    Raises:
        ValueError: shapes or values out of range; an unknown backend.
        RuntimeError: backend "triton" where it cannot run.
    """
    implementations = {"triton": _triton, "torch": torch.merge_chunks, "naive": naive.merge_chunks}
    implementation = backends.choose(backend, implementations, local, summary)
    B, _, D = check_frames(summary)
    if local is None:
        if isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 0:
            raise ValueError(f"num_frames must be an integer >= 0 where local is None, got {num_frames!r}")
    else:
        num_frames = check_frames(local)[1]
        if local.shape != (B, num_frames, D) or local.dtype != summary.dtype:
            raise ValueError(
                f"local and summary must be (B, T, D) and (B, N, D) of one dtype, got {local.dtype} "
                f"{tuple(local.shape)} and {summary.dtype} {tuple(summary.shape)}"
            )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
    lengths = check_lengths(lengths, summary.new_empty(0).expand(B, num_frames, 0))
    size = check_rows(summary, chunk_size, num_frames)
    if not num_frames:
        return summary
    return implementation(local, summary, lengths, size, num_frames, dropout)


def _triton(*arguments) -> Tensor:
    from sumix_kernels.chunk_merge import triton

    return triton.merge_chunks(*arguments)
