"""k2's functions under k2's names: parameters, pieces against the losses, golden numbers of k2, k2's own tests."""

import contextlib
import importlib.util
import inspect
import io
import itertools
import math
import os
import sys
import unittest
import warnings
from pathlib import Path

import pytest
import torch
from conftest import assert_close_as
from hypothesis import given
from hypothesis import strategies as st
from test_rnnt_golden import GOLDEN, Case
from test_rnnt_losses import draw, few

from sumix_kernels import k2compat as k2
from sumix_kernels.rnnt import naive
from sumix_kernels.rnnt.lattice import RNNT_TYPES, has_path

INF = float("inf")

# Parameters of k2 1.24.4, in their order.
LOSS = "boundary rnnt_type delay_penalty reduction"
PARAMETERS = {
    "rnnt_loss_simple": f"lm am symbols termination_symbol {LOSS} return_grad",
    "rnnt_loss_smoothed": f"lm am symbols termination_symbol lm_only_scale am_only_scale {LOSS} return_grad",
    "rnnt_loss": f"logits symbols termination_symbol {LOSS}",
    "rnnt_loss_pruned": f"logits symbols ranges termination_symbol {LOSS} use_hat_loss",
    "get_rnnt_logprobs": "lm am symbols termination_symbol rnnt_type boundary",
    "get_rnnt_logprobs_joint": "logits symbols termination_symbol rnnt_type boundary",
    "get_rnnt_logprobs_pruned": "logits symbols ranges termination_symbol boundary rnnt_type",
    "get_hat_logprobs_pruned": "logits symbols ranges termination_symbol boundary rnnt_type",
    "get_rnnt_logprobs_smoothed": ("lm am symbols termination_symbol lm_only_scale am_only_scale boundary rnnt_type"),
    "get_rnnt_prune_ranges": "px_grad py_grad boundary s_range",
    "get_rnnt_prune_ranges_deprecated": "px_grad py_grad boundary s_range",
    "do_rnnt_pruning": "am lm ranges",
    "mutual_information_recursion": "px py boundary return_grad",
    "joint_mutual_information_recursion": "px py boundary",
}
DEFAULTS = {
    "boundary": None,
    "rnnt_type": "regular",
    "delay_penalty": 0.0,
    "reduction": "mean",
    "return_grad": False,
    "use_hat_loss": False,
    "lm_only_scale": 0.1,
    "am_only_scale": 0.1,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    parameters = inspect.signature(getattr(k2, name)).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in positional] == PARAMETERS[name].split()
    for parameter in positional:
        if parameter.default is not parameter.empty:
            assert parameter.default == DEFAULTS[parameter.name], parameter


def test_public_names():
    assert set(k2.__all__) == {*PARAMETERS, "with_cuda"}


# From network outputs to px and py


def expected_arcs(log_probs, symbols, boundary, kind):
    """px and py from log-probabilities (B, T, S+1, V), entry by entry."""
    B, T, S1, _ = log_probs.shape
    px = torch.full((B, S1 - 1, T + (kind == "regular")), -INF, dtype=torch.float64)
    py = log_probs[..., 0].transpose(1, 2)
    for b, s, t in itertools.product(range(B), range(S1 - 1), range(T)):
        if kind == "regular" and t == boundary[b, 3]:
            continue
        px[b, s, t] = log_probs[b, t, s, symbols[b, s]] + (py[b, s + 1, t] if kind == "constrained" else 0.0)
    return px, py


