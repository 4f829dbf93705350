"""Ops of chunked, streaming speech encoders and of the transducer loss. Each has a slow fp64 reference beside it.

B batch, T frames, D channels: x is (B, T, D), with lengths (B,). See the docstrings of the ops, which are loaded on
first use: `sumix_kernels.cpu` works without PyTorch. The module `sumix_kernels.k2compat` gives the transducer losses
and their pieces under k2's names, for programs written for k2.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_HOME = {
    "sumix_kernels.backend": ("preferred_backend",),
    "sumix_kernels.chunk_conv.op": ("chunk_conv1d",),
    "sumix_kernels.chunk_conv.step": ("chunk_conv1d_step",),
    "sumix_kernels.chunk_decay.op": ("chunk_decay_mean",),
    "sumix_kernels.chunk_decay.step": ("DecayState", "chunk_decay_step"),
    "sumix_kernels.chunk_merge.op": ("merge_chunks",),
    "sumix_kernels.chunk_summary.op": ("broadcast_chunks", "chunk_summary"),
    "sumix_kernels.chunk_summary.step": ("SummaryState", "chunk_summary_step"),
    "sumix_kernels.rnnt.op": (
        "PrunedRnntLoss",
        "do_rnnt_pruning",
        "get_rnnt_prune_ranges",
        "has_path",
        "pruned_rnnt_loss",
        "rnnt_loss",
        "rnnt_loss_pruned",
        "rnnt_loss_smoothed",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


class _Package(ModuleType):
    """An op's folder may have the op's name: the name is the op's, whoever has imported the folder before."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'sumix_kernels' has no attribute '{name}'")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
