"""The loss of the hybrid autoregressive transducer: by hand, against the fp64 textbook, and as a softmax."""

import math

import pytest
import torch
from conftest import assert_close_as
from test_rnnt_losses import draw
from test_rnnt_robust import NoHostWait

from sumix_kernels import k2compat as k2
from sumix_kernels.rnnt import arguments, naive, op
from sumix_kernels.rnnt.joint import hat_log_probs
from sumix_kernels.rnnt.lattice import RNNT_TYPES


def test_hat_log_probs_by_hand():
    """Blank with logit 0 is even odds; two symbols, one with thrice the weight, share the other half."""
    logits = torch.tensor([[0.0, math.log(3.0), 0.0]])
    for blank, order in ((0, [0, 1, 2]), (1, [1, 0, 2]), (2, [2, 1, 0])):
        for target, probability in ((order[1], 3 / 8), (order[2], 1 / 8)):
            x, y = hat_log_probs(logits[:, order], torch.tensor([target]), blank)
            assert math.exp(x) == pytest.approx(probability) and math.exp(y) == pytest.approx(0.5)


@pytest.mark.parametrize("blank", [0, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_hat_log_probs(dtype, blank):
    logits = (3 * torch.randn(4, 6)).to(dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    expected = naive.hat_log_probs(exact, blank)
    torch.testing.assert_close(expected.exp().sum(1), torch.ones(4, dtype=torch.float64))
    wide = torch.promote_types(dtype, torch.float32)
    for target in range(6):
        x, y = hat_log_probs(logits, torch.full((4,), target), blank)
        assert x.dtype == y.dtype == wide
        assert_close_as(y, expected[:, blank], wide)
        if target == blank:
            continue
        assert_close_as(x, expected[:, target], wide)
        (grad,) = torch.autograd.grad((2 * x + y).sum(), logits)
        (like,) = torch.autograd.grad((2 * expected[:, target] + expected[:, blank]).sum(), exact, retain_graph=True)
        assert_close_as(grad, like, dtype)


def hat_case(kind, dtype=torch.float64, V=6, extents=((4, 7), (2, 5), (0, 3))):
    am, lm, symbols, boundary = draw(extents, V=V, dtype=dtype)
    px_grad, py_grad = k2.rnnt_loss_simple(lm, am, symbols, 0, boundary, kind, return_grad=True)[1]
    ranges = k2.get_rnnt_prune_ranges(px_grad, py_grad, boundary, 3)
    logits = torch.stack(k2.do_rnnt_pruning(am, lm, ranges)).sum(0).detach().requires_grad_()
    return logits, symbols, ranges, boundary


@pytest.mark.parametrize("kind", RNNT_TYPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_hat_loss(kind, dtype):
    """The textbook's; and the softmax loss of logits whose blank is raised by what all the others weigh."""
    logits, symbols, ranges, boundary = hat_case(kind, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    options = {"boundary": boundary, "rnnt_type": kind, "delay_penalty": 0.1, "reduction": "none"}
    loss = k2.rnnt_loss_pruned(logits, symbols, ranges, 0, use_hat_loss=True, **options)
    assert loss.dtype == wide
    exact = logits.detach().double().requires_grad_()
    expected = op.rnnt_loss_pruned(exact, symbols, ranges, 0, use_hat_loss=True, backend="naive", **options)
    others = exact[..., 1:].logsumexp(-1, keepdim=True)
    softmax = torch.cat([exact[..., :1] + others, exact[..., 1:]], -1)
    raised = op.rnnt_loss_pruned(softmax, symbols, ranges, 0, backend="naive", **options)
    assert_close_as(expected, raised, torch.float64)
    assert_close_as(loss, expected, wide)
    weights = torch.tensor([1.0, 2.0, 3.0])
    (grad,) = torch.autograd.grad((loss * weights).sum(), logits)
    (like,) = torch.autograd.grad((expected * weights).sum(), exact)
    assert_close_as(grad, like, dtype)


@pytest.mark.parametrize("kind", RNNT_TYPES)
def test_hat_loss_gradcheck(kind):
    logits, symbols, ranges, boundary = hat_case(kind, V=3, extents=((3, 4), (1, 2)))

    def loss(logits):
        return k2.rnnt_loss_pruned(logits, symbols.clamp(max=2), ranges, 0, boundary, kind, 0.1, "none", True)

    torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize("kind", RNNT_TYPES)
@pytest.mark.parametrize("logit", [3e4, -3e4])
def test_hat_loss_of_huge_logits(kind, logit):
    logits, symbols, ranges, boundary = hat_case(kind, torch.float32)
    with torch.no_grad():
        logits[..., 0] = logit
        logits[..., 3] = 3e4
    loss = k2.rnnt_loss_pruned(logits, symbols, ranges, 0, boundary, kind, 0.0, "none", True)
    expected = op.rnnt_loss_pruned(
        logits.double(), symbols, ranges, 0, boundary, kind, 0.0, "none", True, backend="naive"
    )
    assert_close_as(loss, expected, torch.float32)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert grad.isfinite().all()


@pytest.mark.parametrize("kind", RNNT_TYPES)
def test_hat_loss_in_triton(triton_device, kind):
    pytest.importorskip("triton")
    logits, symbols, ranges, boundary = hat_case(kind, torch.float32)
    options = {"rnnt_type": kind, "delay_penalty": 0.1, "reduction": "none", "use_hat_loss": True}
    losses, grads = [], []
    for device, backend in ((triton_device, "triton"), ("cpu", "naive")):
        moved = (x.to(device) for x in (symbols, ranges))
        losses.append(
            op.rnnt_loss_pruned(logits.to(device), *moved, 0, boundary.to(device), backend=backend, **options)
        )
        grads += torch.autograd.grad(losses[-1].sum(), logits)
    assert_close_as(*losses, torch.float32)
    assert_close_as(*grads, torch.float32)


def test_nothing_waits_for_the_device(monkeypatch):
    logits, symbols, ranges, boundary = hat_case("regular", torch.float32)
    monkeypatch.setattr(arguments, "readable", lambda _: False)  # values are looked at on the CPU only
    with NoHostWait():
        k2.rnnt_loss_pruned(logits, symbols, ranges, 0, boundary, use_hat_loss=True).backward()
        k2.get_hat_logprobs_pruned(logits, symbols, ranges, 0, boundary)
