"""The recursion on any px and py, as k2compat gives it: against every path one by one, and the fp64 textbook."""

import itertools
import math

import pytest
import torch
from conftest import assert_close_as
from hypothesis import given
from hypothesis import strategies as st
from test_rnnt_losses import few
from test_rnnt_robust import NoHostWait

from sumix_kernels import k2compat as k2
from sumix_kernels.rnnt import arguments, naive

INF = float("inf")


def paths(px, py, extent):
    """Every path of one utterance: lists of steps ("x" or "y", s, t), without any recursion over scores."""
    s0, t0, s1, t1 = extent
    regular = px.shape[1] == py.shape[1] + 1
    for moves in set(itertools.permutations("x" * (s1 - s0) + "y" * (t1 - t0 - (0 if regular else s1 - s0)))):
        s, t, steps = s0, t0, []
        for move in moves:
            steps.append((move, s, t))
            s, t = s + (move == "x"), t + (move == "y" or not regular)
        assert (s, t) == (s1, t1)
        yield steps


def by_paths(px, py, boundary):
    """Result (B,) and the expected number of times that each step is taken."""
    results, counts = [], (torch.zeros_like(px), torch.zeros_like(py))
    for b, extent in enumerate(boundary.tolist()):
        found = list(paths(px[b], py[b], extent))
        scores = [sum({"x": px, "y": py}[move][b, s, t].item() for move, s, t in steps) for steps in found]
        best = max(scores)
        total = best + math.log(sum(math.exp(score - best) for score in scores)) if best > -INF else -INF
        results.append(total)
        for steps, score in zip(found, scores):
            for move, s, t in steps if score > -INF else ():
                counts[move == "y"][b, s, t] += math.exp(score - total)
    return torch.tensor(results, dtype=torch.float64), *counts


TINY = torch.tensor([[0, 0, 3, 4], [1, 1, 3, 4], [0, 2, 1, 3], [2, 0, 2, 3], [1, 1, 1, 1]])


