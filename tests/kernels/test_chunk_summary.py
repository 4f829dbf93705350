"""chunk_summary and broadcast_chunks against the fp64 reference; no leak; padding; masked == steps."""

import pytest
import torch
from conftest import TOLERANCE, assert_close_as

import sumix_kernels as K
from sumix_kernels.chunk_summary import naive
from sumix_kernels.window import visible_chunks, windowed_sums

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEFTS = (0, 1, 4, None)
LIMITS = 2**40  # in tensors: more than any utterance


def ragged_lengths(num_frames: int, chunk_size: int) -> torch.Tensor:
    wanted = {0, 1, chunk_size - 1, chunk_size, chunk_size + 1, 63, num_frames}
    return torch.tensor([length for length in sorted(wanted) if length <= num_frames])


def check_against_naive(x, lengths, chunk_size, left_context):
    x = x.detach().requires_grad_()
    mean = K.chunk_summary(x, lengths, chunk_size, left_context, backend="torch")
    weights = torch.randn(mean.shape).to(x.dtype)
    (grad,) = torch.autograd.grad(mean, x, weights)

    reference_x = x.detach().double().requires_grad_()
    reference = naive.chunk_summary(reference_x, lengths, chunk_size, left_context)
    (reference_grad,) = torch.autograd.grad(reference, reference_x, weights.double())
    assert mean.dtype == x.dtype and grad.dtype == x.dtype
    assert_close_as(mean, reference, x.dtype)
    assert_close_as(grad, reference_grad, x.dtype)
    for row, length in zip(grad, lengths):
        assert (row[length:] == 0).all()


@pytest.mark.parametrize("left_context", LEFTS)
@pytest.mark.parametrize("chunk_size", (1, 7, 16, 32, 130, 300, None))
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_naive(dtype, chunk_size, left_context, poisoned_memory):
    lengths = ragged_lengths(130, chunk_size or 130)
    x = torch.randn(len(lengths), 130, 3).to(dtype)
    check_against_naive(x, lengths, chunk_size, left_context)


@pytest.mark.parametrize("num_frames", (1, 6, 7, 8, 63, 1000))
def test_equals_naive_at_odd_lengths(num_frames, poisoned_memory):
    lengths = ragged_lengths(num_frames, 7)
    check_against_naive(torch.randn(len(lengths), num_frames, 2), lengths, 7, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ("both", "chunk_size", "left_context"))
def test_a_context_for_each_utterance(kind, dtype, poisoned_memory):
    chunk_size = torch.tensor([3, 16, 16, LIMITS, 70, 1]) if kind != "left_context" else 7
    left_context = torch.tensor([0, 4, LIMITS, 1, 70, 13]) if kind != "chunk_size" else 4
    lengths = torch.tensor([70, 63, 70, 70, 0, 33])
    x = torch.randn(6, 70, 3).to(dtype)
    check_against_naive(x, lengths, chunk_size, left_context)
    mean = K.chunk_summary(x, lengths, chunk_size, left_context)
    for b in range(6):
        size = int(chunk_size[b]) if kind != "left_context" else chunk_size
        left = int(left_context[b]) if kind != "chunk_size" else left_context
        alone = K.chunk_summary(x[b : b + 1], lengths[b : b + 1], size, left)
        assert_close_as(mean[b : b + 1, : alone.shape[1]], alone.double(), dtype)


@pytest.mark.parametrize("chunk_size", (16, 64, torch.tensor([16, 5, 64])))
def test_strides_do_not_matter(chunk_size):
    lengths = torch.tensor([64, 40, 63])
    channels_first = torch.randn(3, 5, 64).transpose(1, 2)
    half_of_channels = torch.randn(3, 64, 10)[:, :, 5:]
    every_other_frame = torch.randn(3, 128, 5)[:, ::2]
    for x in (channels_first, half_of_channels, every_other_frame, torch.randn(1, 1, 5).expand(3, 64, 5)):
        check_against_naive(x, lengths, chunk_size, 1)