def same(actual, expected, dtype):
    """Equal where finite, and -inf in the same places."""
    for a, e in zip(actual, expected):
        assert a.shape == e.shape and torch.equal(a == -INF, e == -INF)
        assert_close_as(a.masked_fill(a == -INF, 0), e.masked_fill(e == -INF, 0), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", RNNT_TYPES)
def test_log_probs(kind, dtype):
    am, lm, symbols, boundary = draw([(3, 5), (2, 4), (0, 2)], dtype=dtype)
    am, lm = am.detach(), lm.detach()
    wide = torch.promote_types(dtype, torch.float32)
    joint = (am.double()[:, :, None] + lm.double()[:, None]).log_softmax(-1)
    expected = expected_arcs(joint, symbols, boundary, kind)
    same(k2.get_rnnt_logprobs(lm, am, symbols, 0, kind, boundary), expected, wide)

    logits = am[:, :, None] + lm[:, None]
    expected = expected_arcs(logits.double().log_softmax(-1), symbols, boundary, kind)
    same(k2.get_rnnt_logprobs_joint(logits, symbols, 0, kind, boundary), expected, wide)

    lm_only = lm.double().log_softmax(-1)[:, None]
    am_only = (am.double() + lm.double().softmax(-1).mean((0, 1)).log()).log_softmax(-1)[:, :, None]
    expected = expected_arcs(0.7 * joint + 0.2 * lm_only + 0.1 * am_only, symbols, boundary, kind)
    same(k2.get_rnnt_logprobs_smoothed(lm, am, symbols, 0, 0.2, 0.1, boundary, kind), expected, wide)


@pytest.mark.parametrize("kind", RNNT_TYPES)
@pytest.mark.parametrize("hat", [False, True], ids=["softmax", "hat"])
def test_pruned_log_probs(kind, hat):
    """Of the kept rows as without pruning, -inf elsewhere."""
    am, lm, symbols, boundary = draw([(4, 6), (2, 5)], dtype=torch.float64)
    logits = (am[:, :, None] + lm[:, None]).detach()
    ranges = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1]])[:, :, None] + torch.arange(3)
    kept = logits.gather(2, ranges[..., None].expand(-1, -1, -1, logits.shape[-1]))
    log_probs = naive.hat_log_probs(logits, 0) if hat else logits.log_softmax(-1)
    pruned = torch.ones(logits.shape[:3], dtype=torch.bool).scatter(2, ranges, False)
    expected = expected_arcs(log_probs.masked_fill(pruned[..., None], -INF), symbols, boundary, kind)
    function = k2.get_hat_logprobs_pruned if hat else k2.get_rnnt_logprobs_pruned
    same(function(kept, symbols, ranges, 0, boundary, kind), expected, torch.float64)


@few
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), min_size=1, max_size=3),
    st.sampled_from(RNNT_TYPES),
    st.sampled_from(["none", "mean", "sum"]),
    st.booleans(),
)
def test_losses_are_the_recursion_of_the_log_probs(extents, kind, reduction, whole):
    """As k2's documentation has them, with gradients; the simple loss is the textbook's."""
    extents = [(s, t if kind == "regular" else max(s, t)) for s, t in extents]
    am, lm, symbols, boundary = draw(extents, dtype=torch.float64)
    if whole:
        boundary = None if kind == "regular" or symbols.shape[1] <= am.shape[1] else boundary
    reduce = {"none": lambda x: x, "mean": torch.mean, "sum": torch.sum}[reduction]
    logits = am[:, :, None] * lm[:, None]
    options = {"boundary": boundary, "rnnt_type": kind, "reduction": reduction}

    px, py = k2.get_rnnt_logprobs(lm, am, symbols, 0, kind, boundary)
    result, occupations = k2.mutual_information_recursion(px, py, boundary, return_grad=True)
    loss, grads = k2.rnnt_loss_simple(lm, am, symbols, 0, return_grad=True, **options)
    pairs = [(loss, -reduce(result))]
    pairs.append((loss, reduce(naive_simple(lm, am, symbols, boundary, kind))))
    for a, e in zip(grads, occupations):
        assert_close_as(a, e, torch.float64)

    px, py = k2.get_rnnt_logprobs_joint(logits, symbols, 0, kind, boundary)
    result = k2.mutual_information_recursion(px, py, boundary)
    pairs.append((k2.rnnt_loss(logits, symbols, 0, **options), -reduce(result)))
    for actual, expected in pairs:
        assert_close_as(actual, expected, torch.float64)
        grads = [torch.autograd.grad(x.sum(), [am, lm], retain_graph=True) for x in (actual, expected)]
        for a, e in zip(*grads):
            assert_close_as(a, e, torch.float64)