def random_arcs(boundary, S, T, regular, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    px = torch.randn(len(boundary), S, T + regular, generator=generator, dtype=torch.float64)
    py = torch.randn(len(boundary), S + 1, T, generator=generator, dtype=torch.float64)
    return px.to(dtype).requires_grad_(), py.to(dtype).requires_grad_()


def recursion_and_grads(px, py, boundary, **options):
    """Result, occupations, and the gradients of a weighted sum divided by the weights."""
    result, occupations = k2.mutual_information_recursion(px, py, boundary, return_grad=True, **options)
    weights = torch.arange(1, len(px) + 1, dtype=result.dtype, device=result.device)
    grads = torch.autograd.grad((result * weights).where(result > -INF, 0).sum(), [px, py])
    return result, *occupations, *(grad.double() / weights[:, None, None] for grad in grads)


@pytest.mark.parametrize("regular", [True, False], ids=["regular", "modified"])
@pytest.mark.parametrize("backend", ["torch", "naive"])
def test_recursion_path_by_path(regular, backend):
    """Symbols after the last frame of the regular lattice included."""
    px, py = random_arcs(TINY, 3, 4, regular)
    expected = by_paths(px.detach(), py.detach(), TINY)
    actual = recursion_and_grads(px, py, TINY, backend=backend)
    for a, e in zip(actual, (*expected, *expected[1:])):
        assert_close_as(a, e, torch.float64)


@pytest.mark.parametrize("regular", [True, False], ids=["regular", "modified"])
def test_recursion_without_boundary(regular):
    px, py = random_arcs(TINY, 3, 4, regular)
    whole = torch.tensor([[0, 0, 3, 4]]).expand(len(TINY), 4)
    assert torch.equal(k2.mutual_information_recursion(px, py), k2.mutual_information_recursion(px, py, whole))


@pytest.mark.parametrize("regular", [True, False], ids=["regular", "modified"])
def test_recursion_with_steps_ruled_out(regular):
    """Steps of -inf, up to utterances without a path: -inf there, with zero gradients."""
    px, py = random_arcs(TINY, 3, 4, regular)
    with torch.no_grad():
        px[0, 1, 1:] = py[0, 0, 2] = py[1, :, 2] = -INF
        px[2, 0] = -INF
    expected = by_paths(px.detach(), py.detach(), TINY)
    assert (expected[0] == -INF).any() and (expected[0] > -INF).any()
    result, *grads = recursion_and_grads(px, py, TINY, backend="torch")
    found = result > -INF
    assert torch.equal(found, expected[0] > -INF)
    assert_close_as(result[found], expected[0][found], torch.float64)
    for a, e in zip(grads, expected[1:] * 2):
        assert_close_as(a, e, torch.float64)


@pytest.mark.parametrize("regular", [True, False], ids=["regular", "modified"])
@pytest.mark.parametrize("garbage", [float("nan"), INF])
def test_recursion_reads_nothing_outside_the_boundary(regular, garbage):
    px, py = random_arcs(TINY, 3, 4, regular)
    expected = recursion_and_grads(px, py, TINY)
    with torch.no_grad():
        for b, (s0, t0, s1, t1) in enumerate(TINY.tolist()):
            for arcs, rows, frames in ((px, s1, t1 + regular), (py, s1 + 1, t1)):
                outside = torch.ones_like(arcs[b], dtype=torch.bool)
                outside[s0:rows, t0:frames] = False
                arcs[b][outside] = garbage
    for a, e in zip(recursion_and_grads(px, py, TINY), expected):
        assert torch.equal(a, e)


extents = st.lists(st.tuples(*[st.integers(0, n) for n in (1, 2, 3, 5)]), min_size=1, max_size=2)


def ragged(extents, regular):
    boundary = torch.tensor([[s, t, s + S, t + (T if regular else max(S, T))] for s, t, S, T in extents])
    S, T = boundary[:, 2].max().item(), boundary[:, 3].max().item()
    return random_arcs(boundary, S, T, regular), boundary


@few
@given(extents, st.booleans(), st.sampled_from(["float32", "float64", "float16", "bfloat16"]))
def test_recursion_equals_naive(extents, regular, dtype):
    dtype = getattr(torch, dtype)
    (px, py), boundary = ragged(extents, regular)
    px, py = (x.detach().to(dtype).requires_grad_() for x in (px, py))
    wide = torch.promote_types(dtype, torch.float32)
    result, *occupations_and_grads = recursion_and_grads(px, py, boundary)
    expected, *occupations = naive.mutual_information(px.detach(), py.detach(), boundary)
    assert result.dtype == occupations_and_grads[0].dtype == wide
    assert_close_as(result, expected, wide)
    for a, e, type_of_it in zip(occupations_and_grads, occupations * 2, (wide, wide, dtype, dtype)):
        assert_close_as(a, e, type_of_it)


@pytest.mark.parametrize("regular", [True, False], ids=["regular", "modified"])
def test_recursion_gradcheck(regular):
    px, py = random_arcs(TINY[:3], 3, 4, regular)
    torch.autograd.gradcheck(lambda px, py: k2.mutual_information_recursion(px, py, TINY[:3]), (px, py))


def test_recursion_over_many_frames():
    """Scores of thousands keep their digits: one symbol of weight 15 in 3000 free frames, log(3001) + 15."""
    px, py = torch.full((1, 1, 3001), 15.0), torch.zeros(1, 2, 3000)
    torch.testing.assert_close(k2.mutual_information_recursion(px, py), torch.tensor([15 + math.log(3001)]))
    py += 15.0
    torch.testing.assert_close(k2.mutual_information_recursion(px, py), torch.tensor([45015 + math.log(3001)]))


# Divided among terms


@pytest.mark.parametrize("regular", [True, False], ids=["regular", "modified"])
def test_joint_recursion(regular):
    """Parts add up to the result; all but the first are what a term adds on average over the paths."""
    total = random_arcs(TINY, 3, 4, regular)
    shares = [torch.rand(()).item() * torch.randn_like(x) for x in total]
    px, py = ([(x - share).detach().requires_grad_(), share.requires_grad_()] for x, share in zip(total, shares))
    expected, *counts = by_paths(total[0].detach(), total[1].detach(), TINY)
    parts = k2.joint_mutual_information_recursion(px, py, TINY)
    assert parts.shape == (2, len(TINY))
    assert_close_as(parts.sum(0), expected, torch.float64)
    average = sum((count * terms[1]).sum((1, 2)) for count, terms in zip(counts, (px, py)))
    assert_close_as(parts[1], average, torch.float64)

    weights = torch.tensor([[2.0], [3.0]], dtype=torch.float64)
    grads = torch.autograd.grad((parts * weights).sum(), [*px, *py])
    for grad, (weight, count) in zip(grads, [(w, count) for count in counts for w in (2, 3)]):
        assert_close_as(grad, weight * count, torch.float64)


def test_joint_recursion_with_steps_ruled_out():
    px, py = random_arcs(TINY[:1], 3, 4, True)
    ruled_out = torch.zeros_like(px)
    ruled_out[0, 1, 2:] = ruled_out[0, 2, :2] = -INF
    parts = k2.joint_mutual_information_recursion([px, ruled_out], [py, torch.zeros_like(py)], TINY[:1])
    expected = k2.mutual_information_recursion(px + ruled_out, py, TINY[:1])
    assert parts[1] == 0
    assert_close_as(parts.sum(0), expected, torch.float64)
    for grad, like in zip(*(torch.autograd.grad(x.sum(), [px, py]) for x in (parts, expected))):
        assert_close_as(grad, like, torch.float64)


# Backends


@pytest.mark.parametrize("regular", [True, False], ids=["regular", "modified"])
def test_recursion_in_triton(triton_device, regular):
    pytest.importorskip("triton")
    boundary = TINY[:3]
    px, py = random_arcs(boundary, 3, 4, regular, torch.float32)
    with torch.no_grad():
        px[0, 1, 1] = -INF
    expected = by_paths(px.detach().double(), py.detach().double(), boundary)
    px, py = (x.detach().to(triton_device).requires_grad_() for x in (px, py))
    actual = recursion_and_grads(px, py, boundary.to(triton_device), backend="triton")
    for a, e in zip(actual, (*expected, *expected[1:])):
        assert_close_as(a, e, torch.float32)
    parts = k2.joint_mutual_information_recursion(
        [px / 2, px / 2], [py, 0 * py.detach().nan_to_num(neginf=0)], boundary.to(triton_device), backend="triton"
    )
    assert_close_as(parts.sum(0), expected[0], torch.float32)


def test_nothing_waits_for_the_device(monkeypatch):
    monkeypatch.setattr(arguments, "readable", lambda _: False)  # values are looked at on the CPU only
    px, py = random_arcs(TINY, 3, 4, True)
    with NoHostWait():
        k2.mutual_information_recursion(px, py, TINY, return_grad=True)[0].sum().backward()
        k2.joint_mutual_information_recursion([px, px], [py, py], TINY).sum().backward()
