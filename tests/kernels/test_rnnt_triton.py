"""The Triton backend against golden numbers, the fp64 textbook and the torch backend's parts.

Without a GPU kernels run in the interpreter, a chosen few; all of them run on one.
"""

import pytest
import test_rnnt_golden as golden
import test_rnnt_losses as losses
import test_rnnt_robust as robust
import torch
from conftest import assert_close_as
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sumix_kernels.rnnt import op
from sumix_kernels.rnnt.joint import joint_log_probs as reference_log_probs
from sumix_kernels.rnnt.joint import row_symbols
from sumix_kernels.rnnt.lattice import RNNT_TYPES, has_path

pytest.importorskip("triton")
from sumix_kernels.rnnt import joint_triton

HALVES = (torch.float16, torch.bfloat16)
ON_GPU = torch.cuda.is_available()
few = settings(
    max_examples=200 if ON_GPU else 6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def also_on_gpu(cases, here):
    """Parameters of which only those in `here` run in the interpreter."""
    return [pytest.param(case, marks=() if case in here else pytest.mark.gpu) for case in cases]


def on(device, leaves, *others):
    return {name: leaf.to(device) for name, leaf in leaves.items()}, *(x.to(device) for x in others)


def run(device, leaves, symbols, boundary, **options):
    """`robust.run` on the device; results on the CPU."""
    leaves, symbols, boundary = on(device, leaves, symbols, boundary)
    result, grads = robust.run(leaves, symbols, boundary, backend="triton", **options)
    return op.PrunedRnntLoss(*(x.cpu() for x in result)), {name: grad.cpu() for name, grad in grads.items()}


# Golden numbers

HERE = ("case00", "case01", "case04", "case05", "case08")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem[:6] in HERE else pytest.mark.gpu)
        for path in golden.GOLDEN
    ],
)
@pytest.mark.parametrize("what", ["simple", "pruned", "unpruned", "fused"])
def test_golden(path, what, triton_device):
    getattr(golden, what)(golden.Case(path, triton_device), "triton")


@pytest.mark.parametrize("path", golden.GOLDEN, ids=lambda path: path.stem)
def test_ranges_exactly(path, triton_device):
    case = golden.Case(path, triton_device)
    arguments = case["px_grad"], case["py_grad"], case["boundary"], case.scalar("s_range")
    assert torch.equal(op.get_rnnt_prune_ranges(*arguments, backend="triton"), case["ranges"])


@pytest.mark.parametrize("kind", RNNT_TYPES)
def test_ranges_over_many_frames(kind, triton_device):
    """Ragged, more than one block of frames, an utterance that must hurry at its end."""
    *_, boundary = losses.draw([(20, 300), (9, 140), (0, 1), (20, 20)])
    px, py = torch.rand(4, 20, 301 if kind == "regular" else 300), torch.rand(4, 21, 300)
    for s_range in (2, 5, 21):
        expected = op.get_rnnt_prune_ranges(px, py, boundary, s_range, backend="torch")
        arguments = (x.to(triton_device) for x in (px, py, boundary))
        assert torch.equal(op.get_rnnt_prune_ranges(*arguments, s_range, backend="triton").cpu(), expected)


# Against the fp64 textbook


def holds_as_naive(function, leaves, found, dtype, device):
    """function(backend, *leaves) -> losses (B,): values as fp32, gradients as dtype."""
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = losses.values_and_grads(function("naive", *exact), exact, found)
    leaves = [leaf.detach().to(device).requires_grad_() for leaf in leaves]
    actual = losses.values_and_grads(function("triton", *leaves), leaves, found.to(device))
    assert_close_as(actual[0], expected[0], torch.float32)
    for a, e, leaf in zip(actual[1:], expected[1:], leaves):
        assert a.dtype == leaf.dtype
        assert_close_as(a, e, dtype)


dtypes = st.sampled_from([torch.float32, *HALVES])


@few
@given(losses.extents, losses.lattices, st.sampled_from([(0.0, 0.0), (0.25, 0.0), (0.1, 0.2)]), dtypes)
def test_simple_loss(triton_device, extents, lattice, scales, dtype):
    am, lm, symbols, boundary = losses.draw(extents, dtype=dtype)

    def simple(backend, lm, am, **options):
        arguments = (x.to(lm.device) for x in (lm, am, symbols))
        return op.rnnt_loss_smoothed(
            *arguments, 0, *scales, boundary.to(lm.device), *lattice, "none", backend=backend, **options
        )

    holds_as_naive(simple, [lm, am], has_path(boundary, lattice[0]), dtype, triton_device)
    lm, am = lm.detach(), am.detach()
    actual = simple("triton", lm.to(triton_device), am.to(triton_device), return_grad=True)[1]
    for a, e in zip(actual, simple("naive", lm.double(), am.double(), return_grad=True)[1]):
        assert_close_as(a, e, torch.float32)


