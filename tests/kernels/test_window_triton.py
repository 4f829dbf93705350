"""Windowed sums of rows on a GPU (here: in the interpreter, and compiled for GPUs)."""

import math

import pytest
import torch
from conftest import assert_close_as
from launches import compile_all, recorded

from sumix_kernels.window_triton import BLOCK, windowed_rows


def reference(rows, left, log_decay=0.0, reverse=False):
    """By the (N, N) matrix of weights, in fp64."""
    B, N, _ = rows.shape
    n = torch.arange(N, device=rows.device)
    behind = (n[:, None] - n)[None].expand(B, N, N)
    left = torch.as_tensor(left, device=rows.device).reshape(-1, 1, 1)
    weights = torch.exp(log_decay * behind.double()) * ((behind >= 0) & (behind <= left))
    weights = weights.nan_to_num(0, 0, 0)
    return (weights.mT if reverse else weights) @ rows.double()


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("log_decay", [0.0, math.log(0.97)], ids=["sum", "decay"])
@pytest.mark.parametrize(
    ("N", "left"),
    [
        (1, 0),
        (BLOCK, 3),
        (BLOCK + 1, 200),
        (5 * BLOCK, 3 * BLOCK + 1),
        (7 * BLOCK + 5, 4 * BLOCK),
        (700, 10**6),
        (300, 0),
    ],
)
def test_windows(N, left, log_decay, reverse, triton_device, poisoned_memory):
    rows = torch.randn(2, N, 5, device=triton_device)
    found = windowed_rows(rows, left, log_decay, reverse=reverse)
    assert_close_as(found, reference(rows, left, log_decay, reverse), torch.float32)


def test_two_levels_of_blocks(triton_device):
    rows = torch.randn(1, 70 * BLOCK + 3, 2, device=triton_device)
    found = windowed_rows(rows, len(rows[0]))
    assert_close_as(found, rows.double().cumsum(1), torch.float32)
    found = windowed_rows(rows, 66 * BLOCK + 7, math.log(0.999))
    assert_close_as(found, reference(rows, 66 * BLOCK + 7, math.log(0.999)), torch.float32)


def test_a_window_for_each_utterance(triton_device, poisoned_memory):
    rows = torch.randn(6, 5 * BLOCK + 9, 3, device=triton_device)
    left = torch.tensor([-2, 0, 5, 3 * BLOCK, 5 * BLOCK, 10**7], device=triton_device)
    for reverse in (False, True):
        found = windowed_rows(rows, left, math.log(0.99), reverse=reverse)
        assert_close_as(found, reference(rows, left, math.log(0.99), reverse), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_division_strides_and_types(dtype, triton_device):
    rows = torch.randn(3, 2 * BLOCK + 3, 14, device=triton_device).mT.contiguous().mT.to(dtype)[:, :, ::2]
    counts = torch.rand(3, 2 * BLOCK + 3, device=triton_device) + 0.5
    out = torch.empty(rows.shape, dtype=dtype, device=triton_device)
    found = windowed_rows(rows, 4, counts=counts, divide="after", out=out)
    assert_close_as(found, reference(rows, 4) / counts[:, :, None].double(), dtype)
    found = windowed_rows(rows, 4, counts=counts, divide="before", reverse=True)
    assert_close_as(found, reference(rows.double() / counts[:, :, None].double(), 4, reverse=True), torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="launches are recorded in the interpreter")
def test_compiles_for_gpus():
    rows, counts = torch.randn(1, 6 * BLOCK, 64), torch.ones(1, 6 * BLOCK)
    with recorded() as launches:
        windowed_rows(rows, 5 * BLOCK, counts=counts, divide="before", reverse=True)
        windowed_rows(rows.bfloat16(), torch.tensor([5 * BLOCK]), counts=counts, divide="after")
    assert len(launches) > 4
    for capability in (80, 90):
        for launch, result in zip(launches, compile_all(launches, capability), strict=True):
            assert result["error"] is None and result["spilled"] <= 16, (launch["kernel"], result)
