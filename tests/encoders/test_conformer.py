"""Masked whole-utterance forward, chunked step, padding, batches and the future: one function."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sumix_stream.config import EncoderConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.conformer import ConformerEncoder

VARIANTS = ["fast", "full", "lite", "expdecay", "attention"]
SMALL = dict(dim=16, num_layers=2, ffn_dim=32, num_heads=2, conv_kernel=7, subsampling_channels=4, dropout=0.0)


def make_encoder(variant: str) -> ConformerEncoder:
    torch.manual_seed(1)
    mixer = {"mixer": "attention"} if variant == "attention" else {"summary_variant": variant}
    encoder = ConformerEncoder(EncoderConfig(**SMALL, **mixer)).eval()
    encoder.subsampling.feature_mean.fill_(-1.0)
    encoder.subsampling.feature_std.fill_(2.0)
    return encoder


@torch.no_grad()
def run_chunks(encoder, feats, context):
    """One utterance (T0, 80) chunk by chunk -> (T, D)."""
    state, window, outputs = encoder.init_state(1, context), encoder.window(context), []
    for start in range(0, feats.shape[0], window):
        chunk = feats[start : start + window].unsqueeze(0)
        final = start + window >= feats.shape[0]
        out, out_lengths, state = encoder.step(chunk, torch.tensor([chunk.shape[1]]), state, final)
        outputs.append(out[0, : out_lengths[0]])
    return torch.cat(outputs)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("left", [0, 1, 4, None])
@pytest.mark.parametrize("chunk", [4, 8, 32])
def test_step_equals_masked_forward(variant, chunk, left):
    encoder, context = make_encoder(variant), ChunkContext(chunk, left)
    for num_frames in (1, 2, 4 * chunk - 1, 4 * chunk, 4 * chunk + 1, 203):
        feats = torch.randn(num_frames, 80)
        with torch.no_grad():
            masked, lengths = encoder(feats.unsqueeze(0), torch.tensor([num_frames]), context)
        streamed = run_chunks(encoder, feats, context)
        assert streamed.shape == masked[0].shape and lengths.item() == len(streamed)
        assert (streamed - masked[0]).abs().max() < 1e-4


@settings(max_examples=25, deadline=None)
@given(
    variant=st.sampled_from(VARIANTS),
    chunk=st.integers(1, 40),
    left=st.none() | st.integers(0, 6),
    num_frames=st.integers(1, 300),
)
def test_step_equals_masked_forward_anywhere(variant, chunk, left, num_frames):
    encoder, context = make_encoder(variant), ChunkContext(chunk, left)
    feats = torch.randn(num_frames, 80, generator=torch.Generator().manual_seed(num_frames))
    with torch.no_grad():
        masked, _ = encoder(feats.unsqueeze(0), torch.tensor([num_frames]), context)
    assert (run_chunks(encoder, feats, context) - masked[0]).abs().max() < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("context", [ChunkContext(5, 2), ChunkContext(8, None), ChunkContext.full()], ids=str)
@torch.no_grad()
def test_batch_mates_and_padding_change_nothing(variant, context):
    encoder, lengths = make_encoder(variant), torch.tensor([1, 37, 120, 64])
    feats = torch.randn(4, 130, 80) * 100  # padding holds garbage, not zeros
    together, out_lengths = encoder(feats, lengths, context)
    for b, length in enumerate(lengths.tolist()):
        alone, alone_length = encoder(feats[b : b + 1, :length], lengths[b : b + 1], context)
        assert alone_length == out_lengths[b]
        torch.testing.assert_close(together[b, : out_lengths[b]], alone[0], atol=2e-5, rtol=0)
        assert not together[b, out_lengths[b] :].any(), "padded frames are zero"


@pytest.mark.parametrize("variant", VARIANTS)
def test_contexts_for_each_utterance(variant):
    encoder = make_encoder(variant)
    chunk, left = torch.tensor([4, 9, 2**30]), torch.tensor([1, 2**30, 2**30])
    feats, lengths = torch.randn(3, 100, 80), torch.tensor([100, 93, 71])
    with torch.no_grad():
        together, _ = encoder(feats, lengths, ChunkContext(chunk, left))
        for b, context in enumerate([ChunkContext(4, 1), ChunkContext(9, None), ChunkContext.full()]):
            alone, _ = encoder(feats[b : b + 1], lengths[b : b + 1], context)
            torch.testing.assert_close(together[b : b + 1], alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("frame", [0, 63, 64, 129])
@torch.no_grad()
def test_a_changed_frame_moves_only_what_may_see_it(variant, frame):
    """Changing feature frame f moves encoder frames from the first that reads it, up to the end of its reach."""
    chunk, left = 4, 1
    encoder, context = make_encoder(variant), ChunkContext(chunk, left)
    feats, lengths = torch.randn(1, 160, 80), torch.tensor([160])
    before, _ = encoder(feats, lengths, context)
    feats[0, frame] += 3.0
    after, _ = encoder(feats, lengths, context)
    moved = (after - before).abs().amax(-1)[0].gt(0).nonzero().flatten().tolist()
    first_reader = max(0, frame - 3 + 3) // 4  # encoder frame t reads feature frames 4t-3 .. 4t+3
    assert moved, "the change must reach something"
    assert moved[0] >= (first_reader // chunk) * chunk, "a chunk before the change heard it"
    assert first_reader in moved


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient(variant):
    encoder = make_encoder(variant).train()
    out, _ = encoder(torch.randn(2, 90, 80), torch.tensor([90, 50]), ChunkContext(4, 1))
    (out * torch.randn_like(out)).sum().backward()
    dead = [
        n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()
    ]
    assert dead == []


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_half_precision_forward_is_close(variant):
    encoder, context = make_encoder(variant), ChunkContext(8, 2)
    feats, lengths = torch.randn(2, 160, 80), torch.tensor([160, 90])
    expected, _ = encoder(feats, lengths, context)
    with torch.autocast("cpu", torch.bfloat16):
        actual, _ = encoder(feats, lengths, context)
    assert ((actual - expected).square().mean() / expected.square().mean()).sqrt() < 0.03


def test_bad_input():
    encoder = make_encoder("fast")
    context = ChunkContext(4, 1)
    with pytest.raises(ValueError, match=r"feats must be \(B, T0 >= 1, 80\), got \(1, 9, 40\)"):
        encoder(torch.zeros(1, 9, 40), torch.tensor([9]), context)
    with pytest.raises(ValueError, match="lengths"):
        encoder(torch.zeros(2, 9, 80), torch.tensor([9]), context)
    with pytest.raises(ValueError, match="streaming needs one chunk size"):
        encoder.init_state(1, ChunkContext.full())
    with pytest.raises(ValueError, match="only a final chunk may be shorter"):
        encoder.step(torch.zeros(1, 9, 80), torch.tensor([9]), encoder.init_state(1, context))
    with pytest.raises(ValueError, match="at most 16"):
        encoder.step(torch.zeros(1, 17, 80), torch.tensor([17]), encoder.init_state(1, context))
