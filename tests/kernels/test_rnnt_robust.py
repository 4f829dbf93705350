"""The loss on what training meets: huge logits, half precision, utterances without a path, padding; no host waits."""

import pytest
import torch
from conftest import TOLERANCE, assert_close_as
from torch.utils._python_dispatch import TorchDispatchMode

from sumix_kernels.rnnt import op
from sumix_kernels.rnnt.lattice import RNNT_TYPES

B, T, S, J, V = 3, 12, 5, 8, 7
NAMES = ("enc", "pred", "weight", "bias", "am", "lm")


def inputs(dtype=torch.float32, scale=1.0):
    shapes = {"enc": (B, T, J), "pred": (B, S + 1, J), "weight": (V, J), "bias": (V,), "am": (B, T, V)}
    leaves = {name: (scale * torch.randn(shape)).to(dtype) for name, shape in shapes.items()}
    leaves["lm"] = (scale * torch.randn(B, S + 1, V)).to(dtype)
    symbols = torch.randint(1, V, (B, S))
    boundary = torch.tensor([[0, 0, 5, 12], [0, 0, 3, 7], [0, 0, 4, 9]])
    return leaves, symbols, boundary


class Joiner:
    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias


def run(leaves, symbols, boundary, **options):
    """Result, and gradients of simple + 2 pruned by leaf."""
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    enc, pred, weight, bias, am, lm = (leaves[name] for name in NAMES)
    options = {"s_range": 3, **options}
    result = op.pruned_rnnt_loss(enc, pred, Joiner(weight, bias), am, lm, symbols, boundary, **options)
    grads = torch.autograd.grad((result.simple + 2 * result.pruned).sum(), list(leaves.values()))
    return result, dict(zip(leaves, grads))


def finite(result, grads):
    assert result.simple.isfinite().all() and result.pruned.isfinite().all()
    for name, grad in grads.items():
        assert grad.isfinite().all(), name


def huge(kind):
    leaves, symbols, boundary = inputs()
    if kind == "random":
        for name in ("am", "lm", "bias"):
            leaves[name] = torch.randn_like(leaves[name]).sign() * 3e4
    elif kind == "opposed":  # am and lm agree on no symbol: the factored normaliser underflows everywhere
        leaves["am"] = torch.full_like(leaves["am"], -3e4)
        leaves["lm"] = torch.full_like(leaves["lm"], -3e4)
        leaves["am"][..., 1] = leaves["lm"][..., 2] = 3e4
    elif kind == "equal":
        leaves = {name: torch.full_like(leaf, 3e4) for name, leaf in leaves.items()}
    elif kind == "one-hot":
        for name in ("am", "lm", "bias"):
            leaves[name] = torch.zeros_like(leaves[name])
            leaves[name][..., 3] = 3e4
    elif kind == "joiner":
        leaves["weight"] = leaves["weight"].sign() * 3e4 / J
        leaves["enc"], leaves["pred"] = leaves["enc"] * 100, leaves["pred"] * 100
    return leaves, symbols, boundary


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
@pytest.mark.parametrize("kind", ["random", "opposed", "equal", "one-hot", "joiner"])
@pytest.mark.parametrize("am_only_scale", [0.0, 0.3])
def test_huge_logits_stay_finite(kind, rnnt_type, am_only_scale):
    finite(*run(*huge(kind), rnnt_type=rnnt_type, am_only_scale=am_only_scale))


