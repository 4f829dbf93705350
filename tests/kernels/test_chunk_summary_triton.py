"""chunk_summary and broadcast_chunks in Triton against the fp64 reference: output and gradient."""

import pytest
import torch
from conftest import assert_close_as
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import compile_all, recorded
from test_chunk_summary import DTYPES, LIMITS, ragged_lengths
from torch import library
from torch.nn import functional as F

import sumix_kernels as K
from sumix_kernels.chunk_summary import naive


def check(x, lengths, chunk_size, left_context, gelu=False):
    x = x.detach().requires_grad_()
    lengths = lengths.to(x.device)
    mean = K.chunk_summary(x, lengths, chunk_size, left_context, gelu=gelu, backend="triton")
    weights = torch.randn_like(mean)
    (grad,) = torch.autograd.grad(mean, x, weights)

    reference_x = x.detach().double().requires_grad_()
    frames = F.gelu(reference_x) if gelu else reference_x
    frames = frames.masked_fill((torch.arange(x.shape[1], device=x.device) >= lengths[:, None])[:, :, None], 0)
    reference = naive.chunk_summary(frames, lengths, chunk_size, left_context)
    (reference_grad,) = torch.autograd.grad(reference, reference_x, weights.double())
    assert (mean.dtype, grad.dtype) == (x.dtype, x.dtype)
    assert_close_as(mean, reference, x.dtype)
    assert_close_as(grad, reference_grad, x.dtype)
    for row, length in zip(grad, lengths):
        assert (row[length:] == 0).all()


@pytest.mark.parametrize("left_context", (0, 1, 4, None))
@pytest.mark.parametrize("chunk_size", (1, 7, 16, 32, 100, None))
def test_equals_naive(chunk_size, left_context, triton_device, poisoned_memory):
    dtype = DTYPES[((chunk_size or 3) + (left_context or 2)) % 3]
    lengths = ragged_lengths(130, chunk_size or 130)
    check(torch.randn(len(lengths), 130, 3, device=triton_device).to(dtype), lengths, chunk_size, left_context)


@pytest.mark.gpu
@pytest.mark.parametrize("gelu", (False, True))
@pytest.mark.parametrize("left_context", (0, 1, 4, None))
@pytest.mark.parametrize("chunk_size", (1, 7, 16, 32, 300, None))
@pytest.mark.parametrize("num_frames", (1, 63, 1000))
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_naive_in_full(dtype, num_frames, chunk_size, left_context, gelu, poisoned_memory):
    lengths = ragged_lengths(num_frames, min(chunk_size or num_frames, num_frames))
    check(torch.randn(len(lengths), num_frames, 67, device="cuda").to(dtype), lengths, chunk_size, left_context, gelu)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_size", (7, None))
def test_gelu(chunk_size, dtype, triton_device, poisoned_memory):
    x = 2 * torch.randn(3, 90, 5, device=triton_device).to(dtype)
    check(x, torch.tensor([90, 64, 1]), chunk_size, 2, gelu=True)


@pytest.mark.parametrize("kind", ("both", "chunk_size", "left_context"))
def test_a_context_for_each_utterance(kind, triton_device, poisoned_memory):
    chunk_size = torch.tensor([3, 16, 16, LIMITS, 70, 1]) if kind != "left_context" else 7
    left_context = torch.tensor([0, 4, LIMITS, 1, 70, 13]) if kind != "chunk_size" else 4
    x = torch.randn(6, 70, 3, device=triton_device)
    check(x, torch.tensor([70, 63, 70, 70, 0, 33]), chunk_size, left_context, gelu=kind == "both")


def test_long_chunks_are_cut(triton_device, poisoned_memory):
    """Chunks so long that parts of parts are summed."""
    x = torch.randn(2, 2500, 2, device=triton_device)
    check(x, torch.tensor([2500, 1203]), None, None)
    check(x, torch.tensor([2500, 1203]), 1201, 1)


def test_many_chunks_with_long_windows(triton_device):
    x = torch.randn(1, 700, 2, device=triton_device)
    for left_context in (300, None):
        check(x, torch.tensor([699]), 2, left_context)


def test_strides(triton_device):
    lengths = torch.tensor([64, 40, 63])
    channels_first = torch.randn(3, 5, 64, device=triton_device).transpose(1, 2)
    half_of_channels = torch.randn(3, 64, 10, device=triton_device)[:, :, 5:]
    for x in (channels_first, half_of_channels, torch.randn(1, 1, 5, device=triton_device).expand(3, 64, 5)):
        for gelu in (False, True):
            check(x, lengths, 16, 1, gelu=gelu)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    num_frames=st.integers(1, 150),
    dim=st.integers(1, 40),
    chunk_size=st.one_of(st.none(), st.integers(1, 150)),
    left_context=st.one_of(st.none(), st.integers(0, 150)),
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    gelu=st.booleans(),
)
def test_fuzz(triton_device, num_frames, dim, chunk_size, left_context, lengths, dtype, gelu):
    lengths = torch.tensor(lengths).clamp(max=num_frames)
    x = torch.randn(len(lengths), num_frames, dim, generator=torch.Generator().manual_seed(num_frames))
    check(x.to(triton_device, dtype), lengths, chunk_size, left_context, gelu)


