"""Long utterances: elements further than 2**31 from the first, and a million frames."""

import numpy as np
import pytest
import torch
from conftest import assert_close_as

import sumix_kernels as K

FRAMES, DIM, STRIDE = 11, 4, 2**28


def far_apart(width: int, device: str) -> torch.Tensor:
    """(1, 11, width) fp16, frames 2**28 elements apart: 5.9 GB of addresses, of which few pages are touched."""
    if device == "cpu":
        try:
            storage = torch.from_numpy(np.zeros(FRAMES * STRIDE, np.float16))
        except MemoryError:
            pytest.skip("this machine does not reserve 5.9 GB of addresses for a process")
    else:
        storage = torch.zeros(FRAMES * STRIDE, dtype=torch.float16, device=device)
    x = storage.as_strided((1, FRAMES, width), (FRAMES * STRIDE, STRIDE, 1))
    x.copy_(torch.randn(1, FRAMES, width))
    return x


OPS = {
    "chunk_summary": lambda x, lengths: K.chunk_summary(x, lengths, 2, 1, backend="triton"),
    "chunk_summary, gelu": lambda x, lengths: K.chunk_summary(x, lengths, 2, None, gelu=True, backend="triton"),
    "broadcast_chunks": lambda x, lengths: K.broadcast_chunks(x, 2, 21, backend="triton"),
    "merge_chunks, local": lambda x, lengths: K.merge_chunks(x, x[:, ::3].contiguous(), lengths, 3, backend="triton"),
    "merge_chunks, summary": lambda x, lengths: K.merge_chunks(x.contiguous(), x, lengths, 1, backend="triton"),
    "chunk_decay_mean": lambda x, lengths: K.chunk_decay_mean(x, lengths, 2, 1, 0.9, backend="triton"),
    "chunk_conv1d": lambda x, lengths: K.chunk_conv1d(
        x, torch.ones(DIM, 3, device=x.device), None, lengths, 2, backend="triton"
    ),
}


@pytest.mark.parametrize("op", OPS)
def test_offsets_beyond_32_bits(op, triton_device):
    far, lengths = far_apart(DIM, triton_device), torch.tensor([FRAMES - 1], device=triton_device)
    near = far.contiguous()
    results = []
    for x in (far, near):
        x = x.detach().requires_grad_()
        y = OPS[op](x, lengths)
        results.append((y, *torch.autograd.grad(y, x, torch.ones_like(y))))
    for mine, theirs in zip(*results, strict=True):
        assert theirs.abs().max() > 0
        assert torch.equal(mine, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("chunk_size", (1, 16, None))
def test_a_million_frames(chunk_size):
    """2.15e9 elements, gradients too, against the torch backend on a few channels."""
    x = torch.randn(1, 1_050_000, 2048, device="cuda", dtype=torch.bfloat16).requires_grad_()
    lengths = torch.tensor([1_049_999], device="cuda")
    mean = K.chunk_summary(x, lengths, chunk_size, 4, backend="triton")
    (grad,) = torch.autograd.grad(mean, x, torch.ones_like(mean))
    few = x.detach()[:, :, -3:].double().requires_grad_()
    expected = K.chunk_summary(few, lengths, chunk_size, 4, backend="torch")
    (expected_grad,) = torch.autograd.grad(expected, few, torch.ones_like(expected))
    assert_close_as(mean[:, :, -3:], expected, torch.bfloat16)
    assert_close_as(grad[:, :, -3:], expected_grad, torch.bfloat16)
