"""chunk_decay_mean against the fp64 reference; linear for any chunk; no leak; masked == steps."""

import pytest
import torch
from conftest import assert_close_as

import sumix_kernels as K
from sumix_kernels.chunk_decay import naive

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEFTS = (0, 1, 4, None)
LIMITS = 2**40  # in tensors: more than any utterance


def ragged_lengths(num_frames: int, chunk_size: int) -> torch.Tensor:
    wanted = {0, 1, chunk_size - 1, chunk_size, chunk_size + 1, 63, num_frames}
    return torch.tensor([length for length in sorted(wanted) if length <= num_frames])


def check_against_naive(x, lengths, chunk_size, left_context, decay=0.95):
    x = x.detach().requires_grad_()
    mean = K.chunk_decay_mean(x, lengths, chunk_size, left_context, decay, backend="torch")
    weights = torch.randn(mean.shape).to(x.dtype)
    (grad,) = torch.autograd.grad(mean, x, weights)
    reference_x = x.detach().double().requires_grad_()
    reference = naive.chunk_decay_mean(reference_x, lengths, chunk_size, left_context, decay)
    (reference_grad,) = torch.autograd.grad(reference, reference_x, weights.double())
    assert mean.dtype == x.dtype and grad.dtype == x.dtype
    assert_close_as(mean, reference, x.dtype)
    assert_close_as(grad, reference_grad, x.dtype)
    for row, row_grad, length in zip(mean, grad, lengths):
        assert (row[length:] == 0).all() and (row_grad[length:] == 0).all()


@pytest.mark.parametrize("left_context", LEFTS)
@pytest.mark.parametrize("chunk_size", (1, 7, 16, 65, 130, 300, None))
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_naive(dtype, chunk_size, left_context, poisoned_memory):
    lengths = ragged_lengths(300, chunk_size or 300)
    x = torch.randn(len(lengths), 300, 3).to(dtype)
    check_against_naive(x, lengths, chunk_size, left_context)


@pytest.mark.parametrize("decay", (1e-30, 0.01, 0.5, 0.995, 0.999999))
@pytest.mark.parametrize("chunk_size", (1, 16, 200, None))
def test_any_decay(chunk_size, decay):
    check_against_naive(torch.randn(2, 1000, 2), torch.tensor([1000, 63]), chunk_size, None, decay)
    check_against_naive(torch.randn(2, 150, 2), torch.tensor([150, 63]), chunk_size, 4, decay)


@pytest.mark.parametrize("kind", ("both", "chunk_size", "left_context"))
def test_a_context_for_each_utterance(kind, poisoned_memory):
    chunk_size = torch.tensor([3, 16, 3, LIMITS, 70, 1]) if kind != "left_context" else 7
    left_context = torch.tensor([0, 4, 0, 1, 70, LIMITS]) if kind != "chunk_size" else None
    check_against_naive(torch.randn(6, 70, 3), torch.tensor([70, 63, 70, 70, 0, 33]), chunk_size, left_context)


def test_strides_do_not_matter():
    lengths = torch.tensor([64, 40])
    for x in (torch.randn(2, 5, 64).transpose(1, 2), torch.randn(2, 64, 10)[:, :, 5:], torch.randn(2, 128, 5)[:, ::2]):
        check_against_naive(x, lengths, 9, 1)


