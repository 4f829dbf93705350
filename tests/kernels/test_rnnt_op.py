"""What the RNN-T functions refuse, and how they choose who computes."""

import sys
import types

import pytest
import torch

from sumix_kernels.rnnt import op
from sumix_kernels.rnnt import torch as pieces

B, T, S, J, V = 2, 6, 3, 4, 5


def arguments(**changed):
    given = {
        "enc_proj": torch.randn(B, T, J),
        "pred_proj": torch.randn(B, S + 1, J),
        "joiner": torch.nn.Linear(J, V),
        "am": torch.randn(B, T, V),
        "lm": torch.randn(B, S + 1, V),
        "symbols": torch.randint(1, V, (B, S)),
        "boundary": torch.tensor([[0, 0, 3, 6], [0, 0, 2, 4]]),
        "s_range": 3,
    }
    return {**given, **changed}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"lm": torch.zeros(B, S, V)}, r"lm must have shape \(2, 4, 5\).*got \(2, 3, 5\)"),
        ({"am": torch.zeros(B, V)}, r"am must have 3 dimensions"),
        ({"enc_proj": torch.zeros(B, T + 1, J)}, r"enc_proj must have shape"),
        ({"pred_proj": torch.zeros(B, S + 1, J + 1)}, r"pred_proj must have shape"),
        ({"joiner": torch.nn.Linear(J, V + 1)}, r"joiner.weight must have shape \(5, 4\)"),
        ({"symbols": torch.ones(B, S, dtype=torch.int32)}, r"symbols must be int64"),
        ({"symbols": torch.full((B, S), V)}, r"symbols must be in 0..4, got 5..5"),
        ({"boundary": torch.tensor([[0, 0, 3, 6], [0, 0, 2, 7]])}, r"boundary .* got \[0, 0, 2, 7\]"),
        ({"boundary": torch.zeros(B, 2, dtype=torch.int64)}, r"boundary must have shape \(2, 4\)"),
        ({"rnnt_type": "hat"}, r"rnnt_type must be one of regular, modified, constrained, got 'hat'"),
        ({"s_range": 1}, r"s_range must be at least 2"),
        ({"termination_symbol": V}, r"termination_symbol must be in 0..4"),
        ({"delay_penalty": -0.1}, r"delay_penalty must be at least 0"),
        ({"lm_only_scale": 1.5}, r"lm_only_scale must be in 0..1"),
        ({"lm_only_scale": 0.7, "am_only_scale": 0.6}, r"at most 1"),
        ({"backend": "cuda"}, r"backend must be one of .*'k2'.*got 'cuda'"),
    ],
)
def test_refusals(changed, message):
    with pytest.raises(ValueError, match=message):
        op.pruned_rnnt_loss(**arguments(**changed))


def test_unknown_reduction():
    with pytest.raises(ValueError, match="reduction must be one of none, mean, sum, got 'average'"):
        op.rnnt_loss(torch.zeros(1, 2, 2, 3), torch.ones(1, 1, dtype=torch.int64), 0, reduction="average")


def test_triton_by_name_runs_or_raises():
    given = arguments(backend="triton")
    with pytest.raises(RuntimeError, match="takes fp32, fp16 and bf16, got torch.float64"):
        op.pruned_rnnt_loss(**{**given, "lm": given["lm"].double()})


def test_k2_by_name_needs_k2(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)  # what import sees of a module that cannot be imported
    with pytest.raises(ImportError, match="backend='torch'"):
        op.pruned_rnnt_loss(**arguments(backend="k2"))


