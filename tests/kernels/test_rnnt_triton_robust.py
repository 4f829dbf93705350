"""The Triton backend on what training meets, and what only Triton can get wrong: registration, compilation, order."""

import pytest
import test_rnnt_losses as losses
import test_rnnt_robust as robust
import torch
from conftest import TOLERANCE, assert_close_as
from launches import compile_all, recorded
from test_rnnt_triton import HALVES, ON_GPU, also_on_gpu, joint_inputs, on, run
from torch import library

from sumix_kernels.rnnt import op
from sumix_kernels.rnnt.lattice import RNNT_TYPES

pytest.importorskip("triton")
from sumix_kernels.rnnt import joint_triton, lattice_triton, pruning_triton, selected_triton, smoothed_triton

KINDS = ["random", "opposed", "equal", "one-hot", "joiner"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rnnt_type", also_on_gpu(RNNT_TYPES, ["regular"]))
@pytest.mark.parametrize("am_only_scale", also_on_gpu([0.0, 0.3], [0.0]))
def test_huge_logits_stay_finite(kind, rnnt_type, am_only_scale, triton_device):
    arguments = robust.huge(kind)
    result, grads = run(triton_device, *arguments, rnnt_type=rnnt_type, am_only_scale=am_only_scale)
    robust.finite(result, grads)
    expected = robust.run(*arguments, rnnt_type=rnnt_type, am_only_scale=am_only_scale)[0]
    torch.testing.assert_close(result.simple, expected.simple, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", also_on_gpu(HALVES, [torch.float16]))
def test_huge_logits_under_autocast(kind, dtype, triton_device):
    leaves, symbols, boundary = robust.huge(kind)
    if kind == "equal":
        leaves["weight"], leaves["bias"] = leaves["weight"] / robust.J, torch.zeros(robust.V)
    with torch.autocast(triton_device, dtype=dtype):
        robust.finite(*run(triton_device, leaves, symbols, boundary))


def test_underflow_over_many_frames(triton_device):
    am, lm = (torch.full((1, n, 7), -3e4, device=triton_device) for n in (100, 2))
    am[..., 1] = lm[..., 2] = 3e4
    am.requires_grad_(), lm.requires_grad_()
    symbols = torch.tensor([[4]], device=triton_device)
    loss = op.rnnt_loss_smoothed(lm, am, symbols, 0, 0.0, 0.0, backend="triton")
    for grad in torch.autograd.grad(loss, [am, lm]):
        assert grad.isfinite().all() and grad.any()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("autocast", [False, True])
def test_half_joiner(dtype, autocast, triton_device):
    """Half inputs, or fp32 inputs under autocast: near fp32 on the same rows, and in fp32 outside the products."""
    leaves, symbols, boundary = robust.inputs()
    leaves = {name: leaf.to(dtype).float() for name, leaf in leaves.items()}
    expected, expected_grads = robust.run(leaves, symbols, boundary)
    half = leaves if autocast else {name: leaf.to(dtype) for name, leaf in leaves.items()}
    with torch.autocast(triton_device, dtype=dtype, enabled=autocast):
        actual, grads = run(triton_device, half, symbols, boundary)
    assert actual.simple.dtype == actual.pruned.dtype == torch.float32
    assert torch.equal(actual.ranges, expected.ranges)
    torch.testing.assert_close(actual.simple, expected.simple, rtol=1e-6, atol=0)
    # Activation, logits, gradient of each: they round, and add up.
    max_error, rms_error = (8 * x for x in TOLERANCE[dtype])
    for name in robust.NAMES:
        assert grads[name].dtype == half[name].dtype
        error = (grads[name].float() - expected_grads[name]).abs()
        assert error.max() <= max_error * expected_grads[name].abs().max(), name
        assert error.square().mean().sqrt() <= rms_error * expected_grads[name].square().mean().sqrt(), name
    torch.testing.assert_close(actual.pruned, expected.pruned, rtol=rms_error, atol=0)


def test_loss_scaling_does_not_overflow_fp16(triton_device):
    leaves, symbols, boundary = on(triton_device, *robust.inputs())
    leaves = [leaves[name].requires_grad_() for name in robust.NAMES]
    enc, pred, weight, bias, am, lm = leaves
    with torch.autocast(triton_device, dtype=torch.float16):
        joiner = robust.Joiner(weight, bias)
        result = op.pruned_rnnt_loss(enc, pred, joiner, am, lm, symbols, boundary, s_range=3, backend="triton")
    plain = torch.autograd.grad(result.pruned.sum(), leaves[:4], retain_graph=True)
    scaled = torch.autograd.grad(result.pruned.sum() * 65536.0 * 64, leaves[:4])
    for a, b in zip(scaled, plain):
        torch.testing.assert_close(a / 65536.0 / 64, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rnnt_type", also_on_gpu(RNNT_TYPES, ["regular"]))
def test_padding_is_not_read(rnnt_type, triton_device, poisoned_memory):
    """The same bits whatever the padding holds, NaN included; the same numbers alone; no gradient for padding."""
    leaves, symbols, boundary = robust.inputs()
    result, grads = run(triton_device, leaves, symbols, boundary, rnnt_type=rnnt_type)
    for b, (_, _, s, t) in enumerate(boundary.tolist()):
        one, one_grads = run(triton_device, *robust.cut(leaves, symbols, boundary, b), rnnt_type=rnnt_type)
        torch.testing.assert_close(one.simple[0], result.simple[b], rtol=1e-6, atol=0)
        torch.testing.assert_close(one.pruned[0], result.pruned[b], rtol=1e-6, atol=0)
        assert torch.equal(one.ranges[0], result.ranges[b, :t])
        for name, end in (("enc", t), ("am", t), ("pred", s + 1), ("lm", s + 1)):
            torch.testing.assert_close(one_grads[name][0], grads[name][b, :end], rtol=1e-5, atol=1e-6)
            assert not grads[name][b, end:].any(), name
            leaves[name][b, end:] = float("nan")
    again, grads_again = run(triton_device, leaves, symbols, boundary, rnnt_type=rnnt_type)
    assert all(torch.equal(a, b) for a, b in zip(again, result))
    for name in robust.NAMES:
        assert torch.equal(grads_again[name], grads[name]), name


@pytest.mark.parametrize("rnnt_type", also_on_gpu(RNNT_TYPES, ["regular", "modified"]))
@pytest.mark.parametrize("boundary_of_1", [(0, 0, 3, 0), (0, 0, 5, 2), (0, 0, 0, 0)], ids=["T=0", "U>T", "nothing"])
def test_utterance_without_a_path(rnnt_type, boundary_of_1, triton_device):
    leaves, symbols, boundary = robust.inputs()
    boundary[1] = torch.tensor(boundary_of_1)
    result, grads = run(triton_device, leaves, symbols, boundary, rnnt_type=rnnt_type)
    expected, expected_grads = robust.run(leaves, symbols, boundary, rnnt_type=rnnt_type)
    assert torch.equal(result.has_path, expected.has_path)
    assert result.simple[1] == 0 and result.pruned[1] == 0
    for name in robust.NAMES:
        assert_close_as(grads[name], expected_grads[name], torch.float32)
        assert name in ("weight", "bias") or not grads[name][1].any(), name


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_single_functions_without_a_path(rnnt_type, triton_device):
    """+inf for the utterance alone, no nan anywhere, zero gradients."""
    logits = torch.randn(2, 4, 6, 7, device=triton_device, requires_grad=True)
    symbols = torch.randint(1, 7, (2, 5), device=triton_device)
    boundary = torch.tensor([[0, 0, 3, 4], [0, 0, 5, 0]], device=triton_device)
    loss = op.rnnt_loss(logits, symbols, 0, boundary, rnnt_type, reduction="none", backend="triton")
    assert loss[0].isfinite() and loss[1] == float("inf")
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert grad.isfinite().all() and grad[0].any() and not grad[1].any()


@pytest.mark.parametrize("rnnt_type", also_on_gpu(RNNT_TYPES, ["regular", "constrained"]))
@pytest.mark.parametrize("num_symbols, num_frames", [(0, 5), (1, 1), (2, 0), (0, 0)])
def test_smallest_batches(rnnt_type, num_symbols, num_frames, triton_device, poisoned_memory):
    leaves, symbols, _ = robust.inputs()
    leaves |= {name: leaves[name][:, :num_frames] for name in ("enc", "am")}
    leaves |= {name: leaves[name][:, : num_symbols + 1] for name in ("pred", "lm")}
    boundary = torch.tensor([[0, 0, num_symbols, num_frames]] * robust.B)
    result, grads = run(triton_device, leaves, symbols[:, :num_symbols], boundary, rnnt_type=rnnt_type)
    robust.finite(result, grads)
    expected, expected_grads = robust.run(leaves, symbols[:, :num_symbols], boundary, rnnt_type=rnnt_type)
    assert torch.equal(result.has_path, expected.has_path)
    for name in robust.NAMES:
        assert_close_as(grads[name], expected_grads[name], torch.float32)


@pytest.mark.parametrize("kind", also_on_gpu(RNNT_TYPES, ["regular", "modified"]))
def test_occupations_are_probabilities(kind, triton_device):
    """Every path emits each symbol once and leaves each frame once, over many frames too."""
    am, lm, symbols, boundary = losses.draw([(30, 2000 if ON_GPU else 120), (7, 80)], V=9, scale=5.0)
    am, lm, symbols, boundary = (x.to(triton_device) for x in (am, lm, symbols, boundary))
    others = 0, 0.25, 0.0, boundary, kind
    _, (px, py) = op.rnnt_loss_smoothed(lm, am, symbols, *others, return_grad=True, backend="triton")
    px, py = px.cpu(), py.cpu()
    for b, (_, _, S, T) in enumerate(boundary.tolist()):
        torch.testing.assert_close(px[b, :S].sum(1), torch.ones(S), rtol=0, atol=1e-5)
        frames = py[b].sum(0) + (0.0 if kind == "regular" else px[b].sum(0))
        torch.testing.assert_close(frames[:T], torch.ones(T), rtol=0, atol=1e-5)
        assert not px[b, S:].any() and not px[b, :, T:].any() and not py[b, S + 1 :].any() and not py[b, :, T:].any()


# What only Triton can get wrong


@pytest.mark.parametrize("dtype", also_on_gpu([torch.float32, *HALVES], [torch.float16]))
def test_deterministic(dtype, triton_device):
    leaves, symbols, boundary = robust.inputs(dtype)
    first, first_grads = run(triton_device, leaves, symbols, boundary)
    again, again_grads = run(triton_device, leaves, symbols, boundary)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert all(torch.equal(first_grads[name], again_grads[name]) for name in robust.NAMES)


def test_strided_inputs(triton_device):
    leaves, symbols, boundary = robust.inputs()
    expected, expected_grads = run(triton_device, leaves, symbols, boundary)
    strided = {name: torch.stack([leaf, leaf], -1)[..., 0] for name, leaf in leaves.items()}
    assert not strided["am"].is_contiguous()
    symbols, boundary = (torch.stack([x, x], -1)[..., 0] for x in (symbols, boundary))
    actual, grads = run(triton_device, strided, symbols, boundary)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected))
    assert all(torch.equal(grads[name], expected_grads[name]) for name in robust.NAMES)


def registered():
    """Ops and arguments, nothing left out by the boundary: what an op does not write has no value to compare."""
    B, T, S, J, V, R = 2, 7, 4, 5, 6, 3
    (enc, pred, weight, bias), symbols, _ = joint_inputs(B, T, S, J, V, R)
    start = torch.tensor([0, 0, 1, 1, 2, 2, 2]).expand(B, T).contiguous()
    boundary = torch.tensor([[0, 0, S, T]] * B)
    lm, am, px, py = torch.randn(B, S + 1, V), torch.randn(B, T, V), torch.randn(B, S, T), torch.randn(B, S + 1, T)
    cases = {
        "regular": (lattice_triton._lattice, (px, py, None, S, boundary, "regular", 0.1, True)),
        "constrained": (lattice_triton._lattice, (px, py, None, S, boundary, "constrained", 0.0, True)),
        "pruned": (
            lattice_triton._lattice,
            (py[:, :R].contiguous(), py[:, 1 : R + 1].contiguous(), start, S, boundary, "regular", 0.0, True),
        ),
        "smoothed": (smoothed_triton.smoothed_log_probs, (lm, am, symbols, boundary, 0, 0.75, 0.25, True)),
        "selected": (
            selected_triton.selected_log_probs,
            (torch.randn(B, T, S + 1, V), symbols, None, boundary, 0, True),
        ),
        "ranges": (pruning_triton._prune_ranges, (px.exp(), py.exp(), boundary, R)),
        "joint": (
            joint_triton._joint,
            (enc, pred, weight, bias, symbols, start, boundary, 0, R, torch.float32, 3),
        ),
    }
    return cases


@pytest.mark.parametrize("name", ["regular", "constrained", "pruned", "ranges", "smoothed", "selected", "joint"])
def test_opcheck(name, triton_device):
    function, given = registered()[name]

    def argument(x):
        if not isinstance(x, torch.Tensor):
            return x
        return x.to(triton_device).requires_grad_(x.is_floating_point() and name != "ranges")  # occupations have none

    library.opcheck(function, tuple(map(argument, given)))


@pytest.mark.parametrize("rnnt_type", also_on_gpu(RNNT_TYPES, ["regular"]))
def test_compiles_as_one_graph(rnnt_type, triton_device):
    leaves, symbols, boundary = on(triton_device, *robust.inputs())
    leaves = [leaves[name].requires_grad_() for name in robust.NAMES]

    def loss(enc, pred, weight, bias, am, lm, symbols, boundary):
        result = op.pruned_rnnt_loss(
            enc,
            pred,
            robust.Joiner(weight, bias),
            am,
            lm,
            symbols,
            boundary,
            s_range=3,
            rnnt_type=rnnt_type,
            backend="triton",
        )
        return (result.simple + result.pruned).sum()

    plain = loss(*leaves, symbols, boundary)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves, symbols, boundary)
    assert torch.equal(plain, compiled)
    for a, b in zip(*(torch.autograd.grad(x, leaves) for x in (plain, compiled))):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rnnt_type", also_on_gpu(RNNT_TYPES, ["regular"]))
