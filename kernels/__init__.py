"""Ops of chunked, streaming speech encoders and of the transducer loss. Each has a slow fp64 reference beside it.

B batch, T frames, D channels: x is (B, T, D), with lengths (B,). See the docstrings of the ops. The module
`sumix_kernels.k2compat` gives the transducer losses and their pieces under k2's names, for programs written for k2.
"""

from sumix_kernels.backend import preferred_backend
from sumix_kernels.chunk_conv.op import chunk_conv1d
from sumix_kernels.chunk_conv.step import chunk_conv1d_step
from sumix_kernels.chunk_decay.op import chunk_decay_mean
from sumix_kernels.chunk_decay.step import DecayState, chunk_decay_step
from sumix_kernels.chunk_merge.op import merge_chunks
from sumix_kernels.chunk_summary.op import broadcast_chunks, chunk_summary
from sumix_kernels.chunk_summary.step import SummaryState, chunk_summary_step
from sumix_kernels.rnnt.op import (
    PrunedRnntLoss,
    do_rnnt_pruning,
    get_rnnt_prune_ranges,
    has_path,
    pruned_rnnt_loss,
    rnnt_loss,
    rnnt_loss_pruned,
    rnnt_loss_smoothed,
)

__all__ = [
    "DecayState",
    "PrunedRnntLoss",
    "SummaryState",
    "broadcast_chunks",
    "chunk_conv1d",
    "chunk_conv1d_step",
    "chunk_decay_mean",
    "chunk_decay_step",
    "chunk_summary",
    "chunk_summary_step",
    "do_rnnt_pruning",
    "get_rnnt_prune_ranges",
    "has_path",
    "merge_chunks",
    "preferred_backend",
    "pruned_rnnt_loss",
    "rnnt_loss",
    "rnnt_loss_pruned",
    "rnnt_loss_smoothed",
]
