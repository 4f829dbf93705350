"""merge_chunks in every backend against the fp64 reference: output and gradients; its dropout."""

import pytest
import torch
from conftest import assert_close_as
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import compile_all, recorded
from torch import library
from torch.nn import functional as F

import sumix_kernels as K
from sumix_kernels.chunk_merge.naive import philox

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("torch", "triton")


def num_rows(num_frames: int, chunk_size) -> int:
    smallest = num_frames if chunk_size is None else min(num_frames, int(torch.as_tensor(chunk_size).min()))
    return -(-num_frames // smallest)


def check(backend, local, summary, lengths, chunk_size, dropout=0.0):
    device, num_frames = summary.device, local.shape[1]
    inputs = [x.detach().requires_grad_() for x in (local, summary)]
    torch.manual_seed(5)
    merged = K.merge_chunks(*inputs, lengths.to(device), chunk_size, dropout=dropout, backend=backend)
    weights = torch.randn_like(merged)
    grads = torch.autograd.grad(merged, inputs, weights)

    wide = [x.detach().double().requires_grad_() for x in inputs]
    torch.manual_seed(5)
    reference = K.merge_chunks(*wide, lengths.to(device), chunk_size, dropout=dropout, backend="naive")
    expected = torch.autograd.grad(reference, wide, weights.double())
    assert merged.dtype == summary.dtype
    assert_close_as(merged, reference, summary.dtype)
    for x, grad, wanted in zip(inputs, grads, expected):
        assert grad.dtype == x.dtype
        assert_close_as(grad, wanted, x.dtype)
    for b, length in enumerate(lengths):
        assert (merged[b, length:] == 0).all() and (grads[0][b, length:] == 0).all()
    return num_frames


def example(num_frames, chunk_size, dim, device, dtype, batch_size=3):
    local = torch.randn(batch_size, num_frames, dim, device=device)
    summary = torch.randn(batch_size, num_rows(num_frames, chunk_size), dim, device=device)
    return local.to(dtype), summary.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_size", (1, 7, 16, 100, None, torch.tensor([7, 70, 9])), ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_naive(backend, chunk_size, dtype, triton_device, poisoned_memory):
    local, summary = example(70, chunk_size, 5, triton_device, dtype)
    check(backend, local, summary, torch.tensor([70, 63, 0]), chunk_size)


@pytest.mark.gpu
@pytest.mark.parametrize("dropout", (0.0, 0.1))
@pytest.mark.parametrize("num_frames", (1, 63, 1000))
@pytest.mark.parametrize("chunk_size", (1, 7, 16, 32, 300, None))
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_naive_in_full(dtype, chunk_size, num_frames, dropout, poisoned_memory):
    local, summary = example(num_frames, chunk_size, 67, "cuda", dtype)
    check("triton", local, summary, torch.tensor([num_frames, num_frames // 2, 0]), chunk_size, dropout)


@pytest.mark.parametrize("dim", (3, 32, 150))
def test_dropout_equals_naive(dim, triton_device, poisoned_memory):
    """The same elements as the reference's generator drops, in both passes."""
    local, summary = example(40, 8, dim, triton_device, torch.float32)
    check("triton", local, summary, torch.tensor([40, 33, 1]), 8, dropout=0.3)


def test_long_chunks_are_cut(triton_device, poisoned_memory):
    local, summary = example(1300, None, 2, triton_device, torch.float32, batch_size=2)
    check("triton", local, summary, torch.tensor([1300, 700]), None, dropout=0.1)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    num_frames=st.integers(1, 90),
    dim=st.integers(1, 40),
    chunk_size=st.one_of(st.none(), st.integers(1, 90)),
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    dropout=st.sampled_from([0.0, 0.5]),
)
def test_fuzz(triton_device, num_frames, dim, chunk_size, lengths, dtype, dropout):
    lengths = torch.tensor(lengths).clamp(max=num_frames)
    local, summary = example(num_frames, chunk_size, dim, triton_device, dtype, len(lengths))
    check("triton", local, summary, lengths, chunk_size, dropout)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_padding(backend, triton_device):
    local, summary = example(40, 8, 10, triton_device, torch.float32)
    lengths = torch.tensor([40, 21, 8])
    check(backend, local[:, :, 5:], summary[:, :, ::2], lengths, 8)
    dirty = local.clone()
    for b, length in enumerate(lengths):
        dirty[b, length:] = torch.nan
    merged = [K.merge_chunks(x, summary, lengths.to(triton_device), 8, backend=backend) for x in (local, dirty)]
    assert torch.equal(*merged)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_local_part(backend, triton_device, poisoned_memory):
    _, summary = example(40, 8, 5, triton_device, torch.float32)
    summary.requires_grad_()
    lengths = torch.tensor([40, 21, 8], device=triton_device)
    merged = K.merge_chunks(None, summary, lengths, 8, num_frames=40, backend=backend)
    expected = F.gelu(K.broadcast_chunks(summary, 8, 40, backend="torch"))
    expected = expected * (torch.arange(40, device=triton_device) < lengths[:, None])[:, :, None]
    assert_close_as(merged, expected.double(), torch.float32)
    (grad,), (wanted,) = (torch.autograd.grad(y.square().sum(), summary) for y in (merged, expected))
    assert_close_as(grad, wanted.double(), torch.float32)


def test_generator():
    """Each bit is one in half of the elements; elements and seeds differ; the sizes of the tensor do not matter."""
    bits = philox(12345678901234567, 2, 50, 64)
    ones = (bits[..., None] >> torch.arange(32) & 1).double().mean((0, 1, 2))
    assert ((ones - 0.5).abs() < 0.02).all()
    assert len(bits.unique()) == bits.numel()
    assert torch.equal(bits[:1, :7, :30], philox(12345678901234567, 1, 7, 30))
    assert (bits != philox(12345678901234568, 2, 50, 64)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_keeps_the_mean_and_its_seed(backend, triton_device):
    local, summary = example(64, 8, 64, triton_device, torch.float32)
    lengths = torch.tensor([64, 64, 64], device=triton_device)

    def run(seed):
        torch.manual_seed(seed)
        return K.merge_chunks(local, summary, lengths, 8, dropout=0.25, backend=backend)

    first = run(1)
    kept = first != 0
    assert abs(kept.double().mean().item() - 0.75) < 0.02
    assert_close_as(first[kept], K.merge_chunks(local, summary, lengths, 8)[kept].double() / 0.75, torch.float32)
    assert torch.equal(first, run(1)) and not torch.equal(first, run(2))


def test_refuses():
    local, summary, lengths = torch.randn(2, 40, 3), torch.randn(2, 5, 3), torch.tensor([40, 3])
    with pytest.raises(ValueError, match="must have N = 10 rows for 40 frames in chunks of 4, got 5"):
        K.merge_chunks(local, summary, lengths, 4)
    with pytest.raises(ValueError, match="of one dtype, got torch.float16"):
        K.merge_chunks(local.half(), summary, lengths, 8)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        K.merge_chunks(local, summary, lengths, 8, dropout=1.0)
    with pytest.raises(ValueError, match="num_frames must be an integer >= 0 where local is None, got None"):
        K.merge_chunks(None, summary, lengths, 8)


def test_registration(triton_device):
    local, summary = example(40, 8, 3, triton_device, torch.float32)
    lengths, seed = torch.tensor([40, 9, 1], device=triton_device), torch.tensor([7], device=triton_device)
    local.requires_grad_(), summary.requires_grad_()
    op = torch.ops.sumix.merge_chunks.default
    library.opcheck(op, (local, summary, lengths, 8, None, 40, 0.5, seed))
    library.opcheck(op, (None, summary, lengths, 8, None, 40, 0.0, None))

    def merge(local, summary):
        return K.merge_chunks(local, summary, lengths, 8, dropout=0.1, backend="triton")

    compiled = torch.compile(merge, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    expected = merge(local, summary)
    torch.manual_seed(0)
    assert torch.equal(compiled(local, summary), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="launches are recorded in the interpreter")
@pytest.mark.parametrize("capability", (80, 90))
def test_compiles_for_gpus(capability):
    lengths = torch.tensor([300, 20, 0])
    with recorded() as launches:
        for dtype, chunk_size, dropout in ((torch.float32, None, 0.0), (torch.bfloat16, 16, 0.1)):
            local, summary = example(300, chunk_size, 128, "cpu", dtype)
            merged = K.merge_chunks(
                local.requires_grad_(), summary.requires_grad_(), lengths, chunk_size, dropout=dropout, backend="triton"
            )
            merged.backward(torch.ones_like(merged))
    assert {"_merge_kernel", "_merge_backward_kernel"} <= {launch["kernel"] for launch in launches}
    for launch, result in zip(launches, compile_all(launches, capability), strict=True):
        print(launch["kernel"], launch["constants"], result)
        assert result["error"] is None and result["spilled"] == 0, (launch, result)
