"""What the Triton kernels' launches share: tuning that is bounded, cached and can be left out; the right device."""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from sumix_kernels.backend import INTERPRETED

MAX_CONFIGS = 6  # a tuning compiles and times each of them, once a machine


def cdiv(a: int, b: int) -> int:
    """Quotient rounded up."""
    return -(-a // b)


def power_of_2(n: int, least: int = 1, most: int | None = None) -> int:
    """The next power of 2 from n on, within [least, most]."""
    result = max(least, 1 << max(0, n - 1).bit_length())
    return result if most is None else min(result, most)


def on_device(x: Tensor) -> contextlib.AbstractContextManager:
    """Launches inside go to the device of x."""
    return torch.cuda.device_of(x) if x.is_cuda else contextlib.nullcontext()


def config(num_warps: int = 4, num_stages: int = 3, **blocks: int) -> triton.Config:
    return triton.Config(blocks, num_warps=num_warps, num_stages=num_stages)


def tuned(configs: Sequence[triton.Config], key: Sequence[str]) -> Callable[[Any], "TunedKernel"]:
    """Decorate a kernel with at most MAX_CONFIGS ways to launch it; the first is the one that is taken untuned.

    `key` names the arguments whose values (beside the dtypes of all tensors) ask for a tuning of their own: channels,
    taps and the like, never frames, which differ from batch to batch. The choice is kept on disk, in Triton's cache.
    """
    assert 0 < len(configs) <= MAX_CONFIGS, len(configs)
    return lambda kernel: TunedKernel(kernel, list(configs), list(key))


class TunedKernel:
    """`kernel[grid](...)` with the fastest of its configs.

    Nothing is tuned, and the first config taken, in Triton's interpreter, with SUMIX_AUTOTUNE=0, and under
    torch.use_deterministic_algorithms, since another config may round differently.
    """

    def __init__(self, kernel: Any, configs: list[triton.Config], key: list[str]) -> None:
        self.kernel, self.configs = kernel, configs
        self._tuner = triton.autotune(configs, key, cache_results=True)(kernel)

    def __getitem__(self, grid: Any) -> Callable:
        if self._tunes():
            return self._tuner[grid]
        return functools.partial(self.kernel[grid], **self.configs[0].all_kwargs())

    def _tunes(self) -> bool:
        if INTERPRETED or len(self.configs) == 1 or torch.are_deterministic_algorithms_enabled():
            return False
        return os.environ.get("SUMIX_AUTOTUNE", "1") != "0"
