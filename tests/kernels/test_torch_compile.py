"""The torch backends under torch.compile: a baseline of the benchmarks, and what a CPU user may compile."""

import pytest
import torch
from conftest import assert_close_as

import sumix_kernels as K

LENGTHS = torch.tensor([40, 23])
OPS = {
    "chunk_summary": lambda x, w: K.chunk_summary(x, LENGTHS, 8, 1, backend="torch"),
    "chunk_summary, gelu": lambda x, w: K.chunk_summary(x, LENGTHS, 8, None, gelu=True, backend="torch"),
    "broadcast_chunks": lambda x, w: K.broadcast_chunks(x, 8, 320, backend="torch"),
    "merge_chunks": lambda x, w: K.merge_chunks(x, x[:, :5], LENGTHS, 8, backend="torch"),
    "chunk_decay_mean": lambda x, w: K.chunk_decay_mean(x, LENGTHS, 8, 1, 0.9, backend="torch"),
    "chunk_conv1d": lambda x, w: K.chunk_conv1d(x, w, w[:, 0], LENGTHS, 8, backend="torch"),
    "chunk_conv1d, glu": lambda x, w: K.chunk_conv1d(x, w[:3], w[:3, 0], LENGTHS, 8, glu=True, backend="torch"),
}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("op", OPS)
def test_compiled_equals_eager(op, dtype):
    torch.compiler.reset()
    x, weight = torch.randn(2, 40, 6).to(dtype).requires_grad_(), torch.randn(6, 3, requires_grad=True)
    results = []
    for function in (OPS[op], torch.compile(OPS[op], backend="aot_eager")):
        y = function(x, weight)
        grads = torch.autograd.grad(y, (x, weight), torch.ones_like(y), allow_unused=True)
        results.append((y, *(grad for grad in grads if grad is not None)))
    for eager, compiled in zip(*results, strict=True):
        assert eager.abs().max() > 0
        assert_close_as(compiled, eager.double(), dtype)
