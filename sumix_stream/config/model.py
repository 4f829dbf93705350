"""Sizes of a model, and the named presets."""

from dataclasses import dataclass, field

from sumix_stream.config.checks import require, require_choice, require_range
from sumix_stream.registry import ENCODERS, MIXERS
from sumix_stream.timebase import Timebase


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder. Sizes in channels; `conv_kernel` in encoder frames (odd)."""

    kind: str = "conformer"  # conformer | branchformer
    dim: int = 144  # channels
    num_layers: int = 6  # of the encoder
    ffn_dim: int = 576  # channels inside the feed-forward modules of a conformer
    mixer: str = "summary"  # summary | attention | none (convolutions alone) | hypermixer (full context only)
    summary_variant: str = "fast"  # fast | full | lite | expdecay
    mlp_layers: int = 2  # of f and s in full and lite, 1 or 2; with 1 lite has a merging layer
    summary_norm: bool = False  # LayerNorm after f and s of full and lite
    summary_decay: float | None = None  # of any variant: weight of a frame at distance 1 (0.995); null = no decay
    num_heads: int = 4  # attention heads; blocks of the block-diagonal layers of full and lite
    decay: float = 0.995  # expdecay's, which is fast with a decay
    conv_kernel: int = 15  # encoder frames, odd
    cgmlp_dim: int = 864  # channels inside a branchformer's gated convolution, even
    subsampling: int = 4  # feature frames of an encoder frame: 4 (40 ms) | 8 (80 ms, depthwise-separable convolutions)
    subsampling_channels: int = 32  # of the front end's convolutions
    dropout: float = 0.1  # share of activations set to 0 in training

    def __post_init__(self) -> None:
        require_range(self, "dim num_layers ffn_dim num_heads conv_kernel subsampling_channels", 1)
        require_choice(self, "kind", ENCODERS.names)
        require_choice(self, "mixer", MIXERS.names)
        require_choice(self, "summary_variant", ("fast", "full", "lite", "expdecay"))
        require(self, "subsampling", self.subsampling in (4, 8), "4 or 8")
        require(self, "decay", 0 < self.decay <= 1, "above 0 and at most 1")
        require(self, "conv_kernel", self.conv_kernel % 2 == 1, "odd (the convolution is centred)")
        require_range(self, "dropout", 0, 1)
        require(self, "mlp_layers", self.mlp_layers in (1, 2), "1 or 2")
        require_range(self, "summary_decay", 0, 1, open_ends=True)
        require(self, "cgmlp_dim", self.cgmlp_dim > 0 and self.cgmlp_dim % 2 == 0, "even and above 0")
        blocks = self.summary_variant == "full" or (self.summary_variant == "lite" and self.mlp_layers == 2)
        if self.summary_norm:
            require(self, "summary_norm", blocks, "false for variants but full, and lite of two layers")
        if self.mixer == "attention" or blocks:
            require(self, "num_heads", self.dim % self.num_heads == 0, f"a divisor of dim ({self.dim})")

    @property
    def streams(self) -> bool:
        """Whether it can run in chunks at all."""
        return self.mixer != "hypermixer"

    @property
    def mean_decay(self) -> float | None:
        """Weight of a frame at distance 1 in SummaryMixing's mean; None = all weigh the same."""
        return self.decay if self.summary_decay is None and self.summary_variant == "expdecay" else self.summary_decay

    @property
    def timebase(self) -> Timebase:
        """The clock of an encoder of this configuration."""
        return Timebase(subsampling=self.subsampling)


@dataclass(frozen=True)
class PredictorConfig:
    """LSTM predictor over the tokens emitted so far."""

    embed_dim: int = 144  # channels of a token
    hidden_dim: int = 160  # channels of the LSTM
    num_layers: int = 1  # LSTM layers
    dropout: float = 0.1  # share of activations set to 0 in training
    token_dropout: float = 0.0  # share of past tokens hidden in training, so that the encoder carries what was said

    def __post_init__(self) -> None:
        require_range(self, "embed_dim hidden_dim num_layers", 1)
        require_range(self, "dropout token_dropout", 0, 1)


@dataclass(frozen=True)
class ModelConfig:
    """A transducer: everything but the vocabulary size, which the tokenizer gives."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    joiner_dim: int = 160  # channels in which encoder and predictor are added
    ctc: bool = True  # auxiliary CTC head

    def __post_init__(self) -> None:
        require_range(self, "joiner_dim", 1)


PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(),
    "small": ModelConfig(
        encoder=EncoderConfig(dim=256, num_layers=6, ffn_dim=1024, subsampling_channels=64),
        predictor=PredictorConfig(embed_dim=256, hidden_dim=256),
        joiner_dim=256,
    ),
    "medium": ModelConfig(
        encoder=EncoderConfig(dim=320, num_layers=12, ffn_dim=1280, conv_kernel=31, subsampling_channels=64),
        predictor=PredictorConfig(embed_dim=320, hidden_dim=320),
        joiner_dim=384,
    ),
    # The papers' model (arXiv 2409.07165).
    "large": ModelConfig(
        encoder=EncoderConfig(
            dim=512, num_layers=12, ffn_dim=2048, num_heads=4, conv_kernel=31, subsampling_channels=64
        ),
        predictor=PredictorConfig(embed_dim=512, hidden_dim=512),
        joiner_dim=640,
    ),
    # Branchformers of the published sizes (arXiv 2307.07421).
    "branchformer-small": ModelConfig(
        encoder=EncoderConfig(
            kind="branchformer",
            dim=256,
            num_layers=12,
            cgmlp_dim=1536,
            conv_kernel=31,
            summary_variant="full",
            subsampling_channels=64,
        ),
        predictor=PredictorConfig(embed_dim=256, hidden_dim=256),
        joiner_dim=256,
    ),
    "branchformer-large": ModelConfig(
        encoder=EncoderConfig(
            kind="branchformer",
            dim=512,
            num_layers=18,
            cgmlp_dim=3072,
            conv_kernel=31,
            summary_variant="full",
            subsampling_channels=64,
        ),
        predictor=PredictorConfig(embed_dim=512, hidden_dim=512),
        joiner_dim=640,
    ),
}
