"""The torch backend against the fp64 textbook and torchaudio, over ragged shapes and every kind of lattice."""

import math

import pytest
import torch
import torchaudio
from conftest import assert_close_as
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sumix_kernels.rnnt import op
from sumix_kernels.rnnt.lattice import RNNT_TYPES, has_path, lattice_log_prob

few = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def draw(extents, V=6, seed=0, dtype=torch.float32, scale=1.0):
    """am, lm (leaves), symbols, boundary of utterances of the given (symbols, frames), padded with noise."""
    generator = torch.Generator().manual_seed(seed)
    S, T = max(s for s, _ in extents), max(t for _, t in extents)
    B = len(extents)
    am = (scale * torch.randn(B, T, V, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    lm = (scale * torch.randn(B, S + 1, V, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    symbols = torch.randint(1, V, (B, S), generator=generator)
    boundary = torch.tensor([[0, 0, s, t] for s, t in extents])
    return am, lm, symbols, boundary


def masked(loss, found):
    return torch.where(found, loss, 0.0)


def values_and_grads(loss, leaves, found):
    """Losses of those with a path, and gradients of their sum with differing weights."""
    loss = masked(loss, found)
    weights = torch.arange(1, len(loss) + 1, dtype=loss.dtype)
    if not loss.requires_grad:  # the textbook of a batch without any path
        return [loss, *map(torch.zeros_like, leaves)]
    return [loss, *torch.autograd.grad((loss * weights).sum(), leaves, materialize_grads=True)]


def compare(function, leaves, found, dtype, backend="torch"):
    """function(backend, *leaves) -> losses (B,)"""
    actual = values_and_grads(function(backend, *leaves), leaves, found)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = values_and_grads(function("naive", *exact), exact, found)
    for a, e in zip(actual, expected):
        assert_close_as(a, e, dtype)


extents = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=1, max_size=3)
lattices = st.tuples(st.sampled_from(RNNT_TYPES), st.sampled_from([0.0, 0.1]))


@few
@given(extents, lattices, st.sampled_from([(0.0, 0.0), (0.25, 0.0), (0.1, 0.2)]), st.sampled_from(["32", "64"]))
def test_simple_loss_equals_naive(extents, lattice, scales, bits):
    dtype = getattr(torch, f"float{bits}")
    am, lm, symbols, boundary = draw(extents, dtype=dtype)
    kind, penalty = lattice
    found = has_path(boundary, kind)

    def loss(backend, lm, am):
        return op.rnnt_loss_smoothed(lm, am, symbols, 0, *scales, boundary, kind, penalty, "none", backend=backend)

    compare(loss, [lm, am], found, dtype)

    occupations = [
        op.rnnt_loss_smoothed(lm, am, symbols, 0, *scales, boundary, kind, penalty, "none", True, backend=backend)[1]
        for backend in ("torch", "naive")
    ]
    for actual, expected in zip(*occupations):
        assert_close_as(actual, expected, dtype)


@few
@given(extents, lattices, st.sampled_from(["32", "64"]))
def test_whole_loss_equals_naive(extents, lattice, bits):
    dtype = getattr(torch, f"float{bits}")
    am, lm, symbols, boundary = draw(extents, dtype=dtype)
    logits = torch.tanh(am[:, :, None] * lm[:, None]).detach().requires_grad_()

    def loss(backend, logits):
        return op.rnnt_loss(logits, symbols, 0, boundary, *lattice, "none", backend=backend)

    compare(loss, [logits], has_path(boundary, lattice[0]), dtype)


@few
@given(extents, lattices, st.integers(1, 4), st.sampled_from(["32", "64"]))
def test_pruned_losses_equal_naive(extents, lattice, s_range, bits):
    """The fused joiner and the k2-shaped pruned loss, on the rows that the simple loss chose."""
    dtype = getattr(torch, f"float{bits}")
    kind, penalty = lattice
    s_range = max(s_range, 1 if kind == "modified" else 2)
    enc, pred, symbols, boundary = draw(extents, V=4, dtype=dtype)
    am, lm, _, _ = draw(extents, V=6, seed=1, dtype=dtype)
    symbols = symbols.clamp(max=5)
    weight = torch.randn(6, 4, dtype=dtype, requires_grad=True)
    bias = torch.randn(6, dtype=dtype, requires_grad=True)
    R = min(s_range, symbols.shape[1] + 1)
    found = has_path(boundary, kind, R)
    _, grads = op.rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, 0.0, boundary, kind, penalty, "none", True)
    ranges = op.get_rnnt_prune_ranges(*grads, boundary, s_range)
    assert ranges.shape == (*enc.shape[:2], R) and (ranges >= 0).all() and (ranges <= symbols.shape[1]).all()

    def unfused(backend, enc, pred, weight, bias):
        a, b = op.do_rnnt_pruning(enc, pred, ranges)
        logits = torch.tanh(a + b) @ weight.T + bias
        return op.rnnt_loss_pruned(logits, symbols, ranges, 0, boundary, kind, penalty, "none", backend=backend)

    def fused(backend, enc, pred, weight, bias):
        if backend == "naive":
            return unfused(backend, enc, pred, weight, bias)
        return op.torch_pieces.rnnt_loss_joint(
            enc, pred, weight, bias, symbols, ranges, 0, boundary, kind, penalty, dtype
        )

    leaves = [enc, pred, weight, bias]
    compare(unfused, leaves, found, dtype)
    compare(fused, leaves, found, dtype)
    assert torch.isfinite(unfused("torch", *leaves)[found]).all(), "has_path promised a path"
    assert torch.isinf(unfused("torch", *leaves)[~found & (boundary[:, 2] > 0)]).all()


@pytest.mark.parametrize("kind", RNNT_TYPES)
def test_begin_of_boundary(kind):
    """An utterance may begin inside its tensors: the same as one cut out."""
    am, lm, symbols, _ = draw([(5, 8), (5, 8)], dtype=torch.float64)
    boundary = torch.tensor([[1, 2, 4, 7], [0, 0, 2, 3]])
    found = torch.ones(2, dtype=torch.bool)

    def loss(backend, lm, am):
        return op.rnnt_loss_smoothed(lm, am, symbols, 0, 0.2, 0.0, boundary, kind, 0.0, "none", backend=backend)

    compare(loss, [lm, am], found, torch.float64)
    cut = op.rnnt_loss_smoothed(lm[:1, 1:5], am[:1, 2:7], symbols[:1, 1:4], 0, 0.2, 0.0, None, kind, 0.0, "none")
    assert_close_as(loss("torch", lm, am)[:1], cut, torch.float64)


@pytest.mark.parametrize("U, T", [(1, 1), (3, 7), (9, 4), (20, 33)])
def test_torchaudio_agrees(U, T):
    am, lm, symbols, boundary = draw([(U, T), (max(1, U // 2), max(1, T // 2))], V=11)
    logits = (am[:, :, None] * lm[:, None]).detach().requires_grad_()
    losses = op.rnnt_loss(logits, symbols, 0, boundary, reduction="none")
    lengths = boundary[:, 3].int(), boundary[:, 2].int()
    expected = torchaudio.functional.rnnt_loss(logits, symbols.int(), *lengths, blank=0, reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (losses, expected)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=2e-5)


def test_by_hand():
    """Two frames, one symbol, uniform over two labels: two paths of three steps; modified: two of two."""
    logits, symbols = torch.zeros(1, 2, 2, 2), torch.ones(1, 1, dtype=torch.int64)
    for kind, steps in (("regular", 3), ("modified", 2), ("constrained", 3)):
        loss = op.rnnt_loss(logits, symbols, 0, rnnt_type=kind, reduction="sum")
        assert loss.item() == pytest.approx(-math.log(2 * 0.5**steps), rel=1e-6), kind


@pytest.mark.parametrize("kind", RNNT_TYPES)
def test_occupations_are_probabilities(kind):
    """Every path emits each symbol once and leaves each frame once, whatever the weights, over 2000 frames too."""
    am, lm, symbols, boundary = draw([(30, 2000), (7, 1500)], V=9, scale=5.0)
    _, (px, py) = op.rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, 0.0, boundary, kind, return_grad=True)
    for b, (_, _, S, T) in enumerate(boundary.tolist()):
        torch.testing.assert_close(px[b, :S].sum(1), torch.ones(S), rtol=0, atol=1e-5)
        frames = py[b].sum(0) + (0.0 if kind == "regular" else px[b].sum(0))
        torch.testing.assert_close(frames[:T], torch.ones(T), rtol=0, atol=1e-5)
        assert not px[b, S:].any() and not px[b, :, T:].any() and not py[b, S + 1 :].any() and not py[b, :, T:].any()


@pytest.mark.parametrize("kind", RNNT_TYPES)
def test_gradcheck(kind):
    px = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    py = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    boundary = torch.tensor([[0, 0, 2, 4], [0, 0, 1, 3]])
    torch.autograd.gradcheck(lambda px, py: lattice_log_prob(px, py, boundary, kind, 0.1)[0], (px, py))


def test_reductions():
    am, lm, symbols, boundary = draw([(2, 5), (3, 4)])
    none, mean, total = (
        op.rnnt_loss_smoothed(lm, am, symbols, 0, boundary=boundary, reduction=r) for r in ("none", "mean", "sum")
    )
    torch.testing.assert_close(mean, none.mean())
    torch.testing.assert_close(total, none.sum())


def test_delay_penalty_prefers_early_symbols():
    am, lm, symbols, boundary = draw([(4, 30)], scale=0.0)  # all paths alike
    frames = torch.arange(31.0)
    centres = []
    for penalty in (0.0, 0.2):
        _, (px, _) = op.rnnt_loss_smoothed(
            lm, am, symbols, 0, boundary=boundary, delay_penalty=penalty, return_grad=True
        )
        centres.append((px * frames).sum().item() / 4)
    assert centres[0] == pytest.approx(14.5) and centres[1] < 8
