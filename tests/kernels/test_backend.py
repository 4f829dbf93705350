"""A backend chosen by "auto" is one that is there; one asked for by name runs or raises."""

import subprocess
import sys

import pytest
import torch
from conftest import assert_close_as

import sumix_kernels as K
from sumix_kernels.backend import choose

X, LENGTHS = torch.arange(24.0).view(1, 12, 2), torch.tensor([10])
OPS = {
    "chunk_summary": lambda backend: K.chunk_summary(X, LENGTHS, 5, 1, backend=backend),
    "chunk_decay_mean": lambda backend: K.chunk_decay_mean(X, LENGTHS, 5, 1, 0.9, backend=backend),
    "chunk_conv1d": lambda backend: K.chunk_conv1d(X, torch.ones(2, 3), None, LENGTHS, 5, backend=backend),
    "broadcast_chunks": lambda backend: K.broadcast_chunks(X, 2, 23, backend=backend),
}


def test_auto_takes_the_fastest_there_is():
    fast, plain, reference = object(), object(), object()
    assert choose("auto", {"naive": reference, "torch": plain, "triton": fast}) is fast
    assert choose("auto", {"naive": reference, "torch": plain}) is plain
    assert choose("auto", {"naive": reference}) is reference
    assert choose("naive", {"naive": reference, "torch": plain}) is reference


@pytest.mark.parametrize("op", OPS)
def test_every_backend_of_an_op_agrees(op):
    naive, fast = OPS[op]("naive"), OPS[op]("torch")
    assert naive.dtype == fast.dtype == X.dtype
    assert_close_as(fast, naive.double(), X.dtype)
    assert torch.equal(OPS[op]("auto"), fast)


def test_a_missing_backend_says_so():
    with pytest.raises(NotImplementedError, match="'triton' is not available in this version; use 'auto' or"):
        choose("triton", {"naive": object(), "torch": object()})


@pytest.mark.parametrize("op", OPS)
def test_an_unknown_backend_is_named(op):
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'triton', 'torch', 'naive', got 'tritn'"):
        OPS[op]("tritn")


def test_a_preferred_backend_is_what_auto_means():
    fast, plain, reference = object(), object(), object()
    with K.preferred_backend("naive"):
        assert choose("auto", {"naive": reference, "torch": plain}) is reference
        assert choose("torch", {"naive": reference, "torch": plain}) is plain
        assert choose("auto", {"torch": plain}) is plain, "an op that does not have it does as without"
        with K.preferred_backend("torch"):
            assert choose("auto", {"naive": reference, "torch": plain, "triton": fast}) is plain
        assert choose("auto", {"naive": reference, "torch": plain}) is reference
    assert choose("auto", {"naive": reference, "torch": plain}) is plain
    with pytest.raises(ValueError, match="backend must be one of 'triton', 'torch', 'naive', got 'k3'"):
        with K.preferred_backend("k3"):
            pass


def test_a_preferred_backend_holds_for_the_loss(monkeypatch):
    from sumix_kernels.rnnt import naive

    asked = []
    monkeypatch.setattr(naive, "rnnt_loss", lambda logits, *_: asked.append(1) or logits.sum())
    with K.preferred_backend("naive"):
        K.rnnt_loss(torch.zeros(1, 4, 3, 5), torch.ones(1, 2, dtype=torch.int64), 0)
    assert asked == [1]


@pytest.mark.parametrize("op", OPS)
def test_triton_by_name_runs_or_says_why_not(op, monkeypatch):
    if not torch.cuda.is_available():
        assert_close_as(OPS[op]("triton"), OPS[op]("naive").double(), X.dtype)
    monkeypatch.setattr("sumix_kernels.backend.INTERPRETED", False)
    with pytest.raises(RuntimeError, match="cannot run: it needs CUDA tensors, or TRITON_INTERPRET=1.*got cpu; use"):
        OPS[op]("triton")
    monkeypatch.setattr("sumix_kernels.backend._TRITON_INSTALLED", False)
    with pytest.raises(RuntimeError, match="the package triton is not installed; use backend='torch'"):
        OPS[op]("triton")


def test_triton_refuses_double_precision():
    with pytest.raises(RuntimeError, match=r"it takes fp32, fp16 and bf16, got torch\.float64"):
        K.chunk_summary(X.double(), LENGTHS, 5, 1, backend="triton")


def test_an_op_wins_over_its_folders_name():
    """The folder chunk_summary holds the op chunk_summary, and importing a folder sets it as an attribute."""
    code = (
        "import sumix_kernels as K, sumix_kernels.chunk_summary.naive; assert not hasattr(K, 'nothing')\n"
        "assert callable(K.chunk_summary) and set(K.__all__) <= set(dir(K)); [getattr(K, name) for name in K.__all__]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_needs_no_torch_loads_none():
    pytest.importorskip("numba", reason="kernels/cpu needs Numba")
    code = "import sys, sumix_kernels.cpu; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