@few
@given(losses.extents, losses.lattices, dtypes)
def test_whole_loss(triton_device, extents, lattice, dtype):
    am, lm, symbols, boundary = losses.draw(extents, dtype=dtype)
    logits = torch.tanh(am[:, :, None] * lm[:, None]).detach()

    def whole(backend, logits):
        arguments = symbols.to(logits.device), 0, boundary.to(logits.device)
        return op.rnnt_loss(logits, *arguments, *lattice, "none", backend=backend)

    holds_as_naive(whole, [logits], has_path(boundary, lattice[0]), dtype, triton_device)


@few
@given(losses.extents, losses.lattices, st.integers(1, 4), dtypes)
def test_pruned_losses(triton_device, extents, lattice, s_range, dtype):
    """From logits, in each type; and with the joiner fused, whose products round half types at every step, in fp32."""
    kind = lattice[0]
    s_range = max(s_range, 1 if kind == "modified" else 2)
    enc, pred, symbols, boundary = losses.draw(extents, V=4)
    am, lm, _, _ = losses.draw(extents, V=6, seed=1)
    symbols = symbols.clamp(max=5)
    leaves = [enc, pred, torch.randn(6, 4), torch.randn(6)]
    found = has_path(boundary, kind, min(s_range, symbols.shape[1] + 1))
    _, grads = op.rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, 0.0, boundary, *lattice, "none", True)
    ranges = op.get_rnnt_prune_ranges(*grads, boundary, s_range)

    def from_logits(backend, logits):
        device = logits.device
        arguments = symbols.to(device), ranges.to(device), 0, boundary.to(device)
        return op.rnnt_loss_pruned(logits, *arguments, *lattice, "none", backend=backend)

    def joint(backend, enc, pred, weight, bias):
        if backend == "triton":
            device = enc.device
            others = symbols.to(device), ranges.to(device), 0, boundary.to(device)
            return op._triton().rnnt_loss_joint(enc, pred, weight, bias, *others, *lattice, torch.float32)
        a, b = op.do_rnnt_pruning(enc, pred, ranges)
        return from_logits(backend, torch.tanh(a + b) @ weight.T + bias)

    a, b = op.do_rnnt_pruning(enc, pred, ranges)
    logits = (torch.tanh(a + b) @ leaves[2].T + leaves[3]).detach().to(dtype)
    holds_as_naive(from_logits, [logits], found, dtype, triton_device)
    holds_as_naive(joint, leaves, found, torch.float32, triton_device)


@pytest.mark.parametrize("kind", RNNT_TYPES)
@pytest.mark.parametrize("R", [None, 3], ids=["whole", "pruned"])
def test_begin_of_boundary(kind, R, triton_device, poisoned_memory):
    """Utterances that begin inside their tensors; nothing outside is read, and what is there gets no gradient."""
    am, lm, symbols, _ = losses.draw([(5, 8), (5, 8), (5, 8)])
    boundary = torch.tensor([[1, 2, 4, 7], [0, 0, 2, 3], [2, 1, 2, 8]])
    if R is None:
        logits, ranges = torch.tanh(am[:, :, None] * lm[:, None]), None
    else:
        ranges = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3]).expand(3, -1)[:, :, None] + torch.arange(R)
        a, b = op.do_rnnt_pruning(am, lm, ranges)
        logits = torch.tanh(a * b)

    def loss(backend, logits):
        device = logits.device
        others = 0, boundary.to(device), kind, 0.1, "none"
        if R is None:
            return op.rnnt_loss(logits, symbols.to(device), *others, backend=backend)
        return op.rnnt_loss_pruned(logits, symbols.to(device), ranges.to(device), *others, backend=backend)

    found = loss("naive", logits).isfinite()
    assert found.any()
    holds_as_naive(loss, [logits.detach()], found, torch.float32, triton_device)

    rows = torch.arange(6).expand(3, 8, -1) if ranges is None else ranges
    frames, b = torch.arange(8)[None, :, None], boundary[:, None, None]
    inside = (frames >= b[..., 1]) & (frames < b[..., 3]) & (rows >= b[..., 0]) & (rows <= b[..., 2])
    bad = logits.detach().masked_fill(~inside[..., None], float("nan")).to(triton_device).requires_grad_()
    result = loss("triton", bad)
    assert torch.equal(result, loss("triton", logits.detach().to(triton_device)))
    (grad,) = torch.autograd.grad(result[found.to(triton_device)].sum(), bad)
    assert grad.isfinite().all() and not grad[~inside.to(triton_device)].any()