def naive_simple(lm, am, symbols, boundary, kind):
    if boundary is None:
        boundary = torch.tensor([[0, 0, symbols.shape[1], am.shape[1]]] * len(am))
    return naive.rnnt_loss_smoothed(lm, am, symbols, 0, 0.0, 0.0, boundary, kind, 0.0)[0]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(path):
    """k2's own numbers, step by step through the pieces, the delay penalty added by hand as k2's users do."""
    case = Case(path)
    kind, boundary = case.lattice["rnnt_type"], case["boundary"]
    T = case["am"].shape[1]

    def penalty(columns):
        return case.lattice["delay_penalty"] * ((boundary[:, 3, None, None] - 1) / 2 - torch.arange(columns))

    scales = case.scalar("lm_only_scale"), case.scalar("am_only_scale")
    px, py = k2.get_rnnt_logprobs_smoothed(case["lm"], case["am"], case["symbols"], 0, *scales, boundary, kind)
    result, (px_grad, py_grad) = k2.mutual_information_recursion(px + penalty(px.shape[2]), py, boundary, True)
    case.holds(simple_loss=-result, px_grad=px_grad, py_grad=py_grad)

    ranges = k2.get_rnnt_prune_ranges(case["px_grad"], case["py_grad"], boundary, case.scalar("s_range"))
    assert torch.equal(ranges, case["ranges"])
    am, lm = k2.do_rnnt_pruning(case["h_am"], case["h_lm"], ranges)
    logits = torch.tanh(am + lm) @ case["w"].T + case["b"]
    px, py = k2.get_rnnt_logprobs_pruned(logits, case["symbols"], ranges, 0, boundary, kind)
    assert px.shape[2] == T + (kind == "regular")
    case.holds(pruned_loss=-k2.mutual_information_recursion(px + penalty(px.shape[2]), py, boundary))


@pytest.mark.parametrize("kind", RNNT_TYPES)
@pytest.mark.parametrize("ruled_out", ["lm", "am"])
def test_symbols_ruled_out_by_infinite_logits(kind, ruled_out):
    """A vocabulary masked by -inf: losses and gradients as without those symbols, and none of them nan."""
    am, lm, symbols, boundary = draw([(3, 6), (2, 4)], V=6)
    options = {"boundary": boundary, "rnnt_type": kind, "reduction": "sum"}

    def losses(am, lm):
        yield k2.rnnt_loss_simple(lm, am, symbols, 0, **options)
        logits = am[:, :, None] + lm[:, None]
        yield k2.rnnt_loss(logits, symbols, 0, **options)
        ranges = torch.arange(symbols.shape[1] + 1).expand(logits.shape[:3])
        yield k2.rnnt_loss_pruned(logits, symbols, ranges, 0, **options)
        yield k2.rnnt_loss_pruned(logits, symbols, ranges, 0, use_hat_loss=True, **options)
        if ruled_out == "lm":  # else its language part alone could say them
            yield k2.rnnt_loss_smoothed(lm, am, symbols, 0, 0.2, 0.1, **options)

    def padded(x, value):
        return torch.nn.functional.pad(x, (0, 1), value=value)

    masks = {"am": (-INF, 0.0), "lm": (0.0, -INF)}[ruled_out]
    masked = [padded(x, value) for x, value in zip((am, lm), masks)]
    for actual, expected in zip(losses(*masked), losses(am, lm), strict=True):
        assert_close_as(actual, expected, torch.float32)
        grads = [torch.autograd.grad(loss, [am, lm]) for loss in (actual, expected)]
        for a, e in zip(*grads):
            assert_close_as(a, e, torch.float32)


# Which rows to keep


def occupations(am, lm, symbols, boundary, kind):
    return k2.rnnt_loss_simple(lm, am, symbols, 0, boundary, kind, return_grad=True)[1]


