"""chunk_decay_mean in Triton against the fp64 reference: output and gradient."""

import pytest
import torch
from conftest import assert_close_as
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import compile_all, recorded
from test_chunk_decay import DTYPES, LIMITS, ragged_lengths
from torch import library

import sumix_kernels as K
from sumix_kernels.chunk_decay import naive


def check(x, lengths, chunk_size, left_context, decay=0.95):
    x, lengths = x.detach().requires_grad_(), lengths.to(x.device)
    mean = K.chunk_decay_mean(x, lengths, chunk_size, left_context, decay, backend="triton")
    weights = torch.randn_like(mean)
    (grad,) = torch.autograd.grad(mean, x, weights)
    reference_x = x.detach().double().requires_grad_()
    reference = naive.chunk_decay_mean(reference_x, lengths, chunk_size, left_context, decay)
    (reference_grad,) = torch.autograd.grad(reference, reference_x, weights.double())
    assert (mean.dtype, grad.dtype) == (x.dtype, x.dtype)
    assert_close_as(mean, reference, x.dtype)
    assert_close_as(grad, reference_grad, x.dtype)
    for row, row_grad, length in zip(mean, grad, lengths):
        assert (row[length:] == 0).all() and (row_grad[length:] == 0).all()


@pytest.mark.parametrize("left_context", (0, 1, 4, None))
@pytest.mark.parametrize("chunk_size", (1, 7, 16, 65, 149, None))
def test_equals_naive(chunk_size, left_context, triton_device, poisoned_memory):
    dtype = DTYPES[((chunk_size or 3) + (left_context or 2)) % 3]
    lengths = torch.tensor([150, chunk_size or 149, 0])
    check(torch.randn(3, 150, 3, device=triton_device).to(dtype), lengths, chunk_size, left_context)


@pytest.mark.gpu
@pytest.mark.parametrize("left_context", (0, 1, 4, None))
@pytest.mark.parametrize("chunk_size", (1, 7, 16, 32, 300, None))
@pytest.mark.parametrize("num_frames", (1, 63, 1000))
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_naive_in_full(dtype, num_frames, chunk_size, left_context, poisoned_memory):
    lengths = ragged_lengths(num_frames, min(chunk_size or num_frames, num_frames))
    check(torch.randn(len(lengths), num_frames, 67, device="cuda").to(dtype), lengths, chunk_size, left_context)


@pytest.mark.parametrize("decay", (1e-30, 0.5, 0.995, 0.999999))
@pytest.mark.parametrize("chunk_size", (1, 16, 200, None))
def test_any_decay(chunk_size, decay, triton_device):
    check(torch.randn(1, 400, 2, device=triton_device), torch.tensor([390]), chunk_size, None, decay)
    check(torch.randn(1, 150, 2, device=triton_device), torch.tensor([131]), chunk_size, 4, decay)


@pytest.mark.parametrize("kind", ("both", "chunk_size", "left_context"))
def test_a_context_for_each_utterance(kind, triton_device, poisoned_memory):
    chunk_size = torch.tensor([3, 16, 3, LIMITS, 70, 1]) if kind != "left_context" else 7
    left_context = torch.tensor([0, 4, 0, 1, 70, LIMITS]) if kind != "chunk_size" else None
    x = torch.randn(6, 70, 3, device=triton_device)
    check(x, torch.tensor([70, 63, 70, 70, 0, 33]), chunk_size, left_context)


def test_strides_and_padding(triton_device):
    lengths = torch.tensor([64, 40])
    x = torch.randn(2, 5, 64, device=triton_device).transpose(1, 2)
    check(x, lengths, 9, 1)
    check(torch.randn(2, 64, 10, device=triton_device)[:, :, ::2], lengths, 9, 1)
    dirty = x.clone()
    dirty[1, 40:] = torch.nan
    means = [K.chunk_decay_mean(y, lengths.to(triton_device), 9, 1, 0.9, backend="triton") for y in (x, dirty)]
    assert torch.equal(*means)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    num_frames=st.integers(1, 100),
    dim=st.integers(1, 40),
    chunk_size=st.one_of(st.none(), st.integers(1, 100)),
    left_context=st.one_of(st.none(), st.integers(0, 100)),
    lengths=st.lists(st.integers(0, 100), min_size=1, max_size=2),
    dtype=st.sampled_from(DTYPES),
    decay=st.floats(0.3, 0.9999),
)
def test_fuzz(triton_device, num_frames, dim, chunk_size, left_context, lengths, dtype, decay):
    lengths = torch.tensor(lengths).clamp(max=num_frames)
    x = torch.randn(len(lengths), num_frames, dim, device=triton_device).to(dtype)
    check(x, lengths, chunk_size, left_context, decay)


def test_registration(triton_device):
    x = torch.randn(2, 40, 3, device=triton_device, requires_grad=True)
    lengths = torch.tensor([40, 9], device=triton_device)
    library.opcheck(torch.ops.sumix.chunk_decay_mean.default, (x, lengths, 8, 1, -0.1))

    def mean(x):
        return K.chunk_decay_mean(x, lengths, 8, None, 0.9, backend="triton")

    compiled = torch.compile(mean, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), mean(x))


@pytest.mark.skipif(torch.cuda.is_available(), reason="launches are recorded in the interpreter")
@pytest.mark.parametrize("capability", (80, 90))
def test_compiles_for_gpus(capability):
    lengths = torch.tensor([300, 20])
    with recorded() as launches:
        for dtype, chunk_size in ((torch.float32, None), (torch.bfloat16, 16)):
            x = torch.randn(2, 300, 128, dtype=dtype, requires_grad=True)
            mean = K.chunk_decay_mean(x, lengths, chunk_size, None, 0.99, backend="triton")
            mean.backward(torch.ones_like(mean))
    assert {"_ends_kernel", "_decayed_kernel", "_windows_kernel"} <= {launch["kernel"] for launch in launches}
    for launch, result in zip(launches, compile_all(launches, capability), strict=True):
        print(launch["kernel"], launch["constants"], result)
        assert result["error"] is None and result["spilled"] <= 16, (launch, result)
