"""chunk_conv1d against the fp64 reference and torch's own convolution; no leak; masked == steps."""

import pytest
import torch
from conftest import assert_close_as

import sumix_kernels as K
from sumix_kernels.chunk_conv import naive

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LIMITS = 2**40  # in tensors: more than any utterance


def ragged_lengths(num_frames: int, chunk_size: int) -> torch.Tensor:
    wanted = {0, 1, chunk_size - 1, chunk_size, chunk_size + 1, 63, num_frames}
    return torch.tensor([length for length in sorted(wanted) if length <= num_frames])


def check_against_naive(x, lengths, chunk_size, k=15, parameter_dtype=None, glu=False):
    """Output and the gradients of input, weight and bias."""
    D, parameter_dtype = x.shape[2] // 2 if glu else x.shape[2], parameter_dtype or x.dtype
    inputs = [x.detach(), torch.randn(D, k).to(parameter_dtype), torch.randn(D).to(parameter_dtype)]
    inputs = [value.requires_grad_() for value in inputs]
    y = K.chunk_conv1d(*inputs, lengths, chunk_size, glu=glu, backend="torch")
    weights = torch.randn(y.shape).to(x.dtype)
    grads = torch.autograd.grad(y, inputs, weights)

    reference_inputs = [value.detach().double().requires_grad_() for value in inputs]
    reference = naive.chunk_conv1d(*reference_inputs, lengths, chunk_size, glu)
    reference_grads = torch.autograd.grad(reference, reference_inputs, weights.double())
    assert y.dtype == x.dtype
    assert_close_as(y, reference, x.dtype)
    for value, grad, reference_grad in zip(inputs, grads, reference_grads):
        assert grad.dtype == value.dtype
        assert_close_as(grad, reference_grad, value.dtype)
    for row, row_grad, length in zip(y, grads[0], lengths):
        assert (row[length:] == 0).all() and (row_grad[length:] == 0).all()


@pytest.mark.parametrize("chunk_size", (1, 7, 16, 32, 130, 300, None))
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_naive(dtype, chunk_size, poisoned_memory):
    lengths = ragged_lengths(130, chunk_size or 130)
    check_against_naive(torch.randn(len(lengths), 130, 3).to(dtype), lengths, chunk_size)


@pytest.mark.parametrize("chunk_size", (7, None, torch.tensor([7, 64, 1])))
@pytest.mark.parametrize("dtype", DTYPES)
def test_glu(dtype, chunk_size, poisoned_memory):
    check_against_naive(torch.randn(3, 70, 6).to(dtype), torch.tensor([70, 41, 0]), chunk_size, glu=True)


def test_glu_is_torchs():
    x, weight, lengths = torch.randn(2, 20, 6), torch.randn(3, 5), torch.tensor([20, 11])
    expected = K.chunk_conv1d(torch.nn.functional.glu(x), weight, None, lengths, 8)
    assert torch.equal(K.chunk_conv1d(x, weight, None, lengths, 8, glu=True), expected)