@pytest.mark.parametrize("kind", RNNT_TYPES)
def test_many_tiles(kind, triton_device, poisoned_memory):
    """Several tiles of each kernel in every direction, the last of each incomplete."""
    B, S, T, V = 2, 70, 75, 67
    lm, am, symbols = torch.randn(B, S + 1, V), torch.randn(B, T, V), torch.randint(0, V, (B, S))
    boundary = torch.tensor([[0, 0, S, T], [2, 66, 4, 71]])

    def loss(backend, lm, am):
        others = symbols.to(am.device), 0, 0.25, 0.0, boundary.to(am.device), kind, 0.0, "none"
        return op.rnnt_loss_smoothed(lm, am, *others, backend=backend)

    exact = [x.double().requires_grad_() for x in (lm, am)]
    leaves = [x.to(triton_device).requires_grad_() for x in (lm, am)]
    actual, expected = loss("triton", *leaves), loss("torch", *exact)
    assert_close_as(actual, expected, torch.float32)
    for a, e in zip(*(torch.autograd.grad(x.sum(), y) for x, y in ((actual, leaves), (expected, exact)))):
        assert_close_as(a, e, torch.float32)


def joint_inputs(B, T, S, J, V, R):
    leaves = [torch.randn(shape) for shape in ((B, T, J), (B, S + 1, J), (V, J), (V,))]
    start = torch.sort(torch.randint(0, S + 2 - R, (B, T)), 1).values
    return leaves, torch.randint(1, V, (B, S)), start[:, :, None] + torch.arange(R)


@pytest.mark.parametrize(
    "shape",
    [(2, 9, 6, 5, 7, 3), (1, 3, 4, 300, 1100, 2), (1, 2, 0, 4, 3, 1), (3, 4, 9, 17, 33, 10)],
    ids=["small", "wide", "no symbols", "whole"],
)
@pytest.mark.parametrize("tile", [1, 4, None], ids=["frame a tile", "4 frames a tile", "one tile"])
def test_joint_log_probs(shape, tile, triton_device, poisoned_memory):
    """The fused joiner for any tile: values, and gradients of weighted sums over the rows in use."""
    leaves, symbols, ranges = joint_inputs(*shape)
    B, T, S, J, V, R = shape
    boundary = torch.tensor([[0, 0, S, T], [1, 1, S - 1, T - 1], [0, 0, S, 1]])[:B]
    b = boundary[:, None, None]
    frames = torch.arange(T)[None, :, None]
    inside = (frames >= b[..., 1]) & (frames < b[..., 3]) & (ranges >= b[..., 0]) & (ranges <= b[..., 2])
    inside_x = inside & (ranges < b[..., 2])
    gx, gy = torch.randn(ranges.shape) * inside_x, torch.randn(ranges.shape) * inside

    exact = [leaf.double().requires_grad_() for leaf in leaves]
    targets = row_symbols(symbols, ranges, 0)
    expected = reference_log_probs(*exact, ranges, targets, 0, dtype=torch.float64)
    expected_grads = torch.autograd.grad(expected, exact, [gx.double(), gy.double()])

    leaves = [leaf.to(triton_device).requires_grad_() for leaf in leaves]
    others = (x.to(triton_device) for x in (symbols, ranges, boundary))
    tile_bytes = {} if tile is None else {"tile_bytes": tile * R * 4 * (2 * J + -(-V // 16) * 16)}
    actual = joint_triton.joint_log_probs(*leaves, *others, 0, dtype=torch.float32, **tile_bytes)
    grads = torch.autograd.grad(actual, leaves, [gx.to(triton_device), gy.to(triton_device)])
    for a, e, m in zip(actual, expected, (inside_x, inside)):
        assert_close_as(a.cpu().where(m, 0.0), e.where(m, 0.0), torch.float32)
    for a, e in zip(grads, expected_grads):
        assert_close_as(a, e, torch.float32)


def test_joint_without_bias(triton_device):
    (enc, pred, weight, _), symbols, ranges = joint_inputs(2, 9, 6, 5, 7, 3)
    boundary = torch.tensor([[0, 0, 6, 9]] * 2)
    others = [x.to(triton_device) for x in (symbols, ranges, boundary)]
    results = []
    for bias in (None, torch.zeros(7, device=triton_device)):
        leaves = [x.detach().to(triton_device).requires_grad_() for x in (enc, pred, weight)]
        x, y = joint_triton.joint_log_probs(*leaves, bias, *others, 0, dtype=torch.float32)
        results.append([x, y, *torch.autograd.grad((x + 2 * y).sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_nothing_of_the_vocabulary_is_held(triton_device):
    """Between forward and backward pass stays what does not grow with V, but for the arguments."""
    B, T, S, J, V, R = 1, 5, 3, 4, 300, 2
    leaves, symbols, ranges = joint_inputs(B, T, S, J, V, R)
    leaves = [leaf.to(triton_device).requires_grad_() for leaf in leaves]
    others = (x.to(triton_device) for x in (symbols, ranges, torch.tensor([[0, 0, S, T]])))
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x) or x, lambda x: x):
        joint_triton.joint_log_probs(*leaves, *others, 0, dtype=torch.float32)
    assert held and max(x.numel() for x in held if all(x is not leaf for leaf in leaves)) < B * T * R * V