@pytest.mark.parametrize("chunk_size", (5, 100, torch.tensor([5, 8])))
@pytest.mark.parametrize("left_context", (0, 1, None))
def test_a_frame_moves_only_the_frames_that_see_it(chunk_size, left_context):
    x, lengths = torch.randn(2, 43, 3), torch.tensor([43, 41])
    before = K.chunk_decay_mean(x, lengths, chunk_size, left_context, 0.9)
    for frame in (0, 4, 5, 17, 40):
        changed = x.clone()
        changed[:, frame] += 1e6
        moved = (K.chunk_decay_mean(changed, lengths, chunk_size, left_context, 0.9) != before).any(2)
        for b, length in enumerate(lengths.tolist()):
            size = int(chunk_size[b]) if isinstance(chunk_size, torch.Tensor) else chunk_size
            ages = [t // size - frame // size for t in range(43)]
            seen = [
                t < length and age >= 0 and (left_context is None or age <= left_context) for t, age in enumerate(ages)
            ]
            assert moved[b].tolist() == seen, (frame, b)


@pytest.mark.parametrize("chunk_size", (1, 16, None))
def test_padding_is_never_read(chunk_size):
    x, lengths = torch.randn(2, 70, 4), torch.tensor([37, 70])
    dirty = x.clone()
    dirty[0, 37:] = torch.nan
    dirty.requires_grad_()
    mean = K.chunk_decay_mean(dirty, lengths, chunk_size, 2, 0.9)
    (grad,) = torch.autograd.grad(mean.sum(), dirty)
    assert grad.isfinite().all() and (mean[0, 37:] == 0).all()
    alone = K.chunk_decay_mean(x[:1, :37], lengths[:1], chunk_size, 2, 0.9)
    assert_close_as(mean[:1, :37], alone.double(), torch.float32)


@pytest.mark.parametrize("left_context", (0, 1, None))
@pytest.mark.parametrize("chunk_size", (3, 10))
def test_gradcheck(chunk_size, left_context):
    x = torch.randn(2, 10, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([10, 7])
    assert torch.autograd.gradcheck(lambda x: K.chunk_decay_mean(x, lengths, chunk_size, left_context, 0.8), x)


@pytest.mark.parametrize("chunk_size", (1, 16, 77, 100_000))
def test_an_hour_is_finite_and_exact(chunk_size):
    """100,000 frames (67 minutes): a (T, T) or (C, C) matrix would need 40 GB. Constant input has a constant mean."""
    x = torch.full((1, 100_000, 2), 3.0, requires_grad=True)
    mean = K.chunk_decay_mean(x, torch.tensor([100_000]), chunk_size, None, 0.995)
    (grad,) = torch.autograd.grad(mean.sum(), x)
    assert_close_as(mean, torch.full_like(mean, 3.0, dtype=torch.float64), torch.float32)
    assert grad.isfinite().all() and abs(grad.double().sum().item() / 200_000 - 1) < 1e-5


def test_same_under_autocast():
    x, lengths = torch.randn(2, 200, 3), torch.tensor([200, 11])
    with torch.autocast("cpu", torch.bfloat16):
        mean = K.chunk_decay_mean(x, lengths, 100, 1, 0.9)
    assert torch.equal(mean, K.chunk_decay_mean(x, lengths, 100, 1, 0.9))


@pytest.mark.parametrize("chunk_size", (1, 4, 8, 16, 32, 70))
@pytest.mark.parametrize("left_context", LEFTS)
def test_steps_equal_the_whole(chunk_size, left_context):
    for num_frames in sorted({1, chunk_size - 1, chunk_size, chunk_size + 1, 145} - {0}):
        x = torch.randn(2, num_frames, 3)
        mean = K.chunk_decay_mean(x, torch.full((2,), num_frames), chunk_size, left_context, 0.95)
        state = K.DecayState.init(2, 3, left_context)
        shapes = [part.shape for part in state]
        steps = []
        for chunk in x.split(chunk_size, 1):
            y, state = K.chunk_decay_step(chunk, torch.full((2,), chunk.shape[1]), state, chunk_size, 0.95)
            assert [part.shape for part in state] == shapes
            steps.append(y)
        assert_close_as(torch.cat(steps, 1), mean.double(), torch.float32)


@pytest.mark.parametrize("left_context", LEFTS)
def test_streams_of_different_ages_share_a_step(left_context):
    chunk_size, lengths, begins = 8, (50, 21, 33), (0, 2, 3)
    utterances = [torch.randn(1, length, 3) for length in lengths]
    means = [K.chunk_decay_mean(x, torch.tensor([x.shape[1]]), chunk_size, left_context, 0.9)[0] for x in utterances]
    states = [K.DecayState.init(1, 3, left_context) for _ in utterances]
    for tick in range(12):
        ready = [i for i in range(3) if 0 <= (tick - begins[i]) * chunk_size < lengths[i]]
        if not ready:
            continue
        x, counts = torch.full((len(ready), chunk_size, 3), torch.nan), []
        for row, i in enumerate(ready):
            chunk = utterances[i][0, (tick - begins[i]) * chunk_size :][:chunk_size]
            x[row, : len(chunk)] = chunk
            counts.append(len(chunk))
        stacked = K.DecayState(*(torch.cat(parts) for parts in zip(*(states[i] for i in ready))))
        y, stacked = K.chunk_decay_step(x, torch.tensor(counts), stacked, chunk_size, 0.9)
        for row, i in enumerate(ready):
            states[i] = K.DecayState(*(part[row : row + 1] for part in stacked))
            expected = means[i][(tick - begins[i]) * chunk_size :][: counts[row]]
            assert_close_as(y[row, : counts[row]], expected.double(), torch.float32)
            assert (y[row, counts[row] :] == 0).all()


def test_one_chunk_of_unknown_size():
    x = torch.randn(2, 40, 3)
    y, _ = K.chunk_decay_step(x, torch.tensor([40, 7]), K.DecayState.init(2, 3, None), None, 0.9)
    assert_close_as(y, naive.chunk_decay_mean(x, torch.tensor([40, 7]), None, None, 0.9), torch.float32)


@pytest.mark.parametrize("decay", (0.0, 1.0, 1, -0.5, float("nan"), 2.0, "0.5"))
def test_bad_decay_is_named(decay):
    with pytest.raises(ValueError, match="decay must be a number between 0 and 1, exclusive, got"):
        K.chunk_decay_mean(torch.zeros(1, 4, 2), torch.tensor([4]), 2, 1, decay)


def test_bad_shapes_are_named():
    x, lengths = torch.zeros(2, 4, 3), torch.tensor([4, 4])
    with pytest.raises(ValueError, match=r"x must .*\(4, 3\)"):
        K.chunk_decay_mean(x[0], lengths, 2, 1, 0.9)
    with pytest.raises(ValueError, match=r"x \(2, 4, 3\) must have at most chunk_size = 3 frames"):
        K.chunk_decay_step(x, lengths, K.DecayState.init(2, 3, None), 3, 0.9)
    with pytest.raises(ValueError, match="does not fit x"):
        K.chunk_decay_step(x, lengths, K.DecayState.init(1, 3, None), 4, 0.9)


def test_no_frames():
    assert K.chunk_decay_mean(torch.zeros(2, 0, 3), torch.tensor([0, 0]), 4, 1, 0.9).shape == (2, 0, 3)
