"""Front ends by four and by eight against one definition in fp64, whole and in chunks; and the clock that follows."""

import numpy as np
import pytest
import torch
from talkative import talkative_model
from torch.nn import functional as F

from sumix_stream.config import ChunkConfig, ConfigError, EncoderConfig, ModelConfig, RecipeConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.base import make_encoder
from sumix_stream.encoders.chunking import ChunkSampler
from sumix_stream.encoders.subsampling import make_subsampling
from sumix_stream.runtime.weights import Weights
from sumix_stream.timebase import Timebase

SIZES = dict(dim=16, num_layers=1, ffn_dim=32, num_heads=2, conv_kernel=7, subsampling_channels=4, dropout=0.0)


def front_end(subsampling: int):
    torch.manual_seed(1)
    config = EncoderConfig(**SIZES, subsampling=subsampling)
    module = make_subsampling(config, config.timebase).eval()
    module.feature_mean.fill_(-1.0)
    module.feature_std.fill_(2.0)
    for name, parameter in module.named_parameters():  # which begin at zero
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("subsampling", [4, 8])
@torch.no_grad()
def test_speech_gets_through_a_new_front_end(subsampling):
    """What varies must not drown in constants: a norm after it would pass these on instead, and nothing is learnt."""
    config = EncoderConfig(subsampling=subsampling, dropout=0.0)
    feats = torch.randn(4, 400, 80, generator=torch.Generator().manual_seed(0))
    for seed in range(5):
        torch.manual_seed(seed)
        out, _ = make_subsampling(config, config.timebase).eval()(feats, torch.full((4,), 400))
        constant = out.mean((0, 1))
        assert (out - constant).square().mean() > constant.square().mean() / 2


def definition(module, feats: torch.Tensor) -> torch.Tensor:
    """One utterance (T0, 80) in fp64: zeros around it at every stage, nothing else."""
    weights = {name: value.double() for name, value in module.state_dict().items()}
    y = ((feats.double() - weights["feature_mean"]) / weights["feature_std"])[None, None]
    stages = [["conv1"], ["conv2"]]
    if module.timebase.subsampling == 8:
        stages = [["conv1"], *([f"stages.{i}.depthwise", f"stages.{i}.pointwise"] for i in (0, 1))]
    for stage in stages:
        for name in stage:
            weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            if weight.shape[2] == 1:
                y = F.conv2d(y, weight, bias)
            else:
                y = F.conv2d(y, weight, bias, stride=2, padding=1, groups=y.shape[1] // weight.shape[1])
        y = F.silu(y)
    y = F.linear(y[0].transpose(0, 1).flatten(1), weights["out.weight"], weights["out.bias"])
    return F.layer_norm(y, y.shape[1:], weights["norm.weight"], weights["norm.bias"])


@pytest.mark.parametrize("subsampling", [4, 8])
@torch.no_grad()
def test_whole_and_in_chunks_it_is_the_definition(subsampling):
    module = front_end(subsampling)
    for num_frames in (1, 2, 3, 4, 7, 8, 9, 12, 15, 16, 17, 33, 101):
        feats = torch.randn(num_frames, 80)
        expected = definition(module, feats)
        assert len(expected) == -(-num_frames // subsampling)
        out, lengths = module(feats[None], torch.tensor([num_frames]))
        assert lengths.item() == len(expected)
        assert (out[0] - expected).abs().max() < 1e-5
        for chunk in (1, 3):
            state, parts = module.init_state(1), []
            for part in feats.split(chunk * subsampling):
                y, y_lengths, state = module.step(part[None], torch.tensor([len(part)]), state)
                assert y_lengths.item() == y.shape[1]
                parts.append(y[0])
            assert (torch.cat(parts) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("subsampling", [4, 8])
@torch.no_grad()
def test_batch_mates_and_padding_change_nothing(subsampling):
    module, lengths = front_end(subsampling), torch.tensor([1, 37, 60, 16])
    feats = torch.randn(4, 66, 80) * 100  # padding holds garbage, not zeros
    together, out_lengths = module(feats, lengths)
    for row, length, own, num_frames in zip(together, lengths, feats, out_lengths, strict=True):
        expected = definition(module, own[:length])
        assert (row[:num_frames] - expected).abs().max() < 1e-5
        assert not row[num_frames:].any(), "padded frames are zero"


@torch.no_grad()
def test_a_changed_frame_moves_only_the_frames_that_read_it():
    module, feats = front_end(8), torch.randn(1, 64, 80)
    before, _ = module(feats, torch.tensor([64]))
    for frame in (0, 7, 8, 9, 31, 63):
        changed = feats.clone()
        changed[0, frame] += 3.0
        after, _ = module(changed, torch.tensor([64]))
        moved = (after - before).abs().amax(-1)[0].gt(0).nonzero().flatten().tolist()
        # Encoder frame t reads feature frames 8t-7 .. 8t+7: none after its own eight.
        assert moved == [t for t in range(8) if 8 * t - 7 <= frame <= 8 * t + 7]


def test_the_clock_follows():
    model = talkative_model("by eight")
    assert model.timebase == model.encoder.timebase == Weights(model.config, 24, {}).timebase
    assert model.timebase.encoder_frame_seconds == 0.08
    assert ChunkContext.parse("640ms", 4, model.timebase) == ChunkContext(8, 4)
    with pytest.raises(ValueError, match="600 ms is not a whole number of encoder frames of 80 ms.*560 ms and 640 ms"):
        ChunkContext.parse("600ms", 4, model.timebase)
    with pytest.raises(ValueError, match="encoder.subsampling is 8, the timebase's 4"):
        make_encoder(model.config.encoder, Timebase())
    with pytest.raises(ValueError, match="subsampling must be 4 or 8, got 6"):
        EncoderConfig(subsampling=6)


def test_chunks_of_training_are_of_the_same_duration():
    for subsampling, least, most in ((4, 8, 32), (8, 4, 16)):
        sampler = ChunkSampler(ChunkConfig(full_probability=0), 0, EncoderConfig(subsampling=subsampling).timebase)
        sizes = {sampler.draw(step).chunk_size for step in range(500)}
        assert (min(sizes), max(sizes)) == (least, most)
    by_eight = ModelConfig(encoder=EncoderConfig(subsampling=8))
    assert ChunkSampler(ChunkConfig(min_chunk=2, max_chunk=3), 0, by_eight.encoder.timebase).config.min_chunk == 2
    RecipeConfig(chunks=ChunkConfig(min_chunk=20))
    with pytest.raises(ConfigError, match=r"chunks.max_chunk must be at least .*got 16 after 20 .* 80 ms: give both"):
        RecipeConfig(model=by_eight, chunks=ChunkConfig(min_chunk=20))


def test_times_of_tokens_are_of_frames_of_80_ms():
    from talkative import LetterTokenizer, sound

    from sumix_stream.streaming.recognizer import Recognizer

    recognizer = Recognizer(talkative_model("by eight"), LetterTokenizer())
    found = recognizer.transcribe((sound(3.0), 16_000))
    times = np.array(found.timestamps) / 0.08
    assert len(times) > 5
    np.testing.assert_allclose(times, np.round(times), atol=1e-6)
    assert 1.5 < found.timestamps[-1] < 3.0
