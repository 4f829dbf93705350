"""Compiled steps against PyTorch in fp64, at odd sizes."""

import numpy as np
import pytest
import torch
from conftest import assert_close_as, needs_numba
from torch import Tensor
from torch.nn import functional as F

pytestmark = needs_numba
EPS = np.float32(1e-5)
B, C, D, TAPS = 4, 7, 37, 5
LENGTHS = torch.tensor([C, 3, 0, C])


@pytest.fixture(scope="module")
def cpu():
    return pytest.importorskip("sumix_kernels.cpu")


def close(actual: Tensor, expected: Tensor) -> None:
    assert_close_as(actual, expected, torch.float32)


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), float(EPS))


def valid() -> Tensor:
    """(B, C, 1)"""
    return (torch.arange(C) < LENGTHS[:, None])[:, :, None]


def test_normalise(cpu):
    x, weight, bias, out = torch.randn(9, D), torch.randn(D), torch.randn(D), torch.full((9, D), 7.0)
    cpu.normalise(*map(Tensor.numpy, (x,)), 8, weight.numpy(), bias.numpy(), EPS, out.numpy())
    close(out[:8], norm(x[:8], weight, bias))
    assert (out[8] == 7).all(), "rows that fill up are left alone"


@pytest.mark.parametrize("scale", [0.1, 3.0, 200.0])
def test_gelu_sigmoid_and_their_ends(cpu, scale):
    """Through `merge` and `convolve`, whose norms are made to do nothing."""
    x = scale * torch.randn(C, D)
    x[0, :4] = torch.tensor([0.0, -0.0, 1e4, -1e4])
    rows, out, none = torch.zeros(C, D), torch.empty(C, D), torch.zeros(1, D)
    ones, zeros = torch.ones(D), torch.zeros(D)
    cpu.merge(*map(Tensor.numpy, (rows, x, none)), C, C, ones.numpy(), zeros.numpy(), EPS, out.numpy())
    close(rows, F.gelu(x.double()))
    gates = torch.cat([torch.ones_like(x), x.flip(0)], 1)
    state, after, taps = torch.zeros(1, D), torch.zeros(1, D), torch.ones(3, D)
    length = torch.tensor([C])
    shift = torch.randn(D)
    arrays = (x.numpy() for x in (taps, zeros, torch.zeros(D), shift))
    cpu.convolve(gates.numpy(), length.numpy(), C, state.numpy(), after.numpy(), 0, *arrays, EPS, out.numpy())
    close(out, F.silu(shift.double()).expand(C, D))  # a norm without weight: what is left is its bias
    close(after[0], x[0].double().sigmoid())  # the last frame, whose ends are the first's above


def test_not_a_number_stays_one(cpu):
    x, rows = torch.randn(C, D), torch.zeros(C, D)
    x[2, 5] = float("nan")
    out, none, ones = torch.empty(C, D), torch.zeros(1, D), torch.ones(D)
    cpu.merge(*map(Tensor.numpy, (rows, x, none)), C, C, ones.numpy(), ones.numpy(), EPS, out.numpy())
    assert rows[2, 5].isnan() and rows.isnan().sum() == 1
    assert out[2].isnan().all() and out.isnan().sum() == D


@pytest.mark.parametrize("kept", [None, 0, 1, 4])
def test_summarise(cpu, kept):
    """Six chunks: the mean over this chunk and the last L, and the local features."""
    size = D * (1 if kept is None else kept)
    sums_at, compensation_at, counts_at = 3, 3 + size, 3 + size + D
    state = torch.zeros(B, counts_at + (1 if kept is None else kept) + 2)
    past: list[tuple[Tensor, Tensor]] = []
    for n in range(6):
        lengths = torch.where(torch.tensor(n < 5), torch.full((B,), C), LENGTHS)
        projected, local, mean = torch.randn(B * C, 2 * D), torch.empty(B * C, D), torch.full((B + 1, D), 7.0)
        after = state.clone()
        cpu.summarise(
            projected.numpy(), lengths.numpy(), C, state.numpy(), after.numpy(), sums_at, compensation_at, counts_at,
            kept or 0, kept is None, D, local.numpy(), mean.numpy(),
        )  # fmt: skip
        own, summands = projected.double().view(B, C, 2 * D).chunk(2, -1)
        close(local, F.gelu(own).flatten(0, 1))
        inside = (torch.arange(C) < lengths[:, None])[:, :, None]
        past.append(((F.gelu(summands) * inside).sum(1), lengths.double()))
        seen = past if kept is None else past[-kept - 1 :]
        total, count = (sum(parts) for parts in zip(*seen, strict=True))
        close(mean[:B], total / count.clamp(min=1)[:, None])
        assert (mean[B] == 7).all() and torch.equal(after[:, :3], state[:, :3]), "what is others' is left alone"
        assert torch.equal(after[:, -2:], state[:, -2:])
        state = after


