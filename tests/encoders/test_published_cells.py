"""Cells and encoders against definitions in fp64: masks written out, blocks as one matrix, a sum for each frame."""

from dataclasses import replace
from math import prod

import pytest
import torch
from torch.nn import functional as F

from sumix_stream.checkpoint.shapes import transducer_shapes
from sumix_stream.config import PRESETS, ConfigError, EncoderConfig, ModelConfig, RecipeConfig, TrainConfig
from sumix_stream.config.reader import from_dict, model_of_checkpoint
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.base import make_encoder
from sumix_stream.encoders.mixers.summary import SummaryMixing
from sumix_stream.runtime.registry import make_runtime
from sumix_stream.tasks.build import build_model

SIZES = dict(dim=16, num_layers=2, ffn_dim=24, cgmlp_dim=20, conv_kernel=7, subsampling_channels=4, dropout=0.0)
CELLS = {
    "fast": {},
    "full": {"summary_variant": "full"},
    "full, 1 block": {"summary_variant": "full", "num_heads": 1},
    "full, norms": {"summary_variant": "full", "summary_norm": True},
    "full, 1 layer": {"summary_variant": "full", "mlp_layers": 1},
    "lite": {"summary_variant": "lite"},
    "lite, norm": {"summary_variant": "lite", "summary_norm": True},
    "lite, 1 layer": {"summary_variant": "lite", "mlp_layers": 1},
    "expdecay, published": {"summary_variant": "full", "summary_decay": 0.9},
    "lite, decay": {"summary_variant": "lite", "summary_decay": 0.9},
    "expdecay, fast": {"summary_variant": "expdecay", "decay": 0.9},
}
CONTEXTS = [ChunkContext.full(), ChunkContext(4, 1), ChunkContext(5, None), ChunkContext(3, 0)]


