"""Checks of the RNN-T functions' arguments: what does not fit raises ValueError with the shapes or values found.

Values of tensors are checked where they lie on the CPU; reading them elsewhere would make the host wait.
"""

import torch
from torch import Tensor

from sumix_kernels.rnnt.lattice import RNNT_TYPES

REDUCTIONS = {"none": lambda loss: loss, "mean": torch.mean, "sum": torch.sum}


def shape_of(name: str, x: Tensor, ndim: int) -> torch.Size:
    if x.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, got shape {tuple(x.shape)}")
    return x.shape


def check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape} to fit the other arguments, got {tuple(x.shape)}")


def check_lattice(
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None,
    rnnt_type: str,
    delay_penalty: float,
    B: int,
    T: int,
    V: int,
) -> None:
    S = shape_of("symbols", symbols, 2)[1]
    check_shape("symbols", symbols, (B, S))
    if rnnt_type not in RNNT_TYPES:
        raise ValueError(f"rnnt_type must be one of {', '.join(RNNT_TYPES)}, got {rnnt_type!r}")
    if not 0 <= termination_symbol < V:
        raise ValueError(f"termination_symbol must be in 0..{V - 1}, got {termination_symbol}")
    if not delay_penalty >= 0.0:
        raise ValueError(f"delay_penalty must be at least 0, got {delay_penalty}")
    _check_dtype("symbols", symbols)
    if readable(symbols):
        _check_values("symbols", symbols, V)
    if boundary is not None:
        check_boundary(boundary, B, S, T)


def check_arcs(px_name: str, px: Tensor, py_name: str, py: Tensor) -> tuple[int, int, int, bool]:
    """B, S, T of px (B, S, T or T+1) and py (B, S+1, T), and whether px has T+1 columns, as in a regular lattice."""
    (B, S, columns), T = shape_of(px_name, px, 3), shape_of(py_name, py, 3)[2]
    check_shape(py_name, py, (B, S + 1, T))
    if columns not in (T, T + 1):
        raise ValueError(
            f"{px_name} must have shape {(B, S, T)} or {(B, S, T + 1)} to fit {py_name} {tuple(py.shape)}, "
            f"got {tuple(px.shape)}"
        )
    return B, S, T, columns == T + 1


def check_ranges(ranges: Tensor, shape: tuple[int, int, int], S: int) -> None:
    check_shape("ranges", ranges, shape)
    _check_dtype("ranges", ranges)
    if readable(ranges):
        _check_values("ranges", ranges, S + 1)


def check_boundary(boundary: Tensor, B: int, S: int, T: int) -> None:
    check_shape("boundary", boundary, (B, 4))
    _check_dtype("boundary", boundary)
    if not readable(boundary):
        return
    begin, end = boundary[:, :2], boundary[:, 2:]
    wrong = ((begin < 0) | (begin > end) | (end > end.new_tensor([S, T]))).any(1)
    if wrong.any():
        raise ValueError(
            f"boundary must be 0 <= begin <= end with end at most {S} symbols and {T} frames, "
            f"got {boundary[wrong][0].tolist()}"
        )


def readable(x: Tensor) -> bool:
    """Whether x's values can be checked: on another device, looking at them would make the host wait."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def check_hat(logits: Tensor) -> None:
    if logits.shape[-1] < 2:
        raise ValueError(f"use_hat_loss needs symbols besides the termination symbol, got logits {tuple(logits.shape)}")


def check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def check_scales(lm_only_scale: float, am_only_scale: float) -> None:
    for name, scale in (("lm_only_scale", lm_only_scale), ("am_only_scale", am_only_scale)):
        if not 0.0 <= scale <= 1.0:
            raise ValueError(f"{name} must be in 0..1, got {scale}")
    if lm_only_scale + am_only_scale > 1.0:
        raise ValueError(f"lm_only_scale + am_only_scale must be at most 1, got {lm_only_scale} + {am_only_scale}")


def check_s_range(s_range: int, rnnt_type: str) -> None:
    least = 1 if rnnt_type == "modified" else 2
    if s_range < least:
        raise ValueError(
            f"s_range must be at least {least} for rnnt_type {rnnt_type!r}, or no path is left; got {s_range}"
        )


def _check_dtype(name: str, x: Tensor) -> None:
    if x.dtype != torch.int64:
        raise ValueError(f"{name} must be int64, got {x.dtype}")


def _check_values(name: str, x: Tensor, num_values: int) -> None:
    if x.numel() and not (0 <= x.min() and x.max() < num_values):
        raise ValueError(f"{name} must be in 0..{num_values - 1}, got {x.min().item()}..{x.max().item()}")