def test_long_sums_keep_their_digits(cpu):
    """fp32 alone would stand still at 2**24, and so would a sum that a compiler may reorder."""
    state = torch.zeros(1, 2 * D + 1)
    state[:, :D], state[:, -1] = 2.0**24, 2.0**23
    projected = torch.full((C, 2 * D), 1.0)
    local, mean = torch.empty(C, D), torch.empty(1, D)
    length = torch.tensor([1])
    for _ in range(1000):
        after = torch.empty_like(state)
        arrays = (projected.numpy(), length.numpy(), C, state.numpy(), after.numpy(), 0, D, 2 * D, 1, True, D)
        cpu.summarise(*arrays, local.numpy(), mean.numpy())
        state = after
    added = 1000 * F.gelu(torch.tensor(1.0, dtype=torch.float64))
    kept = state[:, :D].double() + state[:, D : 2 * D].double() - 2.0**24
    torch.testing.assert_close(kept, added.expand(1, D), rtol=2e-5, atol=0)
    close(mean, ((2.0**24 + added) / (2**23 + 1000)).expand(1, D))


def test_merge(cpu):
    rows, local, summary = torch.randn(B * C, D), torch.randn(B * C, D), torch.randn(B, D)
    weight, bias, out = torch.randn(D), torch.randn(D), torch.empty(B * C, D)
    merged = F.gelu(local.double() + summary.double().repeat_interleave(C, 0))
    expected = rows.double() + merged
    arrays = (part.numpy() for part in (rows, local, summary))
    cpu.merge(*arrays, B * C, C, weight.numpy(), bias.numpy(), EPS, out.numpy())
    close(rows, expected)
    close(out, norm(expected, weight, bias))


@pytest.mark.parametrize("frames", [1, 2, C])
def test_convolve(cpu, frames):
    """Chunks shorter than the taps, too; streams at their end among others; the next chunk after the state."""
    at, half = 2, TAPS // 2
    taps, tap_bias, weight, bias = (torch.randn(*shape) for shape in ((TAPS, D), (D,), (D,), (D,)))
    state = torch.randn(B, at + half * D + 1)
    lengths = LENGTHS.clamp(max=frames)
    gates, out, after = torch.randn(B * frames, 2 * D), torch.full((B * frames + 1, D), 7.0), state.clone()
    arrays = (part.numpy() for part in (taps, tap_bias, weight, bias))
    cpu.convolve(gates.numpy(), lengths.numpy(), frames, state.numpy(), after.numpy(), at, *arrays, EPS, out.numpy())
    for b, length in enumerate(lengths.tolist()):
        past = state[b, at : at + half * D].view(half, D).double()
        x = torch.cat([past, F.glu(gates.double().view(B, frames, -1)[b, :length])])
        y = F.conv1d(F.pad(x.T[None], (0, half + 1)), taps.double().T[:, None], tap_bias.double(), groups=D)[0].T
        close(out.view(-1, D)[b * frames : b * frames + length], F.silu(norm(y, weight, bias))[:length])
        close(after[b, at : at + half * D].view(half, D), x[length : length + half])
    assert torch.equal(after[:, :at], state[:, :at]) and torch.equal(after[:, -1], state[:, -1])
    assert (out[-1] == 7).all()


