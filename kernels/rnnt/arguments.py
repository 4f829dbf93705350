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
    for name, x in (("symbols", symbols), ("boundary", boundary)):
        if x is not None and x.dtype != torch.int64:
            raise ValueError(f"{name} must be int64, got {x.dtype}")
    if boundary is not None:
        check_shape("boundary", boundary, (B, 4))
    # On another device, looking at values would make the host wait.
    if symbols.device.type == "cpu" and not torch.compiler.is_compiling():
        check_values(symbols, boundary, S, T, V)


def check_values(symbols: Tensor, boundary: Tensor | None, S: int, T: int, V: int) -> None:
    if symbols.numel() and not (0 <= symbols.min() and symbols.max() < V):
        raise ValueError(f"symbols must be in 0..{V - 1}, got {symbols.min().item()}..{symbols.max().item()}")
    if boundary is None:
        return
    begin, end = boundary[:, :2], boundary[:, 2:]
    wrong = ((begin < 0) | (begin > end) | (end > end.new_tensor([S, T]))).any(1)
    if wrong.any():
        raise ValueError(
            f"boundary must be 0 <= begin <= end with end at most {S} symbols and {T} frames, "
            f"got {boundary[wrong][0].tolist()}"
        )


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
