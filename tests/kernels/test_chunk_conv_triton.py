"""chunk_conv1d in Triton, GLU fused and not, against the fp64 reference: output and every gradient."""

import pytest
import torch
from conftest import assert_close_as
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import compile_all, recorded
from test_chunk_conv import DTYPES, LIMITS, ragged_lengths
from torch import library

import sumix_kernels as K
from sumix_kernels.chunk_conv import naive


def check(x, lengths, chunk_size, k=7, *, glu=False, parameter_dtype=None, bias=True, backend="triton"):
    D, device = x.shape[2] // 2 if glu else x.shape[2], x.device
    parameters = [torch.randn(D, k, device=device)] + [torch.randn(D, device=device)] * bias
    inputs = [value.to(parameter_dtype or x.dtype) for value in parameters]
    inputs = [value.detach().requires_grad_() for value in (x, *inputs)]
    lengths = lengths.to(device)
    y = K.chunk_conv1d(*inputs, *[None] * (not bias), lengths, chunk_size, glu=glu, backend=backend)
    weights = torch.randn(y.shape, device=device).to(x.dtype)
    grads = torch.autograd.grad(y, inputs, weights)

    reference_inputs = [value.detach().double().requires_grad_() for value in inputs]
    frames = reference_inputs[0].masked_fill(padding_of(x, lengths), 0)
    reference = naive.chunk_conv1d(frames, *reference_inputs[1:], *[None] * (not bias), lengths, chunk_size, glu)
    reference_grads = torch.autograd.grad(reference, reference_inputs, weights.double())
    assert y.dtype == x.dtype
    assert_close_as(y, reference, x.dtype)
    for value, grad, reference_grad in zip(inputs, grads, reference_grads, strict=True):
        assert grad.dtype == value.dtype
        assert_close_as(grad, reference_grad, value.dtype)
    for row, row_grad, length in zip(y, grads[0], lengths):
        assert (row[length:] == 0).all() and (row_grad[length:] == 0).all()


def padding_of(x, lengths):
    return (torch.arange(x.shape[1], device=x.device) >= lengths[:, None])[:, :, None]


def frames_of(B, T, D, glu, device, dtype=torch.float32):
    return torch.randn(B, T, (1 + glu) * D, device=device).to(dtype)


@pytest.mark.parametrize("chunk_size", (1, 7, 16, 40, 100, None))
def test_equals_naive(chunk_size, triton_device, poisoned_memory):
    dtype, glu = DTYPES[(chunk_size or 2) % 3], chunk_size != 16
    lengths = ragged_lengths(40, chunk_size or 40)
    check(frames_of(len(lengths), 40, 3, glu, triton_device, dtype), lengths, chunk_size, 15, glu=glu)