@pytest.mark.parametrize("chunk_size", (1, 16, None, torch.tensor([16, 3])))
@pytest.mark.parametrize("left_context", (2, None, torch.tensor([LIMITS, 2])))
def test_padding_is_never_read(chunk_size, left_context):
    """An utterance's rows are the same beside a longer one, over NaN, as alone."""
    x, lengths = torch.randn(2, 70, 4), torch.tensor([37, 70])
    dirty = x.clone()
    dirty[0, 37:] = torch.nan
    dirty.requires_grad_()
    mean = K.chunk_summary(dirty, lengths, chunk_size, left_context)
    (grad,) = torch.autograd.grad(mean.sum(), dirty)
    assert grad.isfinite().all() and (grad[0, 37:] == 0).all()
    size, left = (int(v[0]) if isinstance(v, torch.Tensor) else v for v in (chunk_size, left_context))
    alone = K.chunk_summary(x[:1, :37], lengths[:1], size, left)
    assert_close_as(mean[:1, : alone.shape[1]], alone.double(), torch.float32)


@pytest.mark.parametrize("left_context", (0, 1, 4, None, torch.tensor([1, 4])))
@pytest.mark.parametrize("chunk_size", (5, torch.tensor([5, 8])))
def test_a_frame_moves_only_the_rows_that_see_it(chunk_size, left_context):
    x, lengths = torch.randn(2, 43, 3), torch.tensor([43, 41])
    before = K.chunk_summary(x, lengths, chunk_size, left_context)
    for frame in (0, 4, 5, 17, 40):
        changed = x.clone()
        changed[:, frame] += 1e6
        moved = (K.chunk_summary(changed, lengths, chunk_size, left_context) != before).any(2)
        for b in range(2):
            size, left = (int(v[b]) if isinstance(v, torch.Tensor) else v for v in (chunk_size, left_context))
            own = frame // size
            # Rows past an utterance's own chunks see what is left in their window.
            seen = [own <= n and (left is None or n - left <= own) for n in range(moved.shape[1])]
            assert moved[b].tolist() == seen, (frame, b)


