"""Tuning: bounded, left out where it must be, and never another result."""

import pytest
import torch

from sumix_kernels import launch
from sumix_kernels.launch import MAX_CONFIGS, TunedKernel, cdiv, config, power_of_2, tuned


@pytest.mark.parametrize(("a", "b", "expected"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2)])
def test_cdiv(a, b, expected):
    assert cdiv(a, b) == expected


@pytest.mark.parametrize(("n", "expected"), [(0, 16), (1, 16), (16, 16), (17, 32), (33, 64), (1000, 64)])
def test_power_of_2(n, expected):
    assert power_of_2(n, 16, 64) == expected


class Kernel:
    """Stands for a kernel: says what it was launched with."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: (grid, args, kwargs)


def tuned_kernel(monkeypatch) -> TunedKernel:
    monkeypatch.setattr(launch.triton, "autotune", lambda configs, key, cache_results: lambda kernel: {(1,): "tuner"})
    return tuned([config(num_warps=2), config(num_warps=8)], key=["D"])(Kernel())


@pytest.mark.parametrize("reason", ["interpreter", "environment", "deterministic"])
def test_not_tuned(reason, monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", reason == "interpreter")
    kernel = tuned_kernel(monkeypatch)
    if reason == "environment":
        monkeypatch.setenv("SUMIX_AUTOTUNE", "0")
    if reason == "deterministic":
        torch.use_deterministic_algorithms(True)
    try:
        grid, args, kwargs = kernel[(1,)](7, D=3)
    finally:
        torch.use_deterministic_algorithms(False)
    assert (grid, args) == ((1,), (7,))
    assert kwargs["num_warps"] == 2 and kwargs["D"] == 3


def test_tuned(monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.delenv("SUMIX_AUTOTUNE", raising=False)
    assert tuned_kernel(monkeypatch)[(1,)] == "tuner"


def test_bounded():
    with pytest.raises(AssertionError):
        tuned([config(num_warps=2)] * (MAX_CONFIGS + 1), key=[])(Kernel())
