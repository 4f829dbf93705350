"""chunk_summary_step in Triton: its rows are chunk_summary's, its states those of the torch backend."""

import pytest
import torch
from conftest import assert_close_as
from launches import compile_all, recorded
from torch import library
from torch.nn import functional as F

import sumix_kernels as K

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("gelu", (False, True))
@pytest.mark.parametrize("left_context", (0, 1, 4, None))
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_equal_the_whole(dtype, left_context, gelu, triton_device, poisoned_memory):
    x = torch.randn(3, 50, 5, device=triton_device).to(dtype)
    lengths = torch.tensor([50, 41, 3], device=triton_device)
    whole = K.chunk_summary(F.gelu(x.double()) if gelu else x.double(), lengths, 7, left_context, backend="naive")
    states = [K.SummaryState.init(3, 5, left_context, triton_device) for _ in range(2)]
    for n, begin in enumerate(range(0, 50, 7)):
        chunk, valid = x[:, begin : begin + 7], (lengths - begin).clamp(0, min(7, 50 - begin))
        mean, states[0] = K.chunk_summary_step(chunk, valid, states[0], gelu=gelu, backend="triton")
        _, states[1] = K.chunk_summary_step(chunk.float(), valid, states[1], gelu=gelu, backend="torch")
        assert_close_as(mean, whole[:, n], dtype)
        for mine, theirs in zip(*states, strict=True):
            assert mine.dtype == torch.float32
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_padding_and_strides(triton_device):
    wide = torch.randn(2, 9, 10, device=triton_device)
    wide[0, 4:] = torch.nan
    lengths, state = torch.tensor([4, 9], device=triton_device), K.SummaryState.init(2, 5, 2, triton_device)
    mean, state = K.chunk_summary_step(wide[:, :, 1::2], lengths, state, backend="triton")
    assert_close_as(mean[0], wide[0, :4, 1::2].double().mean(0), torch.float32)
    assert_close_as(mean[1], wide[1, :, 1::2].double().mean(0), torch.float32)
    assert state.sums.isfinite().all()


def test_running_sums_keep_their_digits(triton_device):
    """Where plain fp32 sums would stall: an hour's sum, then small frames."""
    state = K.SummaryState.init(1, 3, None, triton_device)
    start = torch.full((1, 1, 3), 2.0**24, device=triton_device)
    one = torch.ones(1, 1, 3, device=triton_device)
    lengths = torch.tensor([1], device=triton_device)
    _, state = K.chunk_summary_step(start, lengths, state, backend="triton")
    for _ in range(64):
        _, state = K.chunk_summary_step(one, lengths, state, backend="triton")
    assert (state.sums.double() + state.compensation.double() == 2.0**24 + 64).all()


def test_registration(triton_device):
    x, lengths = torch.randn(2, 4, 3, device=triton_device), torch.tensor([4, 1], device=triton_device)
    for left_context in (None, 2):
        state = K.SummaryState.init(2, 3, left_context, triton_device)
        library.opcheck(torch.ops.sumix.chunk_summary_step.default, (x, lengths, *state, True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="launches are recorded in the interpreter")
def test_compiles_for_gpus():
    x, lengths = torch.randn(2, 16, 128, dtype=torch.bfloat16), torch.tensor([16, 1])
    with recorded() as launches:
        for left_context in (None, 2):
            K.chunk_summary_step(x, lengths, K.SummaryState.init(2, 128, left_context), gelu=True, backend="triton")
    assert len(launches) == 2
    for capability in (80, 90):
        for launch, result in zip(launches, compile_all(launches, capability), strict=True):
            assert result["error"] is None and result["spilled"] == 0, (launch, result)
