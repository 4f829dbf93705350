"""The pruned RNN-T pieces as k2 computes them (https://k2-fsa.github.io/k2/python_api/api.html), in fp32.

k2 is optional: its wheels are made for one torch and CUDA version each. Meanings: op.py's docstrings.
"""

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor


def load_k2() -> ModuleType:
    """k2, or an ImportError that says what to do."""
    try:
        return importlib.import_module("k2")
    except (ImportError, OSError, RuntimeError) as error:  # a wheel for another torch fails in several ways
        raise ImportError(
            f"backend 'k2' needs the package k2, which cannot be imported ({error}); install the wheel made for torch "
            f"{torch.__version__} from https://k2-fsa.github.io/k2/, or use backend='torch'"
        ) from error


@functools.cache
def importable() -> bool:
    try:
        load_k2()
    except ImportError:
        return False
    return True


def rnnt_loss_smoothed(
    lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type, delay_penalty
) -> tuple[Tensor, Tensor, Tensor]:
    k2 = load_k2()
    with torch.autocast(am.device.type, enabled=False):
        loss, (px_grad, py_grad) = k2.rnnt_loss_smoothed(
            lm=lm.float(),
            am=am.float(),
            symbols=symbols,
            termination_symbol=termination_symbol,
            lm_only_scale=lm_only_scale,
            am_only_scale=am_only_scale,
            boundary=boundary,
            rnnt_type=rnnt_type,
            delay_penalty=delay_penalty,
            reduction="none",
            return_grad=True,
        )
    return loss, px_grad, py_grad


def get_rnnt_prune_ranges(px_grad, py_grad, boundary, s_range) -> Tensor:
    return load_k2().get_rnnt_prune_ranges(px_grad=px_grad, py_grad=py_grad, boundary=boundary, s_range=s_range)


def rnnt_loss_pruned(
    logits, symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty, use_hat_loss=False
) -> Tensor:
    k2 = load_k2()
    with torch.autocast(logits.device.type, enabled=False):
        return k2.rnnt_loss_pruned(
            logits=logits.float(),
            symbols=symbols,
            ranges=ranges,
            termination_symbol=termination_symbol,
            boundary=boundary,
            rnnt_type=rnnt_type,
            delay_penalty=delay_penalty,
            reduction="none",
            use_hat_loss=use_hat_loss,
        )


def rnnt_loss(logits, symbols, termination_symbol, boundary, rnnt_type, delay_penalty) -> Tensor:
    k2 = load_k2()
    with torch.autocast(logits.device.type, enabled=False):
        return k2.rnnt_loss(
            logits=logits.float(),
            symbols=symbols,
            termination_symbol=termination_symbol,
            boundary=boundary,
            rnnt_type=rnnt_type,
            delay_penalty=delay_penalty,
            reduction="none",
        )
