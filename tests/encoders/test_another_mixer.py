"""A mixer of one's own is one file and one registry line: here the largest value a frame may see."""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sumix_stream.config import EncoderConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.base import make_encoder
from sumix_stream.encoders.masking import frame_mask, mask_frames
from sumix_stream.registry import MIXERS

NOTHING = -1e4  # below every value of a tanh


class MaximumState(NamedTuple):
    """Largest values of the last `left_context` chunks, oldest first (B, L, D), or of all of them (B, 1, D)."""

    chunks: Tensor


class MaximumMixer(nn.Module):
    """y_t = W [tanh(V x_t); maximum over the visible frames of tanh(V x)]."""

    peak_rate = 1e-3

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(config.dim, config.dim)
        self.out = nn.Linear(2 * config.dim, config.dim)

    @property
    def residual_outputs(self) -> list[nn.Linear]:
        return [self.out]

    def describe(self) -> str:
        return "maximum"

    def state_grows(self, context: ChunkContext) -> bool:
        return False

    def forward(self, x: Tensor, lengths: Tensor, context: ChunkContext) -> Tensor:
        state, parts = self.init_state(len(x), context), []
        size = context.chunk_size or x.shape[1]
        for start in range(0, x.shape[1], size):
            valid = (lengths - start).clamp(0, size)
            part, state = self.step(x[:, start : start + size], valid, state, context)
            parts.append(part)
        return torch.cat(parts, 1)

    def init_state(self, batch_size: int, context: ChunkContext) -> MaximumState:
        kept = 1 if context.left_context is None else context.left_context
        return MaximumState(torch.full((batch_size, kept, self.out.out_features), NOTHING))

    def step(
        self, x: Tensor, lengths: Tensor, state: MaximumState, context: ChunkContext
    ) -> tuple[Tensor, MaximumState]:
        values = torch.tanh(self.projection(x))
        valid = frame_mask(lengths, x.shape[1]).unsqueeze(-1)
        own = values.masked_fill(~valid, NOTHING).amax(1, keepdim=True)
        seen = torch.cat([state.chunks, own], 1)
        largest = seen.amax(1, keepdim=True).expand_as(values)
        after = seen.amax(1, keepdim=True) if context.left_context is None else seen[:, 1:]
        return mask_frames(self.out(torch.cat([values, largest], -1)), lengths), MaximumState(after)


@pytest.fixture(scope="module", autouse=True)
def registered():
    MIXERS.register("maximum", MaximumMixer)


@pytest.mark.parametrize("left_context", [0, 2, None])
def test_its_encoder_streams_exactly(left_context):
    config = EncoderConfig(dim=16, num_layers=2, ffn_dim=32, mixer="maximum", conv_kernel=5, subsampling_channels=4)
    encoder, context = make_encoder(config).eval(), ChunkContext(4, left_context)
    feats, lengths = torch.randn(2, 101, 80), torch.tensor([101, 70])
    for b, length in enumerate(lengths.tolist()):
        feats[b, length:] = 0
    with torch.inference_mode():
        whole, frames = encoder(feats, lengths, context)
        for b, length in enumerate(lengths.tolist()):
            state, parts, window = encoder.init_state(1, context), [], encoder.window(context)
            for start in range(0, length, window):
                chunk = feats[b : b + 1, start : min(start + window, length)]
                final = start + window >= length
                out, out_lengths, state = encoder.step(chunk, torch.tensor([chunk.shape[1]]), state, final=final)
                parts.append(out[0, : out_lengths[0]])
            torch.testing.assert_close(torch.cat(parts), whole[b, : frames[b]], atol=1e-4, rtol=0)


def test_recipes_name_it_and_a_name_that_is_taken_is_refused():
    assert replace(EncoderConfig(), mixer="maximum").mixer in MIXERS.names
    with pytest.raises(ValueError, match="'maximum' is taken"):
        MIXERS.register("maximum", nn.Linear)
    with pytest.raises(ValueError, match="did you mean 'maximum'"):
        MIXERS.get("maximun")