@pytest.mark.parametrize("chunk_size", (16, None, torch.tensor([16, 3])))
def test_padding_is_never_read(chunk_size, triton_device):
    x, lengths = torch.randn(2, 70, 4, device=triton_device), torch.tensor([37, 70], device=triton_device)
    dirty = x.clone()
    dirty[0, 37:] = torch.nan
    for gelu in (False, True):
        clean, found = x.clone().requires_grad_(), dirty.clone().requires_grad_()
        means = [
            K.chunk_summary(frames, lengths, chunk_size, 2, gelu=gelu, backend="triton") for frames in (clean, found)
        ]
        assert torch.equal(*means)
        grads = [torch.autograd.grad(mean.sum(), frames)[0] for mean, frames in zip(means, (clean, found))]
        assert torch.equal(*grads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_size", (1, 7, 100, None, torch.tensor([7, 64, 9])))
def test_broadcast_equals_naive(chunk_size, dtype, triton_device, poisoned_memory):
    smallest = 64 if chunk_size is None else min(64, int(torch.as_tensor(chunk_size).min()))
    summary = torch.randn(3, -(-64 // smallest), 5, device=triton_device).to(dtype).requires_grad_()
    frames = K.broadcast_chunks(summary, chunk_size, 64, backend="triton")
    weights = torch.randn_like(frames)
    (grad,) = torch.autograd.grad(frames, summary, weights)
    reference_summary = summary.detach().double().requires_grad_()
    reference = naive.broadcast_chunks(reference_summary, chunk_size, 64)
    (reference_grad,) = torch.autograd.grad(reference, reference_summary, weights.double())
    assert_close_as(frames, reference, dtype)
    assert_close_as(grad, reference_grad, dtype)


def test_deterministic(triton_device):
    x = torch.randn(2, 500, 33, device=triton_device, dtype=torch.bfloat16).requires_grad_()

    def run():
        mean = K.chunk_summary(x, torch.tensor([500, 77], device=triton_device), 16, None, gelu=True, backend="triton")
        return mean, torch.autograd.grad(mean, x, torch.ones_like(mean))[0]

    for first, second in zip(run(), run()):
        assert torch.equal(first, second)


@pytest.mark.parametrize("gelu", (False, True))
def test_registration(gelu, triton_device):
    """The library's own checks: schema, fake kernel, autograd; contexts given as ints and as tensors."""
    x = torch.randn(2, 40, 3, device=triton_device, requires_grad=True)
    lengths, each = (torch.tensor(values, device=triton_device) for values in ([40, 9], [4, 7]))
    library.opcheck(torch.ops.sumix.chunk_summary.default, (x, lengths, 8, None, 1, None, 5, gelu))
    library.opcheck(torch.ops.sumix.chunk_summary.default, (x, lengths, 0, each, 0, each, 10, gelu))
    summary = torch.randn(2, 5, 3, device=triton_device, requires_grad=True)
    library.opcheck(torch.ops.sumix.broadcast_chunks.default, (summary, 8, None, 40))


def test_compiled_as_single_ops(triton_device):
    def mix(x, lengths):
        mean = K.chunk_summary(x, lengths, 8, 2, gelu=True, backend="triton")
        return K.broadcast_chunks(2 * mean, 8, x.shape[1], backend="triton")

    x, lengths = torch.randn(2, 40, 3, device=triton_device, requires_grad=True), torch.tensor([33, 9])
    lengths = lengths.to(triton_device)
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager", dynamic=True)
    for num_frames in (40, 33):
        frames = x[:, :num_frames]
        assert torch.equal(compiled(frames, lengths), mix(frames, lengths))
        grads = [torch.autograd.grad(f(frames, lengths).square().sum(), x)[0] for f in (compiled, mix)]
        assert torch.equal(*grads)


@pytest.mark.skipif(torch.cuda.is_available(), reason="launches are recorded in the interpreter")
@pytest.mark.parametrize("capability", (80, 90))
def test_compiles_for_gpus(capability):
    lengths, each = torch.tensor([300, 20]), torch.tensor([16, 3])
    with recorded() as launches:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(2, 300, 128, dtype=dtype, requires_grad=True)
            for size, left, gelu in ((16, 4, False), (None, None, True), (each, each, True)):
                mean = K.chunk_summary(x, lengths, size, left, gelu=gelu, backend="triton")
                frames = K.broadcast_chunks(mean, size, 300, backend="triton")
                frames.backward(torch.ones_like(frames))
    assert {"_row_sums_kernel", "_spread_kernel", "_windows_kernel"} <= {launch["kernel"] for launch in launches}
    for launch, result in zip(launches, compile_all(launches, capability), strict=True):
        assert result["error"] is None and result["spilled"] <= 16, (launch, result)


def test_lengths_may_be_a_column_of_something(triton_device):
    x, columns = torch.randn(3, 30, 4, device=triton_device), torch.tensor([[7, 30], [0, 11], [5, 2]]).to(triton_device)
    mean = K.chunk_summary(x, columns[:, 1], 4, 1, backend="triton")
    assert torch.equal(mean, K.chunk_summary(x, columns[:, 1].clone(), 4, 1, backend="triton"))
    merged = K.merge_chunks(x, mean, columns[:, 1], 4, backend="triton")
    assert torch.equal(merged, K.merge_chunks(x, mean, columns[:, 1].clone(), 4, backend="triton"))
