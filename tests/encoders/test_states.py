import pytest
import torch

from sumix_stream.config import EncoderConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.conformer import ConformerEncoder
from sumix_stream.encoders.states import EncoderState
from sumix_stream.trees import fill, leaves, named_leaves

CONFIG = dict(dim=16, num_layers=2, ffn_dim=32, num_heads=2, conv_kernel=5, subsampling_channels=4, dropout=0.0)


def states(mixer, context, ages):
    """One state for each age in chunks, each with its own past."""
    encoder = ConformerEncoder(EncoderConfig(mixer=mixer, **CONFIG)).eval()
    window, result = encoder.window(context), []
    for age in ages:
        state = encoder.init_state(1, context)
        for _ in range(age):
            state = encoder.step(torch.randn(1, window, 80), torch.tensor([window]), state)[2]
        result.append(state)
    return encoder, result


@pytest.mark.parametrize("mixer", ["summary", "attention"])
@pytest.mark.parametrize("left", [0, 2, None])
@torch.no_grad()
def test_a_stacked_step_is_each_stream_s_own_step(mixer, left):
    context = ChunkContext(4, left)
    encoder, singles = states(mixer, context, ages=[0, 1, 5])
    feats, lengths = torch.randn(3, 16, 80), torch.full((3,), 16)
    out, _, after = encoder.step(feats, lengths, EncoderState.stack(singles))
    for b, (state, after_b) in enumerate(zip(singles, after.unstack(), strict=True)):
        alone, _, after_alone = encoder.step(feats[b : b + 1], lengths[:1], state)
        torch.testing.assert_close(out[b : b + 1], alone, atol=1e-5, rtol=0)
        following = torch.randn(1, 16, 80)
        torch.testing.assert_close(
            encoder.step(following, lengths[:1], after_b)[0],
            encoder.step(following, lengths[:1], after_alone)[0],
            atol=1e-5,
            rtol=0,
        )


def test_stack_refuses_mixed_contexts():
    encoder = ConformerEncoder(EncoderConfig(**CONFIG))
    with pytest.raises(ValueError, match="share one context"):
        EncoderState.stack([encoder.init_state(1, ChunkContext(4, 1)), encoder.init_state(1, ChunkContext(8, 1))])


@pytest.mark.parametrize("variant", ["fast", "full", "lite", "expdecay"])
@pytest.mark.parametrize("left", [0, 4, None])
@torch.no_grad()
def test_state_size_is_constant(variant, left):
    encoder = ConformerEncoder(EncoderConfig(summary_variant=variant, **CONFIG)).eval()
    state = encoder.init_state(2, ChunkContext(2, left))
    shapes = [t.shape for t in leaves(state)]
    assert state.nbytes == sum(t.numel() * t.element_size() for t in leaves(state)) > 0
    for _ in range(12):
        _, _, state = encoder.step(torch.randn(2, 8, 80), torch.tensor([8, 8]), state)
        assert [t.shape for t in leaves(state)] == shapes


def test_unlimited_summary_state_is_smaller_than_a_window():
    encoder = ConformerEncoder(EncoderConfig(**CONFIG))
    sizes = [encoder.init_state(1, ChunkContext(4, left)).nbytes for left in (None, 4, 32)]
    assert sizes == sorted(sizes)


@torch.no_grad()
def test_fill_takes_what_named_tensors_gave():
    _, (old, fresh) = states("summary", ChunkContext(4, 2), ages=[3, 0])
    arrays = dict(named_leaves(old))
    assert "layers.1.mixer.sums" in arrays
    assert all(torch.equal(a, b) for a, b in zip(leaves(fill(fresh, arrays)), leaves(old), strict=True))
    with pytest.raises(ValueError, match=r"missing.*layers.1.mixer.sums"):
        fill(fresh, {name: part for name, part in arrays.items() if name != "layers.1.mixer.sums"})
    with pytest.raises(ValueError, match=r"layers.0.conv must be .*got \(1, 2, 15\)"):
        fill(fresh, arrays | {"layers.0.conv": torch.zeros(1, 2, 15)})
    with pytest.raises(ValueError, match=r"layers.0.conv must be .*float64"):
        fill(fresh, arrays | {"layers.0.conv": arrays["layers.0.conv"].double()})
