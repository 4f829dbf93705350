"""Against the numbers of k2 in tests/golden: values, occupations, ranges and every gradient."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sumix_kernels.rnnt import op

GOLDEN = sorted((Path(__file__).resolve().parent.parent / "golden").glob("*.npz"))
# Relative to the largest element; k2 itself recurs in fp32.
ALLOWED = 1e-4


class Case:
    def __init__(self, path: Path, device: str = "cpu"):
        self.arrays = dict(np.load(path))
        self.device = device

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name]).to(self.device)

    def leaf(self, name: str) -> torch.Tensor:
        return self[name].clone().requires_grad_()

    @property
    def lattice(self) -> dict:
        return {
            "boundary": self["boundary"],
            "rnnt_type": str(self.arrays["rnnt_type"]),
            "delay_penalty": float(self.arrays["delay_penalty"]),
        }

    def scalar(self, name: str):
        return self.arrays[name].item()

    def holds(self, **actual: torch.Tensor) -> None:
        for name, value in actual.items():
            expected = self[name].double()
            assert value.shape == expected.shape, name
            error = (value.detach().double() - expected).abs().max() / expected.abs().max()
            assert error <= ALLOWED, f"{name}: {error:.2e}"


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def case(request) -> Case:
    return Case(request.param)


def test_every_case_is_there():
    assert len(GOLDEN) == 10


# The naive lattices of cases 06 and 09 are large.
SMALL = ("case00", "case01", "case04", "case05", "case08")


def simple(case: Case, backend: str):
    am, lm = case.leaf("am"), case.leaf("lm")
    scales = case.scalar("lm_only_scale"), case.scalar("am_only_scale")
    loss, (px_grad, py_grad) = op.rnnt_loss_smoothed(
        lm, am, case["symbols"], 0, *scales, reduction="none", return_grad=True, backend=backend, **case.lattice
    )
    am_grad, lm_grad = torch.autograd.grad(loss.sum(), [am, lm])
    case.holds(simple_loss=loss, px_grad=px_grad, py_grad=py_grad, am_grad=am_grad, lm_grad=lm_grad)
    return px_grad, py_grad


def pruned(case: Case, backend: str):
    leaves = [case.leaf(name) for name in ("h_am", "h_lm", "w", "b")]
    h_am, h_lm, w, b = leaves
    am, lm = op.do_rnnt_pruning(h_am, h_lm, case["ranges"])
    logits = torch.tanh(am + lm) @ w.T + b
    loss = op.rnnt_loss_pruned(
        logits, case["symbols"], case["ranges"], 0, reduction="none", backend=backend, **case.lattice
    )
    grads = torch.autograd.grad(loss.sum(), leaves)
    case.holds(pruned_loss=loss, **dict(zip(("h_am_grad", "h_lm_grad", "w_grad", "b_grad"), grads)))


def unpruned(case: Case, backend: str):
    logits = torch.tanh(case["h_am"][:, :, None] + case["h_lm"][:, None]) @ case["w"].T + case["b"]
    case.holds(
        unpruned_loss=op.rnnt_loss(logits, case["symbols"], 0, reduction="none", backend=backend, **case.lattice)
    )


def kept_mass(px_grad, py_grad, ranges) -> torch.Tensor:
    """Occupation (B, T) that a choice of rows keeps: leaves them, less what entered them from below."""
    T = py_grad.shape[2]
    entered = torch.nn.functional.pad(px_grad[:, :, :T], (0, 0, 1, 0)).transpose(1, 2).gather(2, ranges[:, :, :1])
    return py_grad.transpose(1, 2).gather(2, ranges).sum(2) - entered.squeeze(2)


def test_simple_loss_and_ranges(case):
    px_grad, py_grad = simple(case, "torch")
    ranges = op.get_rnnt_prune_ranges(px_grad, py_grad, case["boundary"], case.scalar("s_range"), backend="torch")
    # The last digits of a processor's sums decide between rows that keep all occupation; no others may differ.
    mass, expected = (kept_mass(px_grad, py_grad, r) for r in (ranges, case["ranges"]))
    torch.testing.assert_close(mass, expected, rtol=0, atol=1e-4)


def test_ranges_exactly(case):
    """From k2's own occupations the very same rows."""
    arguments = case["px_grad"], case["py_grad"], case["boundary"], case.scalar("s_range")
    assert torch.equal(op.get_rnnt_prune_ranges(*arguments, backend="torch"), case["ranges"])
    naive = op.get_rnnt_prune_ranges(*arguments, backend="naive")  # sums in fp64: other rows where fp32 sees a tie
    mass, expected = (kept_mass(*arguments[:2], r) for r in (naive, case["ranges"]))
    torch.testing.assert_close(mass, expected, rtol=0, atol=1e-5)


def test_pruned_loss(case):
    pruned(case, "torch")


def test_unpruned_loss(case):
    unpruned(case, "torch")


@pytest.mark.parametrize("name", SMALL)
def test_naive(name):
    case = Case(next(path for path in GOLDEN if path.stem.startswith(name)))
    simple(case, "naive")
    pruned(case, "naive")
    unpruned(case, "naive")


def fused(case: Case, backend: str):
    """pruned_rnnt_loss as a whole, joiner fused, on the cases without the batch's unigram."""
    leaves = [case.leaf(name) for name in ("h_am", "h_lm", "w", "b")]
    h_am, h_lm, w, b = leaves
    joiner = torch.nn.Linear(*w.shape[::-1])
    joiner.weight, joiner.bias = torch.nn.Parameter(w.detach()), torch.nn.Parameter(b.detach())
    result = op.pruned_rnnt_loss(
        h_am,
        h_lm,
        joiner,
        case["am"],
        case["lm"],
        case["symbols"],
        s_range=case.scalar("s_range"),
        lm_only_scale=case.scalar("lm_only_scale"),
        am_only_scale=case.scalar("am_only_scale"),
        backend=backend,
        **case.lattice,
    )
    assert result.has_path.all()
    case.holds(simple_loss=result.simple)
    if not torch.equal(result.ranges, case["ranges"]):
        pytest.skip("rows that keep all occupation were chosen differently on this processor")
    grads = torch.autograd.grad(result.pruned.sum(), [h_am, h_lm, joiner.weight, joiner.bias])
    case.holds(pruned_loss=result.pruned, **dict(zip(("h_am_grad", "h_lm_grad", "w_grad", "b_grad"), grads)))


def test_fused_loss(case):
    fused(case, "torch")
