"""Calls of compiled functions on rows of tensors, shared among as many threads as PyTorch has."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LEAST_ROWS = 64  # that are worth a thread's start

NO_ROWS = torch.empty(0, 0)
NO_LENGTHS = np.empty(0, np.int64)


class Dropout(NamedTuple):
    """One dropout: the keys of its elements (see `sumix_kernels.cpu.dropout`) and its strength."""

    key: np.uint32
    second_key: np.uint32
    threshold: np.uint32
    scale: np.float32


NO_DROPOUT = tuple(Dropout(np.uint32(0), np.uint32(0), np.uint32(0), np.float32(1)))


def draw_dropout(probability: float) -> tuple:
    """A dropout with keys from torch's default generator; with probability 0 nothing is drawn.

    Raises ValueError for a probability outside [0, 1).
    """
    if not 0.0 <= probability < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {probability!r}")
    if probability == 0.0:
        return NO_DROPOUT
    keys = torch.randint(2**32, (2,)).tolist()
    threshold = min(round(probability * 2**32), 2**32 - 1)  # elements whose bits are below it are dropped
    return tuple(Dropout(*map(np.uint32, (*keys, threshold)), np.float32(1 / (1 - probability))))


def applied(function: type[torch.autograd.Function], x: Tensor, *arguments) -> Tensor:
    """`function` of x in fp32, of the arguments, and of whether its products are in bf16: under autocast, which is off
    inside."""
    bf16 = torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", enabled=False):
        return function.apply(x.float(), *arguments, bf16)


def backward_once(backward: Callable) -> Callable:
    """A backward that is not differentiated again, outside autocast: it may be called where that is on."""

    @once_differentiable
    @wraps(backward)
    def outside(ctx, *grads):
        with torch.autocast("cpu", enabled=False):
            return backward(ctx, *grads)

    return outside


def num_parts(count: int, least: int = _LEAST_ROWS) -> int:
    """Threads that share `count` rows, of which each takes at least `least`."""
    return max(1, min(torch.get_num_threads(), count // least))


def share(function: Callable, count: int, parts: int, *arguments) -> None:
    """function(begin, end, part, *arguments) for `parts` even pieces of `count` rows, each in a thread."""
    arrays = [_array(argument) if isinstance(argument, Tensor) else argument for argument in arguments]
    if parts == 1:
        function(0, count, 0, *arrays)
        return
    borders = [count * part // parts for part in range(parts + 1)]
    pool = _threads(parts - 1)
    others = [pool.submit(function, borders[i], borders[i + 1], i, *arrays) for i in range(1, parts)]
    function(borders[0], borders[1], 0, *arrays)
    for other in others:
        other.result()


def _array(x: Tensor) -> np.ndarray:
    return x.detach().numpy() if x.requires_grad else x.numpy()


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _threads(count: int) -> ThreadPoolExecutor:
    """A pool of this process: threads do not survive a fork."""
    key = os.getpid(), count
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(count, thread_name_prefix="training")
    return _pools[key]
