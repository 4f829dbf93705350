"""Compiled products against fp64, at odd sizes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_close_as, needs_numba
from torch import Tensor
from torch.nn import functional as F

pytestmark = needs_numba
SIZES = [(1, 1, 1), (8, 37, 32), (9, 64, 33), (16, 5, 130), (23, 257, 64)]  # rows, inputs, outputs


@pytest.fixture(scope="module")
def cpu():
    return pytest.importorskip("sumix_kernels.cpu")


@pytest.fixture(params=["fp32", "bf16"])
def bf16(request, cpu):
    if request.param == "bf16" and not cpu.HAS_BF16:
        pytest.skip("this processor has no bfloat16 products")
    return request.param == "bf16"


def rows_for(cpu, x: Tensor) -> Tensor:
    """x and rows that fill it up, which are not numbers and reach nobody else's."""
    rows = torch.full((cpu.filled_up(len(x), cpu.ROWS), x.shape[1]), float("nan"))
    rows[: len(x)] = x
    return rows


def multiply(cpu, x: Tensor, weight: Tensor, bias: Tensor, bf16: bool, out: Tensor | None = None, silu=False) -> Tensor:
    (n, K), N = x.shape, len(weight)
    room = torch.full((cpu.filled_up(n, cpu.ROWS), cpu.filled_up(N, cpu.WIDTH)), 7.0)
    if out is not None:
        room[:n, :N] = out
    pairs = np.full((len(room), 2 * ((K + 1) // 2) + 4), -1, np.int16)  # wider than need be; NaN where not written
    arrays = (cpu.panels(weight.numpy(), bf16), cpu.padded(bias.numpy()), int(out is not None), silu)
    cpu.multiply(rows_for(cpu, x).numpy(), n, *arrays, room.numpy(), pairs)
    return room[:n, :N]


def rounded(x: Tensor, bf16: bool) -> Tensor:
    return x.bfloat16().double() if bf16 else x.double()


@pytest.mark.parametrize(("n", "K", "N"), SIZES)
def test_multiply(cpu, bf16, n, K, N):
    x, weight, bias, before = torch.randn(n, K), torch.randn(N, K), torch.randn(N), torch.randn(n, N)
    expected = rounded(x, bf16) @ rounded(weight, bf16).T + bias.double()
    assert_close_as(multiply(cpu, x, weight, bias, bf16), expected, torch.float32)
    assert_close_as(multiply(cpu, x, weight, bias, bf16, before), expected + before.double(), torch.float32)
    assert_close_as(multiply(cpu, x, weight, bias, bf16, silu=True), F.silu(expected), torch.float32)


def test_a_row_has_the_same_bits_among_others(cpu, bf16):
    x, weight, bias = torch.randn(41, 77), torch.randn(50, 77), torch.randn(50)
    among_all = multiply(cpu, x, weight, bias, bf16)
    for begin, count in ((0, 1), (3, 7), (17, 24)):
        assert torch.equal(multiply(cpu, x[begin : begin + count], weight, bias, bf16), among_all[begin:][:count])


def test_numbers_that_are_none_and_ends(cpu, bf16):
    """NaN of any bits and infinity stay so, in their own row; rounding is to even, and over the end to infinity."""
    ends = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, 0x7F800000, 0x7F7FFFFF, 0x3F808000, 0x3F818000], dtype=torch.int32)
    x = torch.zeros(9, len(ends))
    x[range(2, 9), range(7)] = ends.view(torch.float32)
    out = multiply(cpu, x, torch.ones(3, len(ends)), torch.zeros(3), bf16)
    expected = rounded(ends.view(torch.float32), bf16)
    assert out[2:5].isnan().all() and not out[:2].any()
    assert torch.equal(out[5:, 0].double(), expected[3:])


@pytest.mark.parametrize(("n", "K", "N"), SIZES)
def test_add_products(cpu, bf16, n, K, N):
    """Sums over rows, of what is in panels and of what is not; what fills up the arrays reaches nobody."""
    from sumix_kernels.cpu.products import add_products, pair_rows

    x, y, before = torch.randn(n, K), torch.randn(n, N), torch.randn(N, K)
    inputs = torch.full((n, cpu.filled_up(K, cpu.WIDTH)), float("nan"))
    grads = torch.full((n + 1, cpu.filled_up(N, cpu.ROWS)), float("nan"))
    inputs[:, :K], grads[:n, :N] = x, y
    panels = np.ascontiguousarray(inputs.numpy().reshape(n, -1, cpu.WIDTH).swapaxes(0, 1))
    out = torch.full((grads.shape[1], inputs.shape[1]), 7.0)
    out[:N, :K] = before
    rows, count = grads.numpy(), n
    if bf16:
        count = (n + 1) // 2
        rows, columns = np.empty((count, rows.shape[1]), np.int32), np.empty((len(panels), count, cpu.WIDTH), np.int32)
        pair_rows(grads.numpy(), n, rows)
        for panel, pairs in zip(panels, columns):
            pair_rows(panel, n, pairs)
        panels = columns
    add_products(rows, count, panels, np.zeros(cpu.WIDTH, np.float32), out.numpy())
    assert_close_as(out[:N, :K], before.double() + rounded(y, bf16).T @ rounded(x, bf16), torch.float32)


@pytest.mark.parametrize(("bins", "channels", "num_outputs"), [(5, 5, 3), (12, 32, 6), (40, 64, 20)])
def test_convolve_rows(cpu, bins, channels, num_outputs):
    """One output frame of a convolution of 3 by 3 with stride 2 over bins, images padded by a bin on either side."""
    images, weight, bias = torch.randn(3, bins, channels), torch.randn(33, channels, 3, 3), torch.randn(33)
    room = torch.full((3 * (bins + 2) * channels + (2 * cpu.filled_up(num_outputs, cpu.ROWS) + 1) * channels,), 7.0)
    inner = room[: 3 * (bins + 2) * channels].view(3, bins + 2, channels)
    inner.copy_(F.pad(images, (0, 0, 1, 1)))
    biases = np.zeros((3, 33), np.float32)
    biases[0] = bias.numpy()
    weights = cpu.panels(weight.permute(2, 0, 3, 1).reshape(3, 33, -1).numpy())
    out = np.full((num_outputs + cpu.ROWS, cpu.filled_up(33, cpu.WIDTH)), 7.0, np.float32)
    cpu.convolve_rows(inner.numpy(), weights, cpu.padded(biases), num_outputs, 2 * channels, out)
    expected = F.conv2d(images.double().permute(2, 0, 1)[None], weight.double(), bias.double(), 2, (0, 1))[0, :, 0]
    assert_close_as(torch.from_numpy(out[:num_outputs, :33]), expected.T, torch.float32)


def test_processors_without_wide_vectors(cpu, tmp_path):
    """The same on AVX2's tiles, by a process that compiles for such a processor."""
    if cpu.ROWS != 8:
        pytest.skip("this processor is one")
    script = """
import numpy as np
from sumix_kernels import cpu
assert (cpu.ROWS, cpu.WIDTH, cpu.HAS_BF16) == (4, 24, False), (cpu.ROWS, cpu.WIDTH)
rng = np.random.default_rng(0)
x, weight, bias = (rng.normal(size=s).astype(np.float32) for s in ((12, 77), (50, 77), (50,)))
out = np.full((12, 72), 7, np.float32)
cpu.multiply(x, 9, cpu.panels(weight), cpu.padded(bias), 0, False, out, np.zeros((0, 0), np.int16))
expected = x.astype(float) @ weight.T.astype(float) + bias
assert np.abs(out[:9, :50] - expected[:9]).max() < 1e-4
"""
    features = "+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2,+popcnt"
    environment = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root, env=os.environ | environment)