def test_finish(cpu):
    rows, weight, bias, out = torch.randn(B * C, D), torch.randn(D), torch.randn(D), torch.full((B * C, D), 7.0)
    cpu.finish(rows.numpy(), LENGTHS.numpy(), C, weight.numpy(), bias.numpy(), EPS, out.numpy())
    close(out.view(B, C, D), norm(rows, weight, bias).view(B, C, D) * valid())


@pytest.mark.parametrize("num_feats", [1, 2, 3, 4, 13, 16])
def test_enter(cpu, num_feats):
    """Normalisation, the first convolution and SiLU after a past, streams at their end among others."""
    bins, channels = 10, 5
    feats, mean, std = torch.randn(B, num_feats, bins), torch.randn(bins), 0.5 + torch.rand(bins)
    lengths = torch.tensor([num_feats, (num_feats + 1) // 2, 0, num_feats])
    weight, bias = torch.randn(channels, 1, 3, 3), torch.randn(channels)
    state = torch.randn(B, 1 + bins + channels * bins // 2)
    halved = -(-num_feats // 2)
    images = torch.full((B, 1 + halved + halved % 2, bins // 2 + 2, channels), 7.0)
    after = torch.full_like(state, 7.0)
    taps = weight[:, 0].permute(1, 2, 0).contiguous()
    for b in range(B):
        before = (mean.numpy(), (1 / std).numpy(), state[b].numpy(), after[b].numpy(), 1, 1 + bins)
        cpu.enter(feats[b].numpy(), int(lengths[b]), *before, taps.numpy(), bias.numpy(), images[b].numpy())
    assert not images[:, :, 0].any() and not images[:, :, -1].any()
    images = images[:, :, 1:-1]
    x = (feats.double() - mean.double()) / std.double()
    x = x * (torch.arange(num_feats) < lengths[:, None])[:, :, None]
    x = torch.cat([state[:, None, 1 : 1 + bins].double(), x], 1)
    y = F.silu(F.conv2d(F.pad(x, (1, 1, 0, num_feats % 2))[:, None], weight.double(), bias.double(), stride=2))
    y = y.permute(0, 2, 3, 1) * (torch.arange(halved) < (lengths[:, None] + 1) // 2)[:, :, None, None]
    past = state[:, 1 + bins :].view(B, channels, 1, bins // 2).permute(0, 2, 3, 1)
    close(images[:, : 1 + halved], torch.cat([past.double(), y], 1))
    assert not images[:, 1 + halved :].any()
    close(after[:, 1 : 1 + bins], x[:, -1])
    close(after[:, 1 + bins :].view(B, channels, -1), images[:, halved].transpose(1, 2))


def test_every_stream_gets_the_same_bits_alone(cpu):
    rows, local, summary = torch.randn(B * C, D), torch.randn(B * C, D), torch.randn(B, D)
    weight, bias = torch.randn(D), torch.randn(D)
    together, alone = rows.clone(), rows.clone()
    outs = torch.empty(2, B * C, D)
    norms = weight.numpy(), bias.numpy(), EPS
    cpu.merge(*(x.numpy() for x in (together, local, summary)), B * C, C, *norms, outs[0].numpy())
    for b in range(B):
        part = slice(b * C, (b + 1) * C)
        arrays = (x.numpy() for x in (alone[part], local[part], summary[b : b + 1]))
        cpu.merge(*arrays, C, C, *norms, outs[1, part].numpy())
    assert torch.equal(together, alone) and torch.equal(*outs)


def test_without_a_place_to_keep_what_is_compiled(monkeypatch):
    from sumix_kernels.cpu import compiled

    def njit(function, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return function

    monkeypatch.setattr(compiled.numba, "njit", njit)
    assert compiled.compiled(max)(1, 2) == 2


def test_what_is_kept_is_of_all_sources(cpu):
    """Numba by itself would take code again whose callees in other files have changed."""
    from sumix_kernels.cpu import compiled

    names = {name for name, _, _ in compiled._STAMP}
    assert {"compiled.py", "products.py", "layers.py"} <= names
    assert cpu.step_layers._cache._cache_file._source_stamp == compiled._STAMP