def test_nothing_waits_for_the_device(rnnt_type, triton_device, monkeypatch):
    monkeypatch.setattr(op.arguments, "readable", lambda _: False)  # looks at tensors on the CPU only
    leaves, symbols, boundary = on(triton_device, *robust.inputs())
    options = {"rnnt_type": rnnt_type, "delay_penalty": 0.1, "am_only_scale": 0.1, "backend": "triton"}
    if not ON_GPU:
        with robust.NoHostWait():
            robust.run(leaves, symbols, boundary, **options)
        return
    robust.run(leaves, symbols, boundary, **options)  # kernels are compiled, cuBLAS is loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        robust.run(leaves, symbols, boundary, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(ON_GPU, reason="the launches are real ones there")
@pytest.mark.parametrize(
    "capability, dtype", [(90, torch.bfloat16), (80, torch.float32)], ids=["sm_90 bf16", "sm_80 fp32"]
)
def test_kernels_compile(capability, dtype):
    """What a training step launches, at its block sizes, compiled for a real GPU: no errors, no spills to speak of."""
    B, T, S, J, V, R = 1, 6, 100, 512, 500, 26
    leaves = [x.to(dtype) for x in (torch.randn(B, T, J), torch.randn(B, S + 1, J), torch.randn(V, J), torch.zeros(V))]
    symbols = torch.randint(1, V, (B, S))
    boundary = torch.tensor([[0, 0, S, T]])
    am, lm = torch.randn(B, T, V, dtype=dtype, requires_grad=True), torch.randn(B, S + 1, V, dtype=dtype)
    with recorded() as launches:
        enc, pred, weight, bias = (x.requires_grad_() for x in leaves)
        joiner = robust.Joiner(weight, bias)
        result = op.pruned_rnnt_loss(enc, pred, joiner, am, lm, symbols, boundary, s_range=R, backend="triton")
        assert result.has_path.all()
        torch.autograd.grad((result.simple + result.pruned).sum(), [am, enc])
    kernels = "start ranges peak arcs am_grad lm_grad lattice hidden log_probs logits_grad enc_grad pred_grad"
    assert {launch["kernel"] for launch in launches} == {f"{name}_kernel" for name in kernels.split()}
    for launch, compiled in zip(launches, compile_all(launches, capability)):
        what = launch["kernel"], launch["constants"]
        assert compiled["error"] is None, (what, compiled["error"])
        # The assembler may give up a few bytes to fit one more block on a processor.
        assert compiled["spilled"] <= 32, (what, compiled)