class FakeK2(types.ModuleType):
    """k2's documented signatures over our own pieces; notes who was called, and that inputs are fp32."""

    def __init__(self):
        super().__init__("k2")
        self.called = []

    def rnnt_loss_smoothed(
        self,
        lm,
        am,
        symbols,
        termination_symbol,
        lm_only_scale=0.1,
        am_only_scale=0.1,
        boundary=None,
        rnnt_type="regular",
        delay_penalty=0.0,
        reduction="mean",
        return_grad=False,
    ):
        self.called.append("rnnt_loss_smoothed")
        assert lm.dtype == am.dtype == torch.float32 and reduction == "none" and return_grad
        assert op.has_path(boundary, rnnt_type).all()
        loss, *grads = pieces.rnnt_loss_smoothed(
            lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type, delay_penalty
        )
        return loss, tuple(grads)

    def get_rnnt_prune_ranges(self, px_grad, py_grad, boundary, s_range):
        self.called.append("get_rnnt_prune_ranges")
        return pieces.get_rnnt_prune_ranges(px_grad, py_grad, boundary, s_range)

    def rnnt_loss_pruned(
        self,
        logits,
        symbols,
        ranges,
        termination_symbol,
        boundary=None,
        rnnt_type="regular",
        delay_penalty=0.0,
        reduction="mean",
        use_hat_loss=False,
    ):
        self.called.append("rnnt_loss_pruned")
        assert logits.dtype == torch.float32 and reduction == "none" and not use_hat_loss
        return pieces.rnnt_loss_pruned(logits, symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty)

    def rnnt_loss(
        self,
        logits,
        symbols,
        termination_symbol,
        boundary=None,
        rnnt_type="regular",
        delay_penalty=0.0,
        reduction="mean",
    ):
        self.called.append("rnnt_loss")
        assert logits.dtype == torch.float32 and reduction == "none"
        return pieces.rnnt_loss(logits, symbols, termination_symbol, boundary, rnnt_type, delay_penalty)


@pytest.fixture
def k2(monkeypatch):
    fake = FakeK2()
    monkeypatch.setitem(sys.modules, "k2", fake)
    return fake


def test_k2_by_name(k2):
    given = arguments(rnnt_type="modified", delay_penalty=0.1)
    given["boundary"][1] = torch.tensor([0, 0, 3, 2])  # no path: k2 never sees it
    by_k2, by_torch = (op.pruned_rnnt_loss(**given, backend=name) for name in ("k2", "torch"))
    assert k2.called == ["rnnt_loss_smoothed", "get_rnnt_prune_ranges", "rnnt_loss_pruned"]
    for a, b in zip(by_k2, by_torch):
        torch.testing.assert_close(a, b)
    assert by_k2.has_path.tolist() == [True, False] and by_k2.pruned[1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_k2_pieces(k2, dtype):
    logits, symbols = torch.randn(B, T, S + 1, V, dtype=dtype), torch.randint(1, V, (B, S))
    expected = op.rnnt_loss(logits, symbols, 0, reduction="sum", backend="torch")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert op.rnnt_loss(logits, symbols, 0, reduction="sum", backend="k2") == expected
    assert k2.called == ["rnnt_loss"]


def test_auto_stays_in_torch_on_a_cpu(k2):
    op.pruned_rnnt_loss(**arguments())
    assert not k2.called


class OnGpu:
    """What the choice of a backend looks at in a tensor, of one that needs no GPU."""

    is_cuda, device = True, torch.device("cuda")

    def __init__(self, dtype):
        self.dtype = dtype

    def is_floating_point(self):
        return True


def test_auto_on_a_gpu(k2, monkeypatch):
    """Triton first; what it does not take goes to k2 if that can be imported, else to torch."""
    pytest.importorskip("triton")
    assert op._pieces("auto", OnGpu(torch.bfloat16), None).__name__ == "sumix_kernels.rnnt.triton"
    monkeypatch.setattr(op.via_k2, "importable", lambda: True)
    assert op._pieces("auto", OnGpu(torch.float32), OnGpu(torch.float64)) is op.via_k2
    monkeypatch.setattr(op.via_k2, "importable", lambda: False)
    assert op._pieces("auto", OnGpu(torch.float32), OnGpu(torch.float64)) is op.torch_pieces


def test_naive_whole():
    """The naive backend runs the whole loss too; where rows agree, so do losses."""
    given = arguments()
    naive, fast = (op.pruned_rnnt_loss(**given, backend=name) for name in ("naive", "torch"))
    torch.testing.assert_close(fast.simple.double(), naive.simple, rtol=1e-5, atol=0)
    assert torch.equal(naive.ranges, fast.ranges)
    torch.testing.assert_close(fast.pruned.double(), naive.pruned.double(), rtol=1e-5, atol=0)
