"""`chunk_summary` one chunk at a time. B streams of any age, C' frames of this chunk, D channels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sumix_kernels import backend as backends
from sumix_kernels.arguments import check_frames, check_lengths, known_whole


class SummaryState(NamedTuple):
    """Past of B streams: a running sum if the left context is unlimited, else the last L chunks, oldest first.

    sums (B, 1 or L, D), compensation (B, 1 or 0, D) and counts (B, 1 or L), fp32. Where there is a compensation the
    past is sums + compensation: the pair carries the digits that fp32 drops, so that hours do not add up errors.
    Counts are exact up to 2**24 frames (186 hours at 40 ms).
    """

    sums: Tensor
    compensation: Tensor
    counts: Tensor

    @classmethod
    def init(
        cls, batch_size: int, dim: int, left_context: int | None, device: torch.device | str | None = None
    ) -> SummaryState:
        """State of streams that have not begun. left_context: chunks, None = unlimited."""
        if left_context is not None and left_context < 0:
            raise ValueError(f"left_context must be an integer >= 0 (chunks) or None, got {left_context!r}")
        size, has_compensation = (1, 1) if left_context is None else (left_context, 0)
        return cls(
            torch.zeros(batch_size, size, dim, device=device),
            torch.zeros(batch_size, has_compensation, dim, device=device),
            torch.zeros(batch_size, size, device=device),
        )


def chunk_summary_step(
    x: Tensor, lengths: Tensor, state: SummaryState, *, gelu: bool = False, backend: str = "auto"
) -> tuple[Tensor, SummaryState]:
    """Mean over the visible frames up to the end of this chunk, and the state after it.

    x (B, C', D), lengths (B,) valid frames of this chunk -> mean (B, D) in x's dtype, 0 where no frame was seen yet;
    of GELU(x) if `gelu`. Equal to row n of `chunk_summary` when the n-th chunk is given to the n-th call. Backends are
    "triton" (one launch, no gradients) and "torch".

    Raises ValueError where shapes do not fit, RuntimeError for backend "triton" where it cannot run.
    """
    needs_grad = torch.is_grad_enabled() and x.requires_grad
    implementations = {"torch": _torch} if backend == "auto" and needs_grad else {"triton": _triton, "torch": _torch}
    implementation = backends.choose(backend, implementations, x)
    B, _, D = check_frames(x)
    lengths = check_lengths(lengths, x)
    if state.sums.shape[0] != B or state.sums.shape[2] != D:
        raise ValueError(f"state of {tuple(state.sums.shape)} sums does not fit x {tuple(x.shape)}")
    return implementation(x, lengths, state, gelu)


def _triton(x: Tensor, lengths: Tensor, state: SummaryState, gelu: bool) -> tuple[Tensor, SummaryState]:
    from sumix_kernels.chunk_summary import triton_step

    mean, *parts = triton_step.chunk_summary_step(x, lengths, *state, gelu)
    return mean, SummaryState(*parts)


def _torch(x: Tensor, lengths: Tensor, state: SummaryState, gelu: bool) -> tuple[Tensor, SummaryState]:
    num_frames = x.shape[1]
    x = functional.gelu(x) if gelu else x
    valid = x.float()
    if not known_whole(lengths, num_frames):
        padding = torch.arange(num_frames, device=x.device) >= lengths[:, None]
        valid = valid.masked_fill(padding[:, :, None], 0)
    own_sum = valid.sum(1, keepdim=True)  # (B, 1, D)
    own_count = lengths[:, None].to(state.counts.dtype)  # (B, 1)

    if state.compensation.shape[1]:
        sums, error = _two_sum(state.sums, own_sum)
        state = SummaryState(sums, state.compensation + error, state.counts + own_count)
        total, count = state.sums + state.compensation, state.counts
    else:
        sums, counts = torch.cat([state.sums, own_sum], 1), torch.cat([state.counts, own_count], 1)
        state = SummaryState(sums[:, 1:], state.compensation, counts[:, 1:])
        total, count = sums.sum(1, keepdim=True), counts.sum(1, keepdim=True)
    return (total / count.clamp(min=1)[:, :, None]).squeeze(1).to(x.dtype), state


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a + b rounded, and exactly what the rounding dropped (Knuth, TAOCP vol. 2, 4.2.2, theorem B)."""
    total = a + b
    b_seen = total - a
    return total, (a - (total - b_seen)) + (b - b_seen)
