"""A backend chosen by "auto" is one that is there; one asked for by name runs or raises."""

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