class Definition:
    """Weights of a module in fp64 by name."""

    def __init__(self, module: torch.nn.Module, config: EncoderConfig) -> None:
        self.weights = {name: value.detach().double() for name, value in module.state_dict().items()}
        self.config = config

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight = self.weights[f"{name}.weight"]
        if weight.dim() == 3:
            weight = torch.block_diag(*weight)
        bias = self.weights.get(f"{name}.bias")
        return x @ weight.T + (0 if bias is None else bias)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def branch(self, prefix: str, name: str, x: torch.Tensor) -> torch.Tensor:
        """f or s of full and lite."""
        if self.config.mlp_layers == 2:
            x = F.gelu(self.linear(f"{prefix}{name}_hidden", x))
        x = F.gelu(self.linear(f"{prefix}{name}_projection", x))
        return self.norm(f"{prefix}{name}_norm", x) if self.config.summary_norm else x

    def cell(self, x: torch.Tensor, context: ChunkContext, prefix: str = "") -> torch.Tensor:
        """SummaryMixing on one utterance (T, D)."""
        variant, old = self.config.summary_variant, self.config.mlp_layers == 1
        if variant == "full":
            local, summands = self.branch(prefix, "local", x), self.branch(prefix, "summary", x)
        elif variant == "lite":
            summands = F.gelu(self.linear(f"{prefix}projection", x)) if old else self.branch(prefix, "summary", x)
        else:
            local, summands = F.gelu(self.linear(f"{prefix}projection", x)).chunk(2, -1)
        mean = weights_of(len(x), context, self.config.mean_decay) @ summands
        if variant == "lite":
            return F.gelu(self.linear(f"{prefix}merge_summary", mean)) if old else mean
        merged = torch.cat(
            [self.weights[f"{prefix}merge_local.weight"], self.weights[f"{prefix}merge_summary.weight"]], 1
        )
        return F.gelu(torch.cat([local, mean], 1) @ merged.T + self.weights[f"{prefix}merge_summary.bias"])

    def convolved(self, x: torch.Tensor, context: ChunkContext, prefix: str) -> torch.Tensor:
        """The depthwise convolution of one utterance (T, D), tap by tap: the future ends with the chunk."""
        taps, out = self.weights[f"{prefix}weight"], torch.zeros_like(x)
        size = context.chunk_size or len(x)
        for t in range(len(x)):
            for j in range(taps.shape[1]):
                read = t + j - taps.shape[1] // 2
                if 0 <= read < len(x) and read // size <= t // size:
                    out[t] += taps[:, j] * x[read]
        return out + self.weights[f"{prefix}bias"]

    def layer(self, i: int, x: torch.Tensor, context: ChunkContext) -> torch.Tensor:
        at = f"layers.{i}."
        mixes = self.config.mixer == "summary"

        def mixed(x):
            return self.cell(self.norm(f"{at}mixer_norm", x), context, f"{at}mixer.")

        if self.config.kind == "branchformer":
            given, gate = F.gelu(self.linear(f"{at}conv.expand", self.norm(f"{at}conv_norm", x))).chunk(2, -1)
            gate = self.convolved(self.norm(f"{at}conv.norm", gate), context, f"{at}conv.")
            y = self.linear(f"{at}conv.out", given * gate)
            x = x + (self.linear(f"{at}merge", torch.cat([mixed(x), y], 1)) if mixes else y)
            return self.norm(f"{at}norm", x)
        x = x + 0.5 * self.feed_forward(f"{at}ffn1", x)
        x = x + (mixed(x) if mixes else 0)
        y = F.glu(self.linear(f"{at}conv.expand", self.norm(f"{at}conv_norm", x)), -1)
        y = F.silu(self.norm(f"{at}conv.norm", self.convolved(y, context, f"{at}conv.")))
        x = x + self.linear(f"{at}conv.out", y)
        return self.norm(f"{at}norm", x + 0.5 * self.feed_forward(f"{at}ffn2", x))

    def feed_forward(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.linear(f"{name}.4", F.silu(self.linear(f"{name}.1", self.norm(f"{name}.0", x))))


def weights_of(num_frames: int, context: ChunkContext, decay: float | None) -> torch.Tensor:
    """(T, T), each row the weights of the frames that a frame sees; they sum to one."""
    frames = torch.arange(num_frames)
    chunks = frames // (context.chunk_size or num_frames)
    behind = chunks[:, None] - chunks[None]
    visible = (behind >= 0) & (behind <= (num_frames if context.left_context is None else context.left_context))
    weights = visible.double() * (1.0 if decay is None else decay) ** (frames[:, None] - frames[None]).abs()
    return weights / weights.sum(1, keepdim=True)


def spread(module: torch.nn.Module) -> None:
    """Move all weights off what they begin as, so that none of them does nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)


@pytest.mark.parametrize("name", CELLS)
@torch.no_grad()
def test_a_cell_is_its_definition(name):
    """In fp64 to 1e-6; in fp32, whole and in chunks, beside a shorter utterance, to rounding."""
    config = EncoderConfig(**SIZES, **CELLS[name])
    cell = SummaryMixing(config).eval()
    spread(cell)
    definition, x, lengths = Definition(cell, config), torch.randn(2, 22, 16), torch.tensor([22, 13])
    for context in CONTEXTS:
        expected = [definition.cell(own[:length].double(), context) for own, length in zip(x, lengths, strict=True)]
        exact, single = cell.double()(x.double(), lengths, context), cell.float()(x, lengths, context)
        for b, wanted in enumerate(expected):
            assert (exact[b, : len(wanted)] - wanted).abs().max() < 1e-6
            assert (single[b, : len(wanted)] - wanted).abs().max() < 5e-6
            assert not single[b, len(wanted) :].any()
        if context.chunk_size is None:
            continue
        state, parts = cell.init_state(1, context), []
        for part in x[:1].split(context.chunk_size, 1):
            y, state = cell.step(part, torch.tensor([part.shape[1]]), state, context)
            parts.append(y[0])
        assert (torch.cat(parts) - expected[0]).abs().max() < 5e-6
    sizes, lefts = torch.tensor([4, 2**30]), torch.tensor([1, 2**30])
    both = cell(x, lengths, ChunkContext(sizes, lefts))
    for b, context in enumerate((ChunkContext(4, 1), ChunkContext.full())):
        wanted = definition.cell(x[b, : lengths[b]].double(), context)
        assert (both[b, : len(wanted)] - wanted).abs().max() < 5e-6


ENCODERS = {
    "conformer, full": {"summary_variant": "full"},
    "conformer, none": {"mixer": "none"},
    "branchformer, full": {"kind": "branchformer", "summary_variant": "full"},
    "branchformer, lite": {"kind": "branchformer", "summary_variant": "lite"},
    "branchformer, expdecay": {"kind": "branchformer", "summary_variant": "full", "summary_decay": 0.9},
    "branchformer, none": {"kind": "branchformer", "mixer": "none"},
}


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_an_encoder_is_its_definition(name):
    config = EncoderConfig(**SIZES, **ENCODERS[name])
    encoder = make_encoder(config).eval()
    spread(encoder.layers)
    definition, feats = Definition(encoder, config), torch.randn(2, 90, 80)
    lengths = torch.tensor([90, 37])
    for context in CONTEXTS:
        out, out_lengths = encoder(feats, lengths, context)
        for b, length in enumerate(lengths.tolist()):
            x = encoder.subsampling(feats[b : b + 1, :length], lengths[b : b + 1])[0][0].double()
            for i in range(config.num_layers):
                x = definition.layer(i, x, context)
            assert out_lengths[b] == len(x)
            assert (out[b, : len(x)] - x).abs().max() < 1e-4
            assert not out[b, len(x) :].any(), "padded frames are zero"
            if context.chunk_size is None:
                continue
            state, parts, window = encoder.init_state(1, context), [], encoder.window(context)
            for part in feats[b : b + 1, :length].split(window, 1):
                y, y_lengths, state = encoder.step(part, torch.tensor([part.shape[1]]), state, final=True)
                parts.append(y[0, : y_lengths[0]])
            assert (torch.cat(parts) - x).abs().max() < 1e-4


@pytest.mark.parametrize("name", [*ENCODERS, "attention"])
def test_every_parameter_gets_a_gradient(name):
    kind = ENCODERS.get(name, {"kind": "branchformer", "mixer": "attention"})
    encoder = make_encoder(EncoderConfig(**SIZES, **kind)).train()
    out, _ = encoder(torch.randn(2, 90, 80), torch.tensor([90, 50]), ChunkContext(4, 1))
    (out * torch.randn_like(out)).sum().backward()
    dead = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_names_and_settings():
    assert make_encoder(EncoderConfig(**SIZES, mixer="none")).describe() == "conformer with convolutions alone"
    decaying = EncoderConfig(**SIZES, kind="branchformer", summary_variant="full", summary_decay=0.995)
    assert make_encoder(decaying).describe() == "branchformer with SummaryMixing (full, decay 0.995)"
    for wrong, told in [
        ({"mlp_layers": 3}, "mlp_layers must be 1 or 2"),
        ({"summary_decay": 1.0}, "summary_decay must be between 0 and 1"),
        ({"cgmlp_dim": 7}, "cgmlp_dim must be even"),
        ({"summary_norm": True}, "summary_norm must be false for variants but full"),
        ({"summary_variant": "lite", "num_heads": 5}, "num_heads must be a divisor of dim"),
    ]:
        with pytest.raises(ValueError, match=told):
            EncoderConfig(**wrong)
    with pytest.raises(ConfigError, match=r"encoder.kind must be one of conformer, branchformer \(did you mean"):
        from_dict(ModelConfig, {"encoder": {"kind": "branchfromer"}})


def test_configurations_of_earlier_releases_have_cells_of_one_layer():
    assert model_of_checkpoint({"encoder": {"summary_variant": "full"}}).encoder.mlp_layers == 1
    assert model_of_checkpoint({"encoder": {"mlp_layers": 2}}).encoder.mlp_layers == 2
    assert from_dict(ModelConfig, {"encoder": {"summary_variant": "full"}}).encoder.mlp_layers == 2


def test_a_published_cell_s_parameters():
    """The large model's cell: f and s of 512 to 512 to 512 channels in 4 blocks, one layer merging both."""
    config = replace(PRESETS["large"].encoder, summary_variant="full")
    cell, shapes = SummaryMixing(config), transducer_shapes(PRESETS["branchformer-large"], 500)
    block = 4 * 128 * 128 + 512
    assert sum(p.numel() for p in cell.parameters()) == 4 * block + 1024 * 512 + 512
    gating = 512 * 3072 + 3072 + 2 * 1536 + 1536 * 31 + 1536 + 1536 * 512 + 512
    layer = 4 * block + 1024 * 512 + 512 + gating + 1024 * 512 + 512 + 3 * 1024
    assert sum(prod(shape) for name, shape in shapes.items() if name.startswith("encoder.layers.")) == 18 * layer


@torch.no_grad()
def test_hypermixer_hears_whole_utterances_only():
    config = EncoderConfig(**SIZES, mixer="hypermixer")
    encoder, lengths = make_encoder(config).eval(), torch.tensor([90, 37, 1])
    feats = torch.randn(3, 90, 80)
    together, out_lengths = encoder(feats, lengths, ChunkContext.full())
    for b, length in enumerate(lengths):
        alone, _ = encoder(feats[b : b + 1, :length], lengths[b : b + 1], ChunkContext.full())
        assert (together[b, : out_lengths[b]] - alone[0]).abs().max() < 1e-5
        assert not together[b, out_lengths[b] :].any()
    changed = feats.clone()
    changed[0, 89] += 1.0
    apart = (encoder(changed, lengths, ChunkContext.full())[0] - together).abs()
    assert apart[0, 0].max() > 1e-5, "the first frame hears the last"
    context = ChunkContext(4, 1)
    for refused in (lambda: encoder(feats, lengths, context), lambda: encoder.init_state(1, context)):
        with pytest.raises(ValueError, match="mixer hypermixer hears whole utterances only"):
            refused()
    model = ModelConfig(encoder=config)
    with pytest.raises(ConfigError, match="train.chunk_size must be full for model.encoder.mixer hypermixer"):
        RecipeConfig(model=model)
    RecipeConfig(model=model, train=TrainConfig(chunk_size="full", valid_chunk_size="full"))
    with pytest.raises(ValueError, match="not torch: mixer hypermixer hears whole utterances only"):
        make_runtime(build_model(model, 20), ChunkContext(4, 1), "torch")