@pytest.mark.gpu
@pytest.mark.parametrize("k", (1, 3, 15, 31, 63))
@pytest.mark.parametrize("chunk_size", (1, 7, 16, 32, 300, None))
@pytest.mark.parametrize("num_frames", (1, 63, 1000))
@pytest.mark.parametrize("glu", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_naive_in_full(dtype, glu, num_frames, chunk_size, k, poisoned_memory):
    lengths = ragged_lengths(num_frames, min(chunk_size or num_frames, num_frames))
    check(frames_of(len(lengths), num_frames, 67, glu, "cuda", dtype), lengths, chunk_size, k, glu=glu)


@pytest.mark.gpu
@pytest.mark.parametrize("glu", (False, True))
def test_offsets_beyond_32_bits(glu):
    """More than 2^31 elements: the last frames are those of an utterance of their own."""
    T, D = 2**20 + 37, 2048
    x = torch.zeros(1, T, (1 + glu) * D, dtype=torch.bfloat16, device="cuda")
    x[:, -100:] = torch.randn(1, 100, (1 + glu) * D, device="cuda")
    x.requires_grad_()
    weight = torch.randn(D, 31, device="cuda")
    y = K.chunk_conv1d(x, weight, None, torch.tensor([T]), 2**20, glu=glu, backend="triton")
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    tail = x.detach()[:, -100:].double().requires_grad_()
    sizes = torch.tensor([100 - 37])  # T ends 37 frames into its second chunk
    expected = naive.chunk_conv1d(tail, weight, None, torch.tensor([100]), sizes, glu)
    (expected_grad,) = torch.autograd.grad(expected.sum(), tail)
    assert_close_as(y[:, -80:], expected[:, -80:], torch.bfloat16)
    assert_close_as(grad[:, -80:], expected_grad[:, -80:], torch.bfloat16)


@pytest.mark.parametrize("k", (1, 3, 31, 63))
@pytest.mark.parametrize("num_frames", (1, 24))
def test_taps(num_frames, k, triton_device, poisoned_memory):
    """Kernels longer than the utterance and than the chunk included."""
    glu = k != 31
    lengths = ragged_lengths(num_frames, 7)[-3:]
    check(frames_of(len(lengths), num_frames, 2, glu, triton_device), lengths, 7, k, glu=glu, bias=k != 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chunk_size_for_each_utterance(dtype, triton_device, poisoned_memory):
    chunk_size = torch.tensor([3, 16, 1, LIMITS, 40])
    x = frames_of(5, 40, 3, True, triton_device, dtype)
    check(x, torch.tensor([40, 33, 40, 40, 0]), chunk_size, glu=True)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision_frames_with_fp32_weights(dtype, triton_device):
    x = frames_of(2, 40, 3, True, triton_device, dtype)
    check(x, torch.tensor([40, 33]), 16, glu=True, parameter_dtype=torch.float32)


def test_many_channels(triton_device, poisoned_memory):
    """Several programs side by side, the last with channels that are not there."""
    check(frames_of(2, 20, 131, True, triton_device), torch.tensor([20, 9]), 6, 3, glu=True)
    check(frames_of(1, 20, 65, True, triton_device), torch.tensor([20]), 6, 31, glu=True)


def test_segments(triton_device, monkeypatch, poisoned_memory):
    """Segments that begin and end anywhere in a chunk, shorter than the taps too."""
    from sumix_kernels.chunk_conv import triton

    for segment in (5, 16, 23):
        monkeypatch.setattr(triton, "MIN_SEGMENT", segment)
        check(frames_of(2, 30, 2, True, triton_device), torch.tensor([30, 19]), torch.tensor([9, 30]), 15, glu=True)


@pytest.mark.parametrize("glu", (False, True))
def test_strides(glu, triton_device):
    width, lengths = 10 if glu else 5, torch.tensor([24, 15])
    channels_first = torch.randn(2, width, 24, device=triton_device).transpose(1, 2)
    some_channels = torch.randn(2, 24, width + 3, device=triton_device)[:, :, 3:]
    every_other_frame = torch.randn(2, 48, width, device=triton_device)[:, ::2]
    for x in (channels_first, some_channels, every_other_frame, channels_first[:1].expand(2, -1, -1)):
        check(x, lengths, 9, 5, glu=glu)


def test_an_expanded_gradient(triton_device):
    x, weight = frames_of(2, 30, 3, True, triton_device), torch.randn(3, 5, device=triton_device)
    x.requires_grad_()
    lengths = torch.tensor([30, 11], device=triton_device)
    y = K.chunk_conv1d(x, weight, None, lengths, 8, glu=True, backend="triton")
    (expanded,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert torch.equal(expanded, torch.autograd.grad(y, x, torch.ones_like(y))[0])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    num_frames=st.integers(1, 40),
    dim=st.integers(1, 40),
    half=st.integers(0, 12),
    chunk_size=st.one_of(st.none(), st.integers(1, 40)),
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    glu=st.booleans(),
)
def test_fuzz(triton_device, num_frames, dim, half, chunk_size, lengths, dtype, glu):
    torch.manual_seed(num_frames)
    lengths = torch.tensor(lengths).clamp(max=num_frames)
    x = frames_of(len(lengths), num_frames, dim, glu, triton_device, dtype)
    check(x, lengths, chunk_size, 2 * half + 1, glu=glu)


@pytest.mark.parametrize("backend", ("triton", "torch"))
@pytest.mark.parametrize("glu", (False, True))
def test_padding_is_never_read(glu, backend, triton_device):
    x, lengths = frames_of(2, 36, 4, glu, triton_device), torch.tensor([19, 36], device=triton_device)
    weight = torch.randn(4, 15, device=triton_device, requires_grad=True)
    found = []
    for value in (0.0, torch.nan, torch.inf):
        frames = x.clone()
        frames[0, 19:] = value
        frames.requires_grad_()
        y = K.chunk_conv1d(frames, weight, None, lengths, torch.tensor([16, 3]), glu=glu, backend=backend)
        weights = torch.where(padding_of(x, lengths), value, 1.0).expand(y.shape)
        found.append((y, *torch.autograd.grad(y, (frames, weight), weights)))
    for clean, *dirty in zip(*found):
        assert all(torch.equal(clean, value) for value in dirty)


def test_no_frame_leaks_out_of_its_chunk(triton_device):
    """What is not finite reaches no earlier chunk, backwards no later one, and goes no further than the taps."""
    x, weight = frames_of(1, 48, 2, True, triton_device), torch.randn(2, 15, device=triton_device)
    lengths = torch.tensor([48], device=triton_device)
    x[0, 28] = torch.nan
    x.requires_grad_()
    y = K.chunk_conv1d(x, weight, None, lengths, 8, glu=True, backend="triton")
    assert [t for t in range(48) if not y[0, t].isfinite().all()] == list(range(24, 28 + 8))
    weights = torch.ones_like(y)
    weights[0, 20] = torch.nan
    (grad,) = torch.autograd.grad(y, x, weights)
    assert [t for t in range(48) if not grad[0, t].isfinite().all()] == [*range(20 - 7, 24), 28]


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")
def test_extreme_gates(triton_device):
    x = frames_of(1, 20, 2, True, triton_device)
    x[0, :, 2:] = torch.tensor([-1e4, -90.0, 90.0, 1e4], device=triton_device).repeat(5)[:, None]
    check(x, torch.tensor([20]), 8, 5, glu=True)


def test_deterministic(triton_device):
    x = frames_of(2, 30, 7, True, triton_device, torch.bfloat16).requires_grad_()
    weight, bias = (torch.randn(*shape, device=triton_device, requires_grad=True) for shape in ((7, 15), (7,)))

    def run():
        lengths = torch.tensor([30, 17], device=triton_device)
        y = K.chunk_conv1d(x, weight, bias, lengths, 16, glu=True, backend="triton")
        return y, *torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y))

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def test_memory_for_sums_is_bounded():
    from sumix_kernels.chunk_conv import triton

    for B, T, D in ((1, 10**6, 512), (32, 1500, 512), (256, 50_000, 64), (1, 10, 3)):
        BD = triton._channels(31, 3)
        segments = B * -(-T // triton._segment(B, T, D, BD))
        assert segments <= max(B, 2 * triton.PROGRAMS), (B, T, D)


def test_only_the_input_is_kept(triton_device):
    x, weight = frames_of(2, 30, 3, True, triton_device).requires_grad_(), torch.randn(3, 5, device=triton_device)
    lengths, kept = torch.tensor([30, 11], device=triton_device), []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        K.chunk_conv1d(x, weight, None, lengths, 8, glu=True, backend="triton")
    assert sorted(value.data_ptr() for value in kept if value is not None) == sorted(
        value.data_ptr() for value in (x, weight, lengths)
    )


@pytest.mark.parametrize("glu", (False, True))
def test_registration(glu, triton_device):
    """The library's own checks: schema, fake kernel, autograd; chunk sizes given as an int and as a tensor."""
    x = frames_of(2, 9, 3, glu, triton_device).requires_grad_()
    weight, bias = (torch.randn(*shape, device=triton_device, requires_grad=True) for shape in ((3, 5), (3,)))
    lengths, each = (torch.tensor(values, device=triton_device) for values in ([9, 5], [4, 7]))
    library.opcheck(torch.ops.sumix.chunk_conv1d.default, (x, weight, bias, lengths, 8, None, glu))
    library.opcheck(torch.ops.sumix.chunk_conv1d.default, (x, weight, None, lengths, 0, each, glu))


@pytest.mark.parametrize("chunk_size", (8, torch.tensor([8, 3])))
def test_compiled_as_a_single_op(chunk_size, triton_device):
    def convolve(x, weight, bias, lengths):
        return 2 * K.chunk_conv1d(x + 1, weight, bias, lengths, chunk_size, glu=True, backend="triton")

    inputs = [torch.randn(*shape, device=triton_device, requires_grad=True) for shape in ((2, 16, 6), (3, 5), (3,))]
    lengths = torch.tensor([13, 9], device=triton_device)
    compiled = torch.compile(convolve, fullgraph=True, backend="aot_eager", dynamic=True)
    for num_frames in (16, 13):
        x = inputs[0][:, :num_frames]
        outputs = [f(x, *inputs[1:], lengths) for f in (compiled, convolve)]
        assert torch.equal(*outputs)
        for grads in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in outputs), strict=True):
            assert torch.equal(*grads)


