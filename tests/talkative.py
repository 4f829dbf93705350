"""Untrained models that emit plenty of tokens, so that equal tokens mean something, and sound to feed them."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch

from sumix_stream.audio import resample
from sumix_stream.config import EncoderConfig, ModelConfig, PredictorConfig
from sumix_stream.context import ChunkContext
from sumix_stream.features import whole_fbank
from sumix_stream.runtime.base import Runtime
from sumix_stream.runtime.registry import make_runtime
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.transducer.model import Transducer

VOCAB_SIZE = 24
BLANK_BIAS = 6.5
CONTEXT = ChunkContext(8, 2)
MIXERS = {
    "fast": {"mixer": "summary", "summary_variant": "fast"},
    "full": {"mixer": "summary", "summary_variant": "full"},
    "lite": {"mixer": "summary", "summary_variant": "lite"},
    "expdecay": {"mixer": "summary", "summary_variant": "expdecay", "decay": 0.9},
    "attention": {"mixer": "attention"},
}
KINDS = {  # what varies besides the conformer's mixer
    "by eight": {"subsampling": 8},
    "none": {"mixer": "none"},
    "full of one layer": {"summary_variant": "full", "mlp_layers": 1},
    "lite of one layer": {"summary_variant": "lite", "mlp_layers": 1},
    "full, decay, norms": {"summary_variant": "full", "summary_decay": 0.9, "summary_norm": True},
    "branchformer": {"kind": "branchformer", "cgmlp_dim": 56, "summary_variant": "full"},
    "branchformer, none": {"kind": "branchformer", "cgmlp_dim": 56, "mixer": "none"},
}
SEEDS = {"by eight": 2}  # else 0: of those, one that talks
SMALL = EncoderConfig(dim=32, num_layers=2, ffn_dim=48, num_heads=4, conv_kernel=7, subsampling_channels=8)


class LetterTokenizer:
    """Token n is the n-th letter; every fourth begins a word."""

    vocab_size = VOCAB_SIZE

    def piece(self, token: int) -> str:
        return ("▁" if token % 4 == 1 else "") + chr(ord("a") + token - 1)

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(self.piece, tokens)).replace("▁", " ").strip()


@cache
@torch.inference_mode(False)  # cached, so it must not depend on the test that asks first
def talkative_model(mixer: str = "fast", seed: int | None = None, **encoder: object) -> Transducer:
    """A small model under one of MIXERS or KINDS.

    Encoder and last token weigh about equally in its joiner, and blank wins more often than not: about a token each
    second frame, several in some. Its predictor forgets fast, so that rounding differences do not grow.
    """
    config = ModelConfig(
        encoder=replace(SMALL, **(MIXERS | KINDS)[mixer], **encoder),
        predictor=PredictorConfig(embed_dim=24, hidden_dim=24),
        joiner_dim=32,
        ctc=False,
    )
    model = build_model(config, vocab_size=VOCAB_SIZE, seed=SEEDS.get(mixer, 0) if seed is None else seed)
    telephone = resample(sound(8.0, 8_000, seed=98), 8_000)
    feats = torch.from_numpy(np.concatenate([whole_fbank(sound(8.0, seed=99)), whole_fbank(telephone)]))
    model.set_normalisation(feats.mean(0), feats.std(0))
    for layer in model.encoder.layers:  # a trained model leans on its layers, an untrained one hardly
        layer.scale_residual_outputs((4 * config.encoder.num_layers) ** 0.5)
    with torch.no_grad():
        model.predictor.lstm.weight_ih_l0.mul_(4)
        enc, _ = model.encoder(feats[None], torch.tensor([len(feats)]), ChunkContext(8, 1))
        pred = model.predictor(torch.arange(VOCAB_SIZE)[:, None])[:, -1]
        joiner = model.joiner
        for projection, x, weight in ((joiner.project_encoder, enc[0], 1.0), (joiner.project_predictor, pred, 0.5)):
            projection.weight.mul_(weight / (x @ projection.weight.T).std(0).mean())
        joiner.project_encoder.bias.copy_(-joiner.project_encoder.weight @ enc[0].mean(0))
        joiner.project_encoder.bias.sub_(joiner.project_predictor.weight @ pred.mean(0))
        joiner.output.weight.mul_(10)
        joiner.output.bias.zero_()
        joiner.output.bias[model.blank_id] = BLANK_BIAS
    return model


def sound(seconds: float, sample_rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """Noise and tones that start and stop, so that frames differ from each other: float32 in [-1, 1]."""
    num_samples = round(seconds * sample_rate)
    rng = np.random.default_rng(seed)
    result = 0.02 * rng.standard_normal(num_samples)
    for _ in range(max(1, round(6 * seconds))):
        start, length, pitch = rng.uniform(0, seconds), rng.uniform(0.05, 0.4), rng.uniform(100, 3500)
        inside = np.arange(round(start * sample_rate), min(round((start + length) * sample_rate), num_samples))
        result[inside] += rng.uniform(0.02, 0.2) * np.sin(2 * np.pi * pitch / sample_rate * inside)
    return np.clip(result, -1, 1).astype(np.float32)


def runtime_of(model: Transducer | None = None, kind: str = "torch", context: ChunkContext = CONTEXT) -> Runtime:
    """Of a model, the talkative one by default."""
    return make_runtime(talkative_model() if model is None else model, context, kind)