@pytest.mark.parametrize("kind", ["random", "opposed", "equal", "one-hot", "joiner"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_huge_logits_under_autocast(kind, dtype):
    leaves, symbols, boundary = huge(kind)
    if kind == "equal":
        leaves["weight"], leaves["bias"] = leaves["weight"] / J, torch.zeros(V)  # logits of 3e4: fp16 holds 6.5e4
    with torch.autocast("cpu", dtype=dtype):
        finite(*run(leaves, symbols, boundary))


@pytest.mark.parametrize("kind", ["random", "equal", "one-hot"])
def test_huge_logits_are_right(kind):
    """The unpruned loss at +-3e4 equals the fp64 textbook's."""
    leaves, symbols, boundary = huge(kind)
    logits = (leaves["am"][:, :, None] / 2 + leaves["lm"][:, None] / 2).requires_grad_()
    for backend in ("torch", "naive"):
        loss = op.rnnt_loss(logits, symbols, 0, boundary, reduction="none", backend=backend)
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        if backend == "torch":
            actual, actual_grad = loss, grad
    assert_close_as(actual, loss, torch.float32)
    # At 3e4 an fp32 logit is good to 2e-3, and so is a ratio of paths.
    torch.testing.assert_close(actual_grad, grad, rtol=0, atol=2e-2)


def test_underflow_pushes_towards_the_symbols():
    """Where exponentials lose the normaliser, the gradient still raises what was said and lowers the maxima."""
    leaves, symbols, boundary = huge("opposed")
    symbols = torch.full_like(symbols, 4)
    _, grads = run(leaves, symbols, boundary)
    assert (grads["am"][0, :, 4] <= 0).all() and grads["am"][0, :, 4].sum() < -1
    assert (grads["am"][0, :, 1] >= 0).all() and grads["am"][0, :, 1].sum() > 1


def test_underflow_over_many_frames():
    """Reciprocals of the smallest numbers, summed over a long lattice, do not overflow."""
    am, lm = (torch.full((1, n, V), -3e4) for n in (500, 2))
    am[..., 1] = lm[..., 2] = 3e4
    am.requires_grad_(), lm.requires_grad_()
    loss = op.rnnt_loss_smoothed(lm, am, torch.tensor([[4]]), 0, 0.0, 0.0)
    for grad in torch.autograd.grad(loss, [am, lm]):
        assert grad.isfinite().all() and grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs(dtype):
    """Half logits, fp32 within: losses as good as fp32, gradients within the dtype's own rounding."""
    leaves, symbols, boundary = inputs(dtype)
    exact = {name: leaf.double() for name, leaf in leaves.items()}
    logits, exact_logits = (
        torch.tanh(x["am"][:, :, None].double() + x["lm"][:, None].double()).to(d).requires_grad_()
        for x, d in ((leaves, dtype), (exact, torch.float64))
    )
    with torch.no_grad():
        exact_logits.copy_(logits)
    loss = op.rnnt_loss(logits, symbols, 0, boundary, reduction="none")
    expected = op.rnnt_loss(exact_logits, symbols, 0, boundary, reduction="none", backend="naive")
    assert loss.dtype == torch.float32
    assert_close_as(loss, expected, torch.float32)
    assert_close_as(*(torch.autograd.grad(x.sum(), y)[0] for x, y in ((loss, logits), (expected, exact_logits))), dtype)

    am, lm = leaves["am"].requires_grad_(), leaves["lm"].requires_grad_()
    loss = op.rnnt_loss_smoothed(lm, am, symbols, 0, boundary=boundary, reduction="none")
    exact_am, exact_lm = exact["am"].detach().requires_grad_(), exact["lm"].detach().requires_grad_()
    expected = op.rnnt_loss_smoothed(
        exact_lm, exact_am, symbols, 0, boundary=boundary, reduction="none", backend="naive"
    )
    assert_close_as(loss, expected, torch.float32)
    grads = torch.autograd.grad(loss.sum(), [am, lm])
    for actual, reference in zip(grads, torch.autograd.grad(expected.sum(), [exact_am, exact_lm])):
        assert actual.dtype == dtype
        assert_close_as(actual, reference, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_joiner(dtype, autocast):
    """Half inputs, or fp32 inputs under autocast: near fp32 on the same rows, and in fp32 outside the products."""
    leaves, symbols, boundary = inputs()
    leaves = {name: leaf.to(dtype).float() for name, leaf in leaves.items()}
    expected, expected_grads = run(leaves, symbols, boundary)
    if autocast:
        with torch.autocast("cpu", dtype=dtype):
            actual, grads = run(leaves, symbols, boundary)
    else:
        actual, grads = run({name: leaf.to(dtype) for name, leaf in leaves.items()}, symbols, boundary)
    assert actual.simple.dtype == actual.pruned.dtype == torch.float32
    assert torch.equal(actual.ranges, expected.ranges)
    torch.testing.assert_close(actual.simple, expected.simple, rtol=1e-6, atol=0)
    max_error, rms_error = (
        8 * x for x in TOLERANCE[dtype]
    )  # sum, tanh, logits, gradient: each rounds, and they add up
    for name in NAMES:
        error = (grads[name].float() - expected_grads[name]).abs()
        assert error.max() <= max_error * expected_grads[name].abs().max(), name
        assert error.square().mean().sqrt() <= rms_error * expected_grads[name].square().mean().sqrt(), name
    torch.testing.assert_close(actual.pruned, expected.pruned, rtol=rms_error, atol=0)


def test_loss_scaling_does_not_overflow_fp16():
    """GradScaler's 65536 reaches the loss first: the joiner's fp32 weights still get finite gradients."""
    leaves, symbols, boundary = inputs()
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    enc, pred, weight, bias, am, lm = (leaves[name] for name in NAMES)
    with torch.autocast("cpu", dtype=torch.float16):
        result = op.pruned_rnnt_loss(enc, pred, Joiner(weight, bias), am, lm, symbols, boundary, s_range=3)
    plain = torch.autograd.grad(result.pruned.sum(), [enc, pred, weight, bias], retain_graph=True)
    scaled = torch.autograd.grad(result.pruned.sum() * 65536.0 * 64, [enc, pred, weight, bias])
    for a, b in zip(scaled, plain):
        torch.testing.assert_close(a / 65536.0 / 64, b, rtol=1e-3, atol=1e-5)


def cut(leaves, symbols, boundary, b):
    """Utterance b alone, without its padding."""
    s, t = boundary[b, 2:].tolist()
    one = {name: leaves[name] for name in ("weight", "bias")}
    one |= {name: leaves[name][b : b + 1, :t] for name in ("enc", "am")}
    one |= {name: leaves[name][b : b + 1, : s + 1] for name in ("pred", "lm")}
    return one, symbols[b : b + 1, :s], boundary[b : b + 1]


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_padding_and_batch_do_not_matter(rnnt_type):
    """An utterance alone, and padded with noise in a batch: the same loss, rows and gradients; padding gets none."""
    leaves, symbols, boundary = inputs()
    result, grads = run(leaves, symbols, boundary, rnnt_type=rnnt_type)
    for b in range(B):
        one, one_grads = run(*cut(leaves, symbols, boundary, b), rnnt_type=rnnt_type)
        s, t = boundary[b, 2:].tolist()
        torch.testing.assert_close(one.simple[0], result.simple[b], rtol=1e-6, atol=0)
        torch.testing.assert_close(one.pruned[0], result.pruned[b], rtol=1e-6, atol=0)
        assert torch.equal(one.ranges[0], result.ranges[b, :t])
        for name in ("enc", "am"):
            torch.testing.assert_close(one_grads[name][0], grads[name][b, :t], rtol=1e-5, atol=1e-6)
            assert not grads[name][b, t:].any()
        for name in ("pred", "lm"):
            torch.testing.assert_close(one_grads[name][0], grads[name][b, : s + 1], rtol=1e-5, atol=1e-6)
            assert not grads[name][b, s + 1 :].any()


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
@pytest.mark.parametrize("boundary_of_1", [(0, 0, 3, 0), (0, 0, 5, 2), (0, 0, 0, 0)], ids=["T=0", "U>T", "nothing"])
@pytest.mark.parametrize("contents", ["noise", "huge"])
def test_utterance_without_a_path(rnnt_type, boundary_of_1, contents):
    """Left out exactly; the others get the same bits whatever it holds."""
    leaves, symbols, boundary = inputs()
    boundary[1] = torch.tensor(boundary_of_1)
    result, grads = run(leaves, symbols, boundary, rnnt_type=rnnt_type)
    has_path = rnnt_type == "regular" and boundary_of_1[3] * 2 >= boundary_of_1[2] and boundary_of_1[3] > 0
    assert result.has_path.tolist() == [True, has_path, True]
    finite(result, grads)
    assert result.simple[1] == 0 and result.pruned[1] == 0
    for name in ("enc", "pred", "am", "lm"):
        assert not grads[name][1].any(), name

    for name in ("enc", "pred", "am", "lm"):
        other = torch.randn_like(leaves[name][1]) * (3e4 if contents == "huge" else 1.0)
        leaves[name][1] = other
    again, grads_again = run(leaves, symbols, boundary, rnnt_type=rnnt_type)
    assert torch.equal(again.simple, result.simple) and torch.equal(again.pruned, result.pruned)
    for name in NAMES:
        assert torch.equal(grads_again[name], grads[name]), name


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_single_functions_without_a_path(rnnt_type):
    """+inf for the utterance alone, no nan anywhere, zero gradients."""
    logits = torch.randn(2, 4, S + 1, V, requires_grad=True)
    symbols = torch.randint(1, V, (2, S))
    boundary = torch.tensor([[0, 0, 3, 4], [0, 0, 5, 0]])
    loss = op.rnnt_loss(logits, symbols, 0, boundary, rnnt_type, reduction="none")
    assert loss[0].isfinite() and loss[1] == float("inf")
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert grad.isfinite().all() and grad[0].any() and not grad[1].any()


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
@pytest.mark.parametrize("num_symbols, num_frames", [(0, 5), (0, 1), (1, 1), (2, 0), (0, 0)])
def test_smallest_batches(rnnt_type, num_symbols, num_frames, poisoned_memory):
    leaves, symbols, _ = inputs()
    leaves |= {name: leaves[name][:, :num_frames] for name in ("enc", "am")}
    leaves |= {name: leaves[name][:, : num_symbols + 1] for name in ("pred", "lm")}
    result, grads = run(leaves, symbols[:, :num_symbols], None, rnnt_type=rnnt_type)
    finite(result, grads)
    assert result.has_path.tolist() == [num_frames > 0] * B
    with torch.autocast("cpu", dtype=torch.float16):
        finite(*run(leaves, symbols[:, :num_symbols], None, rnnt_type=rnnt_type))
    if num_frames == 1 and num_symbols == 0:
        logits = torch.tanh(leaves["enc"] + leaves["pred"]) @ leaves["weight"].T + leaves["bias"]
        torch.testing.assert_close(result.pruned, -logits[:, 0].log_softmax(-1)[:, 0])


class NoHostWait(TorchDispatchMode):
    """Fails on operations whose result's shape or value the host has to wait for."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.__name__.split(".")[0] not in self.WAITS, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_nothing_waits_for_the_device(rnnt_type, monkeypatch):
    monkeypatch.setattr(op.arguments, "readable", lambda _: False)  # looks at tensors on the CPU only
    arguments = inputs()
    with NoHostWait():
        run(*arguments, rnnt_type=rnnt_type, delay_penalty=0.1, am_only_scale=0.1, backend="torch")
    with pytest.raises(AssertionError, match="waits"), NoHostWait():
        torch.ones(1).item()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype):
    leaves, symbols, boundary = inputs()
    expected, expected_grads = run(leaves, symbols, boundary)
    leaves = {name: leaf.cuda() for name, leaf in leaves.items()}
    symbols, boundary = symbols.cuda(), boundary.cuda()
    run(leaves, symbols, boundary, backend="torch")  # cuBLAS is loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            result, grads = run(leaves, symbols, boundary, backend="torch")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(result.ranges.cpu(), expected.ranges)
    torch.testing.assert_close(result.simple.cpu(), expected.simple, rtol=1e-5, atol=0)
    allowed = 1e-4 if dtype == torch.float32 else 8 * TOLERANCE[dtype][0]
    for name in NAMES:
        error = (grads[name].float().cpu() - expected_grads[name]).abs().max()
        assert error <= allowed * expected_grads[name].abs().max(), name
