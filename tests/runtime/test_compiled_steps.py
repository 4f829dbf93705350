"""Fused steps of a packed encoder against the model's own."""

import threading

import pytest
import torch
from conftest import needs_numba
from talkative import MIXERS, talkative_model

from sumix_stream.context import ChunkContext
from sumix_stream.encoders.states import StateRows, tensors
from sumix_stream.runtime.compiled_steps import FusedSteps
from sumix_stream.runtime.packed import has_bf16_products, pack

pytestmark = needs_numba
needs_bf16 = pytest.mark.skipif(not has_bf16_products(), reason="this processor has no bfloat16 products")
CONTEXTS = [ChunkContext(8, 2), ChunkContext(8, None), ChunkContext(5, 0), ChunkContext(1, 1), ChunkContext(16, 4)]


def table_of(rows: StateRows, state) -> torch.Tensor:
    return torch.stack(rows.split(state)).view(torch.float32)


@pytest.mark.parametrize("batch_size", [1, 3, 9])
@pytest.mark.parametrize("context", CONTEXTS, ids=str)
@torch.inference_mode()
def test_steps_are_equal(context, batch_size, poisoned_memory):
    """Frames and states, the last chunks of unequal lengths; what is not written would be NaN."""
    model = talkative_model()
    encoder = pack(model).encoder
    state = model.encoder.init_state(batch_size, context)
    rows = StateRows(state)
    fused, table, window = FusedSteps(encoder, context, rows), table_of(rows, state), encoder.window(context)
    lengths = torch.full((batch_size,), window)
    for n in range(4):
        feats = torch.randn(batch_size, window, 80)
        if n == 3:
            lengths = (window - 1 - 2 * torch.arange(batch_size)).clamp(min=1)
            feats = feats[:, : int(lengths.max())]
        expected, sizes, state = model.encoder.step(feats, lengths, state, final=n == 3)
        out, table = fused.step(feats, lengths, table)
        torch.testing.assert_close(out, expected, atol=2e-5, rtol=0)
        for row, size in enumerate(sizes.tolist()):
            assert not out[row, size:].any(), "padded frames are zero"
        if n < 3:
            for mine, theirs in zip(tensors(rows.join(list(table.view(torch.uint8)))), tensors(state), strict=True):
                torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize("context", CONTEXTS[:3], ids=str)
@torch.inference_mode()
def test_frames_are_the_same_bits_in_every_batch(context, precision):
    """And beside streams at their end."""
    encoder = pack(talkative_model(), precision).encoder
    rows, window = StateRows(encoder.init_state(1, context)), encoder.window(context)
    fused, feats = FusedSteps(encoder, context, rows), torch.randn(41, 2 * window, 80)

    def two_chunks(count: int, last: torch.Tensor) -> torch.Tensor:
        table = table_of(rows, encoder.init_state(count, context))
        first, table = fused.step(feats[:count, :window], torch.full((count,), window), table)
        return torch.cat([first, fused.step(feats[:count, window:], last[:count], table)[0]], 1)

    whole = torch.full((41,), window)
    short = whole.clone()
    short[1::3] = window // 2
    among_all = two_chunks(41, whole)
    for count in (1, 2, 3, 7, 8, 9, 17):
        assert torch.equal(two_chunks(count, whole), among_all[:count])
    others = short == whole
    assert torch.equal(two_chunks(41, short)[others], among_all[others])


@torch.inference_mode()
def test_threads_share_the_streams(monkeypatch):
    context, encoder = CONTEXTS[4], pack(talkative_model()).encoder
    state = encoder.init_state(7, context)
    rows, window = StateRows(state), encoder.window(context)
    fused, seen = FusedSteps(encoder, context, rows), []
    arguments = torch.randn(7, window, 80), torch.full((7,), window), table_of(rows, state)
    alone, step = fused.step(*arguments), fused._step

    def noted(*block):
        seen.append((threading.current_thread().name, len(block[0])))
        step(*block)

    monkeypatch.setattr(fused, "_step", noted)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = fused.step(*arguments)
    finally:
        torch.set_num_threads(threads)
    assert [count for _, count in sorted(seen, key=lambda part: -part[1])] == [3, 3, 1]
    assert all(name.startswith("step") for name, _ in seen)
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


@needs_bf16
@torch.inference_mode()
def test_bf16_is_the_model_but_for_its_rounding():
    context, model = CONTEXTS[0], talkative_model()
    packed = pack(model, "bf16").encoder
    feats, lengths = torch.randn(5, packed.window(context), 80), torch.full((5,), packed.window(context))
    state = model.encoder.init_state(5, context)
    rows = StateRows(state)
    expected, _, _ = model.encoder.step(feats, lengths, state)
    out, _ = FusedSteps(packed, context, rows).step(feats, lengths, table_of(rows, state))
    error = ((out - expected).square().mean() / expected.square().mean()).sqrt()
    assert out.dtype == torch.float32 and 1e-4 < error < 2e-2


def test_what_they_are_for():
    for mixer in MIXERS:
        model = talkative_model(mixer)
        assert FusedSteps.fits(pack(model).encoder) == (mixer == "fast")
        assert not FusedSteps.fits(model.encoder)