@pytest.mark.parametrize("left_context", (1, None, torch.tensor([0, 3])))
@pytest.mark.parametrize("chunk_size", (3, 10, torch.tensor([3, 10])))
def test_gradcheck(chunk_size, left_context):
    x = torch.randn(2, 10, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([10, 7])
    assert torch.autograd.gradcheck(lambda x: K.chunk_summary(x, lengths, chunk_size, left_context), x)


def test_half_precision_sums_neither_overflow_nor_stall():
    x = torch.full((1, 4096, 2), 60.0, dtype=torch.float16)
    for chunk_size in (1, 4096, torch.tensor([16])):
        mean = K.chunk_summary(x, torch.tensor([4096]), chunk_size, None)
        assert (mean == 60).all()


def test_long_prefix_keeps_its_digits():
    """A window far from the start is as exact as one at the start, after large values too."""
    x = torch.randn(1, 20000, 2)
    x[:, :100] += 1e6
    mean = K.chunk_summary(x, torch.tensor([20000]), 4, 4)
    assert_close_as(mean[:, -100:], naive.chunk_summary(x[:, -416:], torch.tensor([416]), 4, 4)[:, -100:], x.dtype)


def test_same_under_autocast():
    x, lengths = torch.randn(2, 40, 3), torch.tensor([40, 11])
    with torch.autocast("cpu", torch.bfloat16):
        mean = K.chunk_summary(x, lengths, 8, 2)
    assert torch.equal(mean, K.chunk_summary(x, lengths, 8, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_size", (1, 7, 64, 100, None, torch.tensor([7, 64, 9])))
def test_broadcast_equals_naive(chunk_size, dtype, poisoned_memory):
    smallest = 64 if chunk_size is None else min(64, int(torch.as_tensor(chunk_size).min()))
    summary = torch.randn(3, -(-64 // smallest), 5).to(dtype).requires_grad_()
    frames = K.broadcast_chunks(summary, chunk_size, 64)
    weights = torch.randn(frames.shape).to(dtype)
    (grad,) = torch.autograd.grad(frames, summary, weights)
    reference_summary = summary.detach().double().requires_grad_()
    reference = naive.broadcast_chunks(reference_summary, chunk_size, 64)
    (reference_grad,) = torch.autograd.grad(reference, reference_summary, weights.double())
    assert torch.equal(frames.double(), reference)
    assert grad.dtype == dtype
    assert_close_as(grad, reference_grad, dtype)


@pytest.mark.parametrize("chunk_size", (1, 4, 8, 16, 32))
@pytest.mark.parametrize("left_context", LEFTS)
def test_steps_equal_the_whole(chunk_size, left_context):
    for num_frames in sorted({1, chunk_size - 1, chunk_size, chunk_size + 1, 75} - {0}):
        x = torch.randn(2, num_frames, 3)
        mean = K.chunk_summary(x, torch.full((2,), num_frames), chunk_size, left_context)
        state = K.SummaryState.init(2, 3, left_context)
        for n, chunk in enumerate(x.split(chunk_size, 1)):
            row, state = K.chunk_summary_step(chunk, torch.full((2,), chunk.shape[1]), state)
            assert_close_as(row, mean[:, n].double(), torch.float32)


@pytest.mark.parametrize("left_context", LEFTS)
def test_streams_of_different_ages_share_a_step(left_context):
    """Three streams that began at different times, the last chunks short: one batch of states, stacked by tensor."""
    chunk_size, lengths, begins = 8, (50, 21, 33), (0, 2, 3)
    utterances = [torch.randn(1, length, 3) for length in lengths]
    means = [K.chunk_summary(x, torch.tensor([x.shape[1]]), chunk_size, left_context)[0] for x in utterances]
    states = [K.SummaryState.init(1, 3, left_context) for _ in utterances]
    for tick in range(12):
        ready = [i for i in range(3) if 0 <= (tick - begins[i]) * chunk_size < lengths[i]]
        if not ready:
            continue
        x, counts = torch.full((len(ready), chunk_size, 3), torch.nan), []
        for row, i in enumerate(ready):
            chunk = utterances[i][0, (tick - begins[i]) * chunk_size :][:chunk_size]
            x[row, : len(chunk)] = chunk
            counts.append(len(chunk))
        stacked = K.SummaryState(*(torch.cat(parts) for parts in zip(*(states[i] for i in ready))))
        mean, stacked = K.chunk_summary_step(x, torch.tensor(counts), stacked)
        for row, i in enumerate(ready):
            states[i] = K.SummaryState(*(part[row : row + 1] for part in stacked))
            assert_close_as(mean[row], means[i][tick - begins[i]].double(), torch.float32)


@pytest.mark.parametrize("left_context", LEFTS)
def test_state_has_constant_size(left_context):
    state = K.SummaryState.init(2, 3, left_context)
    shapes = [part.shape for part in state]
    for _ in range(10):
        _, state = K.chunk_summary_step(torch.randn(2, 4, 3), torch.tensor([4, 4]), state)
        assert [part.shape for part in state] == shapes


def test_ten_hours_keep_their_precision():
    """56,000 chunks of 640 ms into one running sum: the fp32 mean stays within 1e-4 of fp64 (here: within 1e-6)."""
    num_chunks = 56_000
    sums = 0.01 + 0.1 * torch.randn(num_chunks, 8)
    state = K.SummaryState.init(1, 8, None)
    plain, length = torch.zeros(8), torch.tensor([1])
    for chunk in sums:
        mean, state = K.chunk_summary_step(chunk.view(1, 1, 8), length, state)
        plain += chunk
    expected = sums.double().mean(0)
    error = ((mean[0].double() - expected) / expected).abs().max()
    assert error < 1e-6
    assert error < ((plain.double() / num_chunks - expected) / expected).abs().max()
    assert state.counts.item() == num_chunks


@pytest.mark.parametrize("reverse", (False, True))
@pytest.mark.parametrize("num_rows", (1, 2, 5, 64))
def test_windowed_sums(num_rows, reverse):
    x = torch.randn(3, num_rows, 2, dtype=torch.float64)
    n = torch.arange(num_rows)
    distance = (n[None] - n[:, None]) if reverse else (n[:, None] - n[None])
    for left in (0, 1, 2, 3, 4, 7, 63):
        weights = torch.where((distance >= 0) & (distance <= left), 0.9 ** distance.double(), 0.0)
        for value in (left, torch.full((3, 1), left)):
            sums = windowed_sums(x, value, torch.tensor(0.9).log().item(), reverse)
            assert (sums - weights @ x).abs().max() < 1e-6


def test_visible_chunks():
    assert [visible_chunks(n, 1) for n in range(3)] == [(0, 1), (0, 2), (1, 3)]
    assert visible_chunks(5, None) == (0, 6)
    lo, hi = visible_chunks(torch.arange(3), torch.tensor([[0], [2]]))
    assert lo.tolist() == [[0, 1, 2], [0, 0, 0]] and hi.tolist() == [1, 2, 3]


X, LENGTHS = torch.zeros(2, 10, 3), torch.tensor([10, 4])
BAD_CALLS = {
    "x of two dimensions": (dict(x=torch.zeros(2, 10)), r"x must .*\(2, 10\)"),
    "x of integers": (dict(x=torch.zeros(2, 10, 3, dtype=torch.int64)), r"x must .*int64 \(2, 10, 3\)"),
    "lengths of another batch": (dict(lengths=torch.tensor([1])), r"lengths must .*\(2,\), got \(1,\)"),
    "lengths of floats": (dict(lengths=torch.tensor([1.0, 2.0])), "lengths must .*float32"),
    "lengths of a list": (dict(lengths=[10, 4]), "lengths must .*list"),
    "length beyond T": (dict(lengths=torch.tensor([11, 4])), r"lengths must be at most T = 10 .*\[11, 4\]"),
    "negative length": (dict(lengths=torch.tensor([-1, 4])), r"lengths must be at least 0, got \[-1, 4\]"),
    "no chunk": (dict(chunk_size=0), "chunk_size must be an integer >= 1 .*got 0"),
    "a fraction of a chunk": (dict(chunk_size=1.5), "chunk_size .*got 1.5"),
    "a chunk size True": (dict(chunk_size=True), "chunk_size .*got True"),
    "no chunk in a tensor": (dict(chunk_size=torch.tensor([4, 0])), r"chunk_size must be at least 1, got \[4, 0\]"),
    "chunk sizes of another batch": (dict(chunk_size=torch.tensor([4])), r"chunk_size must .*\(2,\), got \(1,\)"),
    "negative left context": (dict(left_context=-1), "left_context must be an integer >= 0 .*got -1"),
    "negative left context in a tensor": (dict(left_context=torch.tensor([1, -1])), "left_context must be at least 0"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_arguments_are_named(name):
    arguments, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=message):
        K.chunk_summary(**({"x": X, "lengths": LENGTHS, "chunk_size": 4, "left_context": 1} | arguments))


def test_bad_summary_and_bad_state_are_named():
    with pytest.raises(ValueError, match="must have N = 3 rows for 10 frames in chunks of 4, got 2"):
        K.broadcast_chunks(torch.zeros(2, 2, 3), 4, 10)
    with pytest.raises(ValueError, match="num_frames must be an integer >= 0, got -1"):
        K.broadcast_chunks(torch.zeros(2, 2, 3), 4, -1)
    with pytest.raises(ValueError, match=r"state of \(2, 1, 5\) sums does not fit x \(2, 10, 3\)"):
        K.chunk_summary_step(X, LENGTHS, K.SummaryState.init(2, 5, None))
    with pytest.raises(ValueError, match=r"left_context .*got -1"):
        K.SummaryState.init(2, 5, -1)


def test_no_frames():
    x = torch.zeros(2, 0, 3, requires_grad=True)
    assert K.chunk_summary(x, torch.tensor([0, 0]), None, None).shape == (2, 0, 3)
    assert K.chunk_summary(x, torch.tensor([0, 0]), 4, 1).shape == (2, 0, 3)
    assert K.broadcast_chunks(x, 4, 0).shape == (2, 0, 3)


def test_the_tolerance_would_notice_a_wrong_count():
    """Dividing by a count that includes padding, the mistake this op must not make, is far outside every tolerance."""
    x, lengths = torch.randn(1, 16, 8), torch.tensor([12])
    wrong = x[:, :12].sum(1, keepdim=True) / 16
    for dtype in TOLERANCE:
        with pytest.raises(AssertionError, match="not equal"):
            assert_close_as(wrong, naive.chunk_summary(x, lengths, 16, None), dtype)