def test_too_many_taps_are_named(triton_device):
    x, weight, lengths = frames_of(1, 9, 2, False, triton_device), torch.randn(2, 65), torch.tensor([9])
    with pytest.raises(ValueError, match=r"weight must have at most 63 taps for backend 'triton', got \(2, 65\)"):
        K.chunk_conv1d(x, weight.to(triton_device), None, lengths, 4, backend="triton")
    y = K.chunk_conv1d(x, weight.to(triton_device), None, lengths, 4)
    assert_close_as(y, naive.chunk_conv1d(x, weight.to(triton_device), None, lengths, 4), torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="launches are recorded in the interpreter")
@pytest.mark.parametrize("capability", (80, 90))
def test_compiles_for_gpus(capability):
    """In registers: what is spilled is a few bytes, up to the longest kernel."""
    with recorded() as launches:
        for dtype, D, k, glu, chunk_size in (
            (torch.bfloat16, 512, 31, True, 8),
            (torch.float16, 33, 15, False, torch.tensor([4])),
            (torch.float32, 32, 63, True, 8),
        ):
            x = frames_of(1, 9, D, glu, "cpu", dtype).requires_grad_()
            weight, bias = torch.randn(D, k, requires_grad=True), torch.randn(D, requires_grad=True)
            y = K.chunk_conv1d(x, weight, bias, torch.tensor([9]), chunk_size, glu=glu, backend="triton")
            y.backward(torch.ones_like(y))
    assert len(launches) == 6
    for launch, result in zip(launches, compile_all(launches, capability), strict=True):
        assert result["error"] is None and result["spilled"] <= 32, (launch, result)
