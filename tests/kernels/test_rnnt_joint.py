"""The tiled joiner: whatever the tiles and whatever is kept, the same numbers; and the same as joiner then softmax."""

import pytest
import torch
from conftest import assert_close_as, needs_numba

from sumix_kernels.rnnt.joint import joint_log_probs, row_symbols, selected_log_probs
from sumix_kernels.rnnt.pruning import prune
from sumix_kernels.training.choice import multiplies_bf16

B, T, S, J, V, R = 2, 9, 6, 5, 7, 3


def inputs(dtype=torch.float32):
    shapes = (B, T, J), (B, S + 1, J), (V, J), (V,)
    leaves = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    start = torch.sort(torch.randint(0, S + 2 - R, (B, T)), 1).values
    ranges = start[:, :, None] + torch.arange(R)
    return leaves, ranges, row_symbols(torch.randint(1, V, (B, S)), ranges, 0)


def outputs_and_grads(function, leaves):
    x, y = function(*leaves)
    gx, gy = torch.linspace(-1, 2, x.numel()).view_as(x).to(x.dtype), torch.linspace(3, -1, y.numel()).view_as(y)
    return [x, y, *torch.autograd.grad([x, y], leaves, [gx, gy.to(y.dtype)])]


def joined(ranges, targets, enc, pred, weight, bias):
    a, b = prune(enc, pred, ranges)
    log_probs = (torch.tanh(a + b) @ weight.T + bias).log_softmax(-1)
    return log_probs.gather(3, targets[..., None]).squeeze(3), log_probs[..., 0]


@pytest.mark.parametrize("tile_size", [1, 4 * R * V, 5 * R * V, None], ids=["frame", "4 frames", "5 frames", "all"])
@pytest.mark.parametrize("kept", [0, 1 << 20], ids=["again", "kept"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_equals_joiner_and_softmax(tile_size, kept, dtype, poisoned_memory):
    leaves, ranges, targets = inputs(dtype)
    actual = outputs_and_grads(
        lambda *x: joint_log_probs(*x, ranges, targets, 0, dtype=dtype, tile_size=tile_size, kept=kept), leaves
    )
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    for a, e in zip(actual, outputs_and_grads(lambda *x: joined(ranges, targets, *x), exact)):
        assert a.dtype == dtype
        assert_close_as(a, e, dtype)


def test_kept_or_made_again_is_the_same():
    leaves, ranges, targets = inputs()
    kept, again = (
        outputs_and_grads(
            lambda *x, k=k: joint_log_probs(*x, ranges, targets, 0, dtype=torch.float32, tile_size=100, kept=k), leaves
        )
        for k in (1 << 20, 0)
    )
    assert all(torch.equal(a, b) for a, b in zip(kept, again))


def test_large_logits_are_not_held():
    """Between forward and backward only what does not grow with V stays."""
    leaves, ranges, targets = inputs()
    sizes = []

    def note(x):
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        x, _ = joint_log_probs(*leaves, ranges, targets, 0, dtype=torch.float32, tile_size=100, kept=0)
    assert x.grad_fn.kept is None
    assert sizes and max(sizes) < B * T * R * V


@needs_numba
@pytest.mark.parametrize("threads", (1, 3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("frames", "rows", "joint", "vocabulary"), [(9, 3, 5, 7), (70, 5, 24, 48), (33, 50, 30, 3)])
def test_compiled_equals_joiner_and_softmax(frames, rows, joint, vocabulary, dtype, threads, poisoned_memory):
    """Blocks of some frames and of one, whole panels and parts of one, one utterance's rows shared by threads."""
    if dtype == torch.bfloat16 and not multiplies_bf16():
        pytest.skip("this processor has no bfloat16 products")
    num_threads = torch.get_num_threads()
    shapes = (2, frames, joint), (2, rows + 4, joint), (vocabulary, joint), (vocabulary,)
    leaves = [torch.randn(shape, requires_grad=True) for shape in shapes]
    ranges = torch.sort(torch.randint(0, 5, (2, frames)), 1).values[:, :, None] + torch.arange(rows)
    targets = row_symbols(torch.randint(0, vocabulary, (2, rows + 3)), ranges, 0)
    try:
        torch.set_num_threads(threads)
        run = lambda *x: joint_log_probs(*x, ranges, targets, 0, dtype=dtype)  # noqa: E731
        actual = outputs_and_grads(run, leaves)
        assert type(run(*leaves)[0].grad_fn).__name__ == "_JoinBackward"
    finally:
        torch.set_num_threads(num_threads)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = outputs_and_grads(lambda *x: joined(ranges, targets, *x), exact)
    for a, e in zip(actual, expected, strict=True):
        assert_close_as(a, e, dtype)
    if dtype == torch.bfloat16 and joint % 2 == 0:  # rounded, that is: output, and gradient by a weight's inputs
        assert all((actual[n] - expected[n]).norm() > 1e-4 * expected[n].norm() for n in (0, 4))


@needs_numba
def test_a_logit_that_is_no_number_is_told():
    leaves, ranges, targets = inputs()
    with torch.no_grad():
        leaves[3][2] = float("nan")
    x, y = joint_log_probs(*leaves, ranges, targets, 0, dtype=torch.float32)
    assert x.isnan().all() and y.isnan().all()
    x.sum().backward()
    assert all(leaf.grad.isnan().any() for leaf in leaves)


def test_without_bias():
    (enc, pred, weight, _), ranges, targets = inputs()
    zero = torch.zeros(V)
    leaves = [enc, pred, weight]
    none = outputs_and_grads(
        lambda e, p, w: joint_log_probs(e, p, w, None, ranges, targets, 0, dtype=torch.float32), leaves
    )
    zeros = outputs_and_grads(
        lambda e, p, w: joint_log_probs(e, p, w, zero, ranges, targets, 0, dtype=torch.float32), leaves
    )
    for a, b in zip(none, zeros):
        torch.testing.assert_close(a, b)


def test_retained_graph_gives_the_same_again():
    leaves, ranges, targets = inputs()
    x, y = joint_log_probs(*leaves, ranges, targets, 0, dtype=torch.float32)
    loss = (x + 2 * y).sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, leaves)))


def test_selected_gradcheck():
    logits = torch.randn(2, 3, V, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[0, 1, 2], [6, 0, 3]])  # 0 is the blank itself
    torch.autograd.gradcheck(lambda logits: selected_log_probs(logits, targets, 0), (logits,))