@pytest.mark.parametrize("many", [(9, 2), (9, 4), (5, 1), (10, 3)])
def test_ranges_are_widened_until_every_utterance_has_a_path(many):
    am, lm, symbols, boundary = draw([many, (2, 3)], dtype=torch.float64)
    grads = occupations(am, lm, symbols, boundary, "regular")
    least = math.ceil(many[0] / many[1]) + 1
    assert not has_path(boundary, s_range=least - 1).all() and has_path(boundary, s_range=least).all()
    with pytest.warns(UserWarning, match=rf"s_range = 2 .*{least} rows .*symbols \[{many[0]}, 2\]"):
        ranges = k2.get_rnnt_prune_ranges(*grads, boundary, 2)
    assert ranges.shape == (2, am.shape[1], least)
    a, b = k2.do_rnnt_pruning(am, lm, ranges)
    for hat in (False, True):
        loss = k2.rnnt_loss_pruned(torch.tanh(a + b), symbols, ranges, 0, boundary, reduction="none", use_hat_loss=hat)
        assert loss.isfinite().all()
        for grad in torch.autograd.grad(loss.sum(), [am, lm], retain_graph=True):
            assert grad.isfinite().all() and grad.any()


def test_ranges_wide_enough_are_left_alone():
    am, lm, symbols, boundary = draw([(9, 9), (0, 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ranges = k2.get_rnnt_prune_ranges(*occupations(am, lm, symbols, boundary, "regular"), boundary, 2)
        assert ranges.shape[2] == 2
        am, lm, symbols, _ = draw([(0, 3)])  # nothing to say: one row, whatever is asked for
        ranges = k2.get_rnnt_prune_ranges(*occupations(am, lm, symbols, None, "regular"), None, 5)
        assert torch.equal(ranges, torch.zeros(1, 3, 1, dtype=torch.int64))


def test_deprecated_ranges_by_hand():
    """Where the two rules differ: in frame 1 most steps start from rows 1 and 2, 1.25 of them against 1.2. But 0.2 of
    the paths enter row 1 in that frame, so that rows 0 and 1 keep more of them, 0.75 against 0.75 + 0.1 - 0.2."""
    symbols = [[0.8, 0, 0], [0.2, 0.25, 0.15], [0, 0, 0], [0, 0.75, 0.85], [0, 0, 0]]
    blanks = [[0.2, 0.8, 0, 0], [0, 0.75, 0.1, 0.15], [0, 0.75, 0.1, 0.15], [0, 0, 0, 1.0], [0, 0, 0, 1.0]]
    px_grad, py_grad = torch.tensor([[*symbols, [0, 0, 0]]]).transpose(1, 2), torch.tensor([blanks]).transpose(1, 2)
    for function, starts in (
        (k2.get_rnnt_prune_ranges_deprecated, [0, 1, 1, 2, 2]),
        (k2.get_rnnt_prune_ranges, [0, 0, 1, 2, 2]),
    ):
        ranges = function(px_grad, py_grad, torch.tensor([[0, 0, 3, 5]]), 2)
        assert ranges.tolist() == [[[start, start + 1] for start in starts]]


@pytest.mark.parametrize("kind", RNNT_TYPES)
@pytest.mark.parametrize("s_range", [2, 3, 20])
def test_deprecated_ranges_let_a_path_through(kind, s_range):
    am, lm, symbols, boundary = draw([(6, 9), (4, 7), (0, 2)], dtype=torch.float64, scale=3.0)
    ranges = k2.get_rnnt_prune_ranges_deprecated(*occupations(am, lm, symbols, boundary, kind), boundary, s_range)
    R = min(s_range, 7)
    assert ranges.shape == (3, 9, R) and torch.equal(ranges - ranges[:, :, :1], torch.arange(R).expand_as(ranges))
    logits = torch.stack(k2.do_rnnt_pruning(am, lm, ranges)).sum(0)
    loss = k2.rnnt_loss_pruned(logits, symbols, ranges, 0, boundary, kind, reduction="none")
    assert loss.isfinite().all()


# Refusals


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: k2.mutual_information_recursion(*arcs(2, 3, 4, py=(2, 3, 4))),
            r"py must have shape \(2, 4, 4\).*\(2, 3, 4\)",
        ),
        (
            lambda: k2.mutual_information_recursion(*arcs(2, 3, 4, py=(2, 4, 6))),
            r"px must have shape \(2, 3, 6\) or \(2, 3, 7\) to fit py \(2, 4, 6\), got \(2, 3, 5\)",
        ),
        (lambda: k2.mutual_information_recursion(zeros(2, 3), zeros(2, 3)), r"px must have 3 dim.*\(2, 3\)"),
        (
            lambda: k2.mutual_information_recursion(*arcs(1, 3, 4), torch.tensor([[0, 0, 3, 5]])),
            r"boundary .*3 symbols and 4 frames, got \[0, 0, 3, 5\]",
        ),
        (
            lambda: k2.mutual_information_recursion(*arcs(1, 3, 4), zeros(1, 4)),
            "boundary must be int64, got torch.float32",
        ),
        (
            lambda: k2.mutual_information_recursion(*arcs(1, 3, 4), zeros(2, 4).long()),
            r"boundary must have shape \(1, 4\).*\(2, 4\)",
        ),
        (lambda: k2.joint_mutual_information_recursion([], []), "at least one; got 0 and 0"),
        (
            lambda: k2.joint_mutual_information_recursion([zeros(1, 1, 2), zeros(1, 1, 3)], [zeros(1, 2, 2)] * 2),
            r"one shape, got \[\(1, 1, 2\), \(1, 1, 3\)\]",
        ),
        (
            lambda: k2.get_rnnt_logprobs(zeros(1, 3, 4), zeros(1, 5, 4), symbols(1, 3), 0),
            r"lm must have shape \(1, 4, 4\).*\(1, 3, 4\)",
        ),
        (
            lambda: k2.get_rnnt_logprobs_joint(zeros(1, 5, 3, 4), symbols(1, 3), 0),
            r"logits must have shape \(1, 5, 4, 4\).*\(1, 5, 3, 4\)",
        ),
        (
            lambda: k2.get_rnnt_logprobs_pruned(zeros(1, 5, 2, 4), symbols(1, 3), symbols(1, 5, 3), 0),
            r"ranges must have shape \(1, 5, 2\).*\(1, 5, 3\)",
        ),
        (
            lambda: k2.get_rnnt_logprobs_pruned(zeros(1, 5, 2, 4), symbols(1, 3), 4 * symbols(1, 5, 2), 0),
            r"ranges must be in 0..3, got 4..4",
        ),
        (
            lambda: k2.rnnt_loss_pruned(zeros(1, 5, 2, 1), 0 * symbols(1, 3), symbols(1, 5, 2), 0, use_hat_loss=True),
            r"use_hat_loss needs symbols .*\(1, 5, 2, 1\)",
        ),
        (lambda: k2.get_rnnt_prune_ranges(zeros(1, 3, 4), zeros(1, 4, 4), None, 0), "s_range must be at least 1"),
        (lambda: k2.get_rnnt_prune_ranges_deprecated(*arcs(1, 3, 4), None, 1), "s_range must be at least 2"),
        (
            lambda: k2.rnnt_loss_simple(zeros(1, 4, 4), zeros(1, 5, 4), symbols(1, 3), 0, delay_penalty=-1.0),
            "delay_penalty must be at least 0",
        ),
        (lambda: k2.mutual_information_recursion(*arcs(1, 3, 4), backend="cuda"), "backend must be one of"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def zeros(*shape):
    return torch.zeros(shape)


def arcs(B, S, T, py=None):
    return zeros(B, S, T + 1), zeros(*(py or (B, S + 1, T)))


def symbols(*shape):
    return torch.ones(shape, dtype=torch.int64)


# k2's own tests


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["rnnt_loss_test", "mutual_information_test"])
def test_k2s_own_tests(name, monkeypatch):
    """As they are, on this module in place of k2: a minute and a half of a processor."""
    folder = os.environ.get("SUMIX_K2_TESTS")
    if not folder:
        pytest.skip("set SUMIX_K2_TESTS to the folder k2/python/tests of a checkout of k2")
    path = Path(folder) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "k2", k2)
    report = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the widening of ranges, which one of them is about
        spec.loader.exec_module(module)
        suite = unittest.defaultTestLoader.loadTestsFromModule(module)
        assert suite.countTestCases() > 0, path
        result = unittest.TextTestRunner(report).run(suite)
    assert result.wasSuccessful() and not result.skipped, report.getvalue()