@pytest.mark.parametrize("k", (1, 3, 7, 31))
@pytest.mark.parametrize("num_frames", (1, 4, 7, 1000))
def test_equals_naive_at_odd_sizes(num_frames, k, poisoned_memory):
    """Kernels longer than the utterance and than the chunk included."""
    lengths = ragged_lengths(num_frames, 7)
    check_against_naive(torch.randn(len(lengths), num_frames, 2), lengths, 7, k)
    check_against_naive(torch.randn(len(lengths), num_frames, 2), lengths, torch.full((len(lengths),), 7), k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chunk_size_for_each_utterance(dtype, poisoned_memory):
    chunk_size = torch.tensor([3, 16, 1, LIMITS, 70])
    check_against_naive(torch.randn(5, 70, 3).to(dtype), torch.tensor([70, 63, 70, 70, 0]), chunk_size)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision_frames_with_fp32_weights(dtype):
    check_against_naive(torch.randn(2, 70, 3).to(dtype), torch.tensor([70, 40]), 16, parameter_dtype=torch.float32)


def test_strides_do_not_matter():
    lengths = torch.tensor([64, 40])
    for x in (torch.randn(2, 5, 64).transpose(1, 2), torch.randn(2, 64, 10)[:, :, 5:], torch.randn(2, 128, 5)[:, ::2]):
        for chunk_size in (None, 9, torch.tensor([9, 4])):
            check_against_naive(x, lengths, chunk_size)


def test_one_chunk_is_an_ordinary_convolution():
    x, weight, bias = torch.randn(2, 50, 6), torch.randn(6, 9), torch.randn(6)
    expected = torch.nn.functional.conv1d(
        x.mT.double(), weight.double()[:, None], bias.double(), padding=4, groups=6
    ).mT
    assert_close_as(K.chunk_conv1d(x, weight, bias, torch.tensor([50, 50]), None), expected, torch.float32)
    without = K.chunk_conv1d(x, weight, None, torch.tensor([50, 50]), None)
    assert_close_as(without, expected - bias, torch.float32)


@pytest.mark.parametrize("chunk_size", (5, 100, torch.tensor([5, 8])))
def test_a_frame_moves_only_the_frames_that_see_it(chunk_size):
    x, weight, lengths = torch.randn(2, 43, 3), torch.randn(3, 7), torch.tensor([43, 41])
    before = K.chunk_conv1d(x, weight, None, lengths, chunk_size)
    for frame in (0, 4, 5, 17, 40):
        changed = x.clone()
        changed[:, frame] += 1e6
        moved = (K.chunk_conv1d(changed, weight, None, lengths, chunk_size) != before).any(2)
        for b, length in enumerate(lengths.tolist()):
            size = int(chunk_size[b]) if isinstance(chunk_size, torch.Tensor) else chunk_size
            seen = [t < length and abs(t - frame) <= 3 and frame // size <= t // size for t in range(43)]
            assert moved[b].tolist() == seen, (frame, b)


@pytest.mark.parametrize("chunk_size", (1, 16, None, torch.tensor([16, 3])))
def test_padding_is_never_read(chunk_size):
    x, weight, lengths = torch.randn(2, 70, 4), torch.randn(4, 7), torch.tensor([37, 70])
    dirty = x.clone()
    dirty[0, 37:] = torch.nan
    inputs = dirty.requires_grad_(), weight.requires_grad_()
    y = K.chunk_conv1d(*inputs, None, lengths, chunk_size)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(y.sum(), inputs))
    size = int(chunk_size[0]) if isinstance(chunk_size, torch.Tensor) else chunk_size
    alone = K.chunk_conv1d(x[:1, :37], weight, None, lengths[:1], size)
    assert_close_as(y[:1, :37], alone.double(), torch.float32)


@pytest.mark.parametrize("chunk_size", (3, 10, torch.tensor([3, 10])))
@pytest.mark.parametrize("glu", (False, True))
def test_gradcheck(glu, chunk_size):
    shapes = ((2, 10, 4 if glu else 2), (2, 5), (2,))
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    lengths = torch.tensor([10, 7])
    assert torch.autograd.gradcheck(lambda x, w, b: K.chunk_conv1d(x, w, b, lengths, chunk_size, glu=glu), inputs)


def test_gradients_are_deterministic():
    x, weight, g = torch.randn(4, 200, 8), torch.randn(8, 15, requires_grad=True), torch.randn(4, 200, 8)
    lengths = torch.tensor([200, 150, 63, 1])
    grads = [torch.autograd.grad(K.chunk_conv1d(x, weight, None, lengths, 16), weight, g)[0] for _ in range(3)]
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def test_same_under_autocast():
    x, weight, bias, lengths = torch.randn(2, 40, 3), torch.randn(3, 5), torch.randn(3), torch.tensor([40, 11])
    history = torch.randn(2, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = K.chunk_conv1d(x, weight, bias, lengths, 8)
        step = K.chunk_conv1d_step(x, lengths, history, weight, bias)
    assert torch.equal(y, K.chunk_conv1d(x, weight, bias, lengths, 8))
    assert torch.equal(step[0], K.chunk_conv1d_step(x, lengths, history, weight, bias)[0])


@pytest.mark.parametrize("k", (1, 7, 15))
@pytest.mark.parametrize("chunk_size", (1, 4, 8, 16, 32))
@pytest.mark.parametrize("glu", (False, True))
def test_steps_equal_the_whole(glu, chunk_size, k):
    weight, bias = torch.randn(3, k), torch.randn(3)
    for num_frames in sorted({1, chunk_size - 1, chunk_size, chunk_size + 1, 75} - {0}):
        x = torch.randn(2, num_frames, 6 if glu else 3)
        y = K.chunk_conv1d(x, weight, bias, torch.full((2,), num_frames), chunk_size, glu=glu)
        history, steps = torch.zeros(2, k // 2, 3), []
        for chunk in x.split(chunk_size, 1):
            lengths = torch.full((2,), chunk.shape[1])
            step, history = K.chunk_conv1d_step(chunk, lengths, history, weight, bias, glu=glu)
            assert history.shape == (2, k // 2, 3)
            steps.append(step)
        assert_close_as(torch.cat(steps, 1), y.double(), torch.float32)


def test_streams_of_different_ages_share_a_step():
    chunk_size, lengths, begins = 8, (50, 21, 33), (0, 2, 3)
    weight, bias = torch.randn(3, 7), torch.randn(3)
    utterances = [torch.randn(1, length, 3) for length in lengths]
    outputs = [K.chunk_conv1d(x, weight, bias, torch.tensor([x.shape[1]]), chunk_size)[0] for x in utterances]
    histories = [torch.zeros(1, 3, 3) for _ in utterances]
    for tick in range(12):
        ready = [i for i in range(3) if 0 <= (tick - begins[i]) * chunk_size < lengths[i]]
        if not ready:
            continue
        x, counts = torch.full((len(ready), chunk_size, 3), torch.nan), []
        for row, i in enumerate(ready):
            chunk = utterances[i][0, (tick - begins[i]) * chunk_size :][:chunk_size]
            x[row, : len(chunk)] = chunk
            counts.append(len(chunk))
        history = torch.cat([histories[i] for i in ready])
        y, history = K.chunk_conv1d_step(x, torch.tensor(counts), history, weight, bias)
        for row, i in enumerate(ready):
            histories[i] = history[row : row + 1]
            expected = outputs[i][(tick - begins[i]) * chunk_size :][: counts[row]]
            assert_close_as(y[row, : counts[row]], expected.double(), torch.float32)
            assert (y[row, counts[row] :] == 0).all()


def test_history_ends_where_the_valid_frames_end():
    x, history = torch.randn(3, 4, 2), torch.randn(3, 3, 2)
    _, after = K.chunk_conv1d_step(x, torch.tensor([4, 1, 0]), history, torch.randn(2, 7), None)
    assert torch.equal(after[0], x[0, 1:])
    assert torch.equal(after[1], torch.cat([history[1, 1:], x[1, :1]]))
    assert torch.equal(after[2], history[2])


X, LENGTHS, WEIGHT = torch.zeros(2, 10, 3), torch.tensor([10, 4]), torch.zeros(3, 5)
BAD_CALLS = {
    "even kernel": (dict(weight=torch.zeros(3, 4)), r"weight must be \(D, k\) = \(3, odd\) .*got \(3, 4\)"),
    "weight of other channels": (dict(weight=torch.zeros(4, 5)), r"weight must .*got \(4, 5\)"),
    "weight of a Conv1d": (dict(weight=torch.zeros(3, 1, 5)), r"weight must .*got \(3, 1, 5\)"),
    "bias of other channels": (dict(bias=torch.zeros(4)), r"bias must be \(D,\) = \(3,\) .*got \(4,\)"),
    "half a GLU": (dict(x=torch.zeros(2, 10, 5), glu=True), r"x must be \(B, T, 2D\) with a GLU, got \(2, 10, 5\)"),
    "weight of the channels before the GLU": (dict(x=torch.zeros(2, 10, 2), glu=True), r"weight must .*\(1, odd\)"),
    "x of two dimensions": (dict(x=torch.zeros(2, 10)), r"x must .*\(2, 10\)"),
    "length beyond T": (dict(lengths=torch.tensor([11, 4])), "lengths must be at most T = 10"),
    "no chunk": (dict(chunk_size=0), "chunk_size must be an integer >= 1 .*got 0"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_arguments_are_named(name):
    arguments, message = BAD_CALLS[name]
    call = {"x": X, "weight": WEIGHT, "bias": None, "lengths": LENGTHS, "chunk_size": 4} | arguments
    with pytest.raises(ValueError, match=message):
        K.chunk_conv1d(**call)


def test_bad_history_is_named():
    with pytest.raises(ValueError, match=r"history must be \(B, k//2, D\) = \(2, 2, 3\), got \(2, 4, 3\)"):
        K.chunk_conv1d_step(X, LENGTHS, torch.zeros(2, 4, 3), WEIGHT, None)


def test_no_frames():
    assert K.chunk_conv1d(torch.zeros(2, 0, 3), WEIGHT, None, torch.tensor([0, 0]), 4).shape == (2, 0, 3)
    assert K.chunk_conv1d(torch.zeros(2, 0, 6), WEIGHT, None, torch.tensor([0, 0]), 4, glu=True).shape == (2, 0, 3)
