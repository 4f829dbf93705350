"""Configuration of models, data and training: frozen, strict, plain values only. Files: config_reader."""

import contextlib
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sumix_stream.timebase import parse_duration


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the value and what is allowed."""


class ValueNotAllowed(ConfigError):
    """Raised by a dataclass, which knows its field but not the section it stands in; `from_dict` adds the section."""

    def __init__(self, key: str, value: Any, allowed: str) -> None:
        super().__init__(f"{key} must be {allowed}, got {value!r}")
        self.key, self.value, self.allowed = key, value, allowed


def _require(config: Any, name: str, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueNotAllowed(name, getattr(config, name), allowed)


def _require_range(config: Any, names: str, low: float, high: float = math.inf, *, open_ends: bool = False) -> None:
    """Each of the (space-separated) fields, where set, is finite and in [low, high], or (low, high) with open ends."""
    for name in names.split():
        value = getattr(config, name)
        if value is None:
            continue
        inside = low < value < high if open_ends else low <= value <= high
        if high == math.inf:
            allowed = f"above {low}" if open_ends else f"at least {low}"
        else:
            allowed = f"between {low} and {high}" + (", both excluded" if open_ends else "")
        _require(config, name, inside and math.isfinite(value), allowed)


def _require_choice(config: Any, name: str, choices: Iterable[str]) -> None:
    choices = tuple(choices)
    value = getattr(config, name)
    nearest = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    _require(config, name, value in choices, f"one of {', '.join(choices)}{hint}")


def _require_interval(config: Any, names: str, low: float = -math.inf, high: float = math.inf) -> None:
    """Each of the (space-separated) fields is two finite numbers, the lowest and the highest, within [low, high]."""
    for name in names.split():
        ends = getattr(config, name)
        holds = len(ends) == 2 and low <= ends[0] <= ends[1] <= high and all(map(math.isfinite, ends))
        limits = "" if (low, high) == (-math.inf, math.inf) else f", between {low:g} and {high:g}"
        _require(config, name, holds, f"[lowest, highest]{limits}")


def _path(default: str | tuple[str, ...]) -> Any:
    """A field that holds a path or paths, which `load_recipe` resolves."""
    return field(default=default, metadata={"path": True})


def _require_chunk_size(config: Any, name: str, words: tuple[str, ...]) -> None:
    """A text form of a chunk; whether a duration is a whole number of frames is for the model's timebase to say."""
    text = getattr(config, name)
    holds = text in words or (text.isdecimal() and int(text) > 0)
    if not holds:
        with contextlib.suppress(ValueError):
            holds = parse_duration(text) > 0
    allowed = f"{', '.join(words)}, a duration such as 640ms or 0.64s, or a number of encoder frames such as 16"
    _require(config, name, holds, allowed)


@dataclass(frozen=True)
class EncoderConfig:
    """Conformer encoder. Sizes in channels; `conv_kernel` in encoder frames (odd)."""

    dim: int = 144
    num_layers: int = 6
    ffn_dim: int = 576
    mixer: str = "summary"  # summary | attention
    summary_variant: str = "fast"  # fast | full | lite | expdecay
    num_heads: int = 4  # attention heads; blocks of the block-diagonal projections of `full`
    decay: float = 0.995  # expdecay: weight of a frame at distance 1
    conv_kernel: int = 15
    subsampling_channels: int = 32
    dropout: float = 0.1

    def __post_init__(self) -> None:
        _require_range(self, "dim num_layers ffn_dim num_heads conv_kernel subsampling_channels", 1)
        _require_choice(self, "mixer", ("summary", "attention"))
        _require_choice(self, "summary_variant", ("fast", "full", "lite", "expdecay"))
        _require(self, "decay", 0 < self.decay <= 1, "above 0 and at most 1")
        _require(self, "conv_kernel", self.conv_kernel % 2 == 1, "odd (the convolution is centred)")
        _require_range(self, "dropout", 0, 1)
        if self.mixer == "attention" or self.summary_variant == "full":
            _require(self, "num_heads", self.dim % self.num_heads == 0, f"a divisor of dim ({self.dim})")


@dataclass(frozen=True)
class PredictorConfig:
    """LSTM predictor over the tokens emitted so far."""

    embed_dim: int = 144
    hidden_dim: int = 160
    num_layers: int = 1
    dropout: float = 0.1
    token_dropout: float = 0.0  # share of past tokens hidden in training, so that the encoder carries what was said

    def __post_init__(self) -> None:
        _require_range(self, "embed_dim hidden_dim num_layers", 1)
        _require_range(self, "dropout token_dropout", 0, 1)


@dataclass(frozen=True)
class ModelConfig:
    """A conformer transducer: everything but the vocabulary size, which the tokenizer gives."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    joiner_dim: int = 160
    ctc: bool = True  # auxiliary CTC head

    def __post_init__(self) -> None:
        _require_range(self, "joiner_dim", 1)


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Masks of SpecAugment (arXiv 1904.08779), drawn for each utterance."""

    num_time_masks: int = 2
    max_time_mask: int = 20  # feature frames (10 ms)
    num_freq_masks: int = 2
    max_freq_mask: int = 20  # bins
    time_warp: int = 0  # feature frames; 0 = none

    def __post_init__(self) -> None:
        _require_range(self, "num_time_masks max_time_mask num_freq_masks time_warp", 0)
        _require_range(self, "max_freq_mask", 0, 80)


NOISES = ("white", "pink", "brown", "hum", "babble")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the training objective (arXiv 2206.13236 for the pruned loss)."""

    prune_range: int = 5
    rnnt_type: str = "regular"  # regular | modified | constrained
    delay_penalty: float = 0.0
    lm_only_scale: float = 0.25
    am_only_scale: float = 0.0
    simple_scale: float = 0.5  # final weight of the simple loss; starts at 1
    warmup_steps: int = 200  # steps over which simple_scale falls from 1 and the pruned scale rises from 0.1 to 1
    ctc_scale: float = 0.3
    cr_ctc_scale: float = 0.0  # consistency of two views' CTC posteriors (arXiv 2410.05101: 0.2); twice the computing
    cr_ctc_masks: SpecAugmentConfig | None = None  # of a view, none before; null = data.spec_augment's, 2.5 x in time

    def __post_init__(self) -> None:
        _require_range(self, "prune_range", 2)
        _require_choice(self, "rnnt_type", ("regular", "modified", "constrained"))
        _require_range(self, "delay_penalty simple_scale warmup_steps ctc_scale cr_ctc_scale", 0)
        one_clock = self.cr_ctc_masks is None or self.cr_ctc_masks.time_warp == 0
        _require(self, "cr_ctc_masks", one_clock, "without time_warp: both views have one clock")
        _require_range(self, "lm_only_scale am_only_scale", 0, 1)
        mixed = self.lm_only_scale + self.am_only_scale
        _require(self, "am_only_scale", mixed < 1, f"below 1 - lm_only_scale ({1 - self.lm_only_scale:g})")


@dataclass(frozen=True)
class ChunkConfig:
    """Dynamic chunk training: the distribution contexts are drawn from (arXiv 2409.07165)."""

    full_probability: float = 0.4
    min_chunk: int = 8  # encoder frames
    max_chunk: int = 32  # encoder frames
    limited_left_probability: float = 0.75
    min_left: int = 2  # chunks
    max_left: int = 32  # chunks
    per_utterance: bool = False  # draw one context for each utterance instead of one for the batch

    def __post_init__(self) -> None:
        _require_range(self, "full_probability limited_left_probability", 0, 1)
        _require_range(self, "min_chunk", 1)
        _require_range(self, "max_chunk", self.min_chunk)
        _require_range(self, "min_left", 0)
        _require_range(self, "max_left", self.min_left)


@dataclass(frozen=True)
class NoiseConfig:
    """Noise in training utterances: of `recordings` where they are given, else simulated."""

    probability: float = 0.0  # share of utterances that get noise
    snr: tuple[float, ...] = (5.0, 25.0)  # dB, lowest and highest: of the speech without its pauses
    kinds: tuple[str, ...] = NOISES  # simulated; babble is other utterances of the batch
    recordings: tuple[str, ...] = _path(())  # Lhotse manifests of recordings or cuts, such as MUSAN's

    def __post_init__(self) -> None:
        _require_range(self, "probability", 0, 1)
        _require_interval(self, "snr", -30, 100)
        known = bool(self.kinds) and set(self.kinds) <= set(NOISES)
        _require(self, "kinds", known, f"some of {', '.join(NOISES)}")


@dataclass(frozen=True)
class ReverbConfig:
    """Reverberation of training utterances: impulse responses of `recordings` where they are given, else simulated."""

    probability: float = 0.0  # share of utterances that are reverberated
    rt60: tuple[float, ...] = (0.1, 0.6)  # seconds of 60 dB of decay in simulated rooms, lowest and highest
    recordings: tuple[str, ...] = _path(())  # Lhotse manifests of recordings or cuts, such as RIRS_NOISES'

    def __post_init__(self) -> None:
        _require_range(self, "probability", 0, 1)
        _require_interval(self, "rt60", 0.05, 1)


@dataclass(frozen=True)
class ConcatenateConfig:
    """Utterances of one speaker joined to longer ones in training, with a gap of 0.1 to 0.6 s of their noise floor."""

    probability: float = 0.0  # that the next utterance is joined to the ones before it
    max_duration: float = 30.0  # seconds that nothing joined exceeds

    def __post_init__(self) -> None:
        _require_range(self, "probability", 0, 1)
        _require_range(self, "max_duration", 0, open_ends=True)


@dataclass(frozen=True)
class PauseConfig:
    """Long pauses, of the recording's own noise floor: at the start or end of an utterance, or between joined ones."""

    probability: float = 0.0  # share of utterances that get a pause
    seconds: tuple[float, ...] = (1.0, 10.0)  # lowest and highest

    def __post_init__(self) -> None:
        _require_range(self, "probability", 0, 1)
        _require_interval(self, "seconds", 0, 60)


@dataclass(frozen=True)
class DataConfig:
    """What to train and validate on; durations in seconds."""

    train_cuts: tuple[str, ...] = _path(())  # Lhotse cut manifests, jsonl.gz
    valid_cuts: tuple[str, ...] = _path(())  # none = no validation
    max_duration: float = 120.0  # seconds of audio in a batch, padding included
    max_lattice: int | None = None  # cells: encoder frames x (tokens + 1), padded, of all utterances of a batch
    max_cuts: int | None = None  # utterances in a batch
    num_buckets: int = 10  # of similar length, out of which batches are drawn
    num_workers: int = 0
    min_utterance: float = 0.1
    max_utterance: float = 30.0
    speed_perturb: tuple[float, ...] = ()  # e.g. (0.9, 1.1); 1.0 is always there
    concatenate: ConcatenateConfig = field(default_factory=ConcatenateConfig)
    pause: PauseConfig = field(default_factory=PauseConfig)
    reverb: ReverbConfig = field(default_factory=ReverbConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    telephone: float = 0.0  # share of training utterances heard through a telephone: 300 to 3400 Hz, 8 bits
    gain: tuple[float, ...] = (0.0, 0.0)  # dB, lowest and highest change of level in training
    spec_augment: SpecAugmentConfig | None = field(default_factory=SpecAugmentConfig)

    def __post_init__(self) -> None:
        _require_range(self, "max_duration", 0, open_ends=True)
        _require_range(self, "max_lattice max_cuts num_buckets", 1)
        _require_range(self, "num_workers min_utterance", 0)
        _require_range(self, "max_utterance", self.min_utterance, open_ends=True)
        _require_range(self, "telephone", 0, 1)
        _require_interval(self, "gain", -60, 40)
        allowed = "factors between 0.5 and 2"
        _require(self, "speed_perturb", all(0.5 <= factor <= 2 for factor in self.speed_perturb), allowed)


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer, whose vocabulary is the model's."""

    path: str = _path("")  # sentencepiece model, made by the recipe's prepare


@dataclass(frozen=True)
class TrainConfig:
    """The run: budget, optimiser, precision, devices, what is logged and kept."""

    exp_dir: str = _path("exp")
    seed: int = 0
    chunk_size: str = "dynamic"  # full | dynamic | 640ms | 0.64s | 16 (encoder frames)
    left_context: int | None = None  # chunks, when chunk_size is fixed; None = unlimited
    max_steps: int = 1000
    learning_rate: float | None = None  # peak; None = a default for the encoder's width and the seconds of a step
    warmup_fraction: float = 0.1  # of max_steps
    warmup_hours: float | None = None  # of audio, instead: stays when max_steps or the batches change
    final_lr_fraction: float = 0.05
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    accumulate: int = 1  # batches that each process takes for a step
    step_batches: int | None = None  # batches of a step over all processes, however many; instead of accumulate
    compress_gradients: bool = False  # several processes exchange gradients in bf16: half the bytes
    precision: str = "32-true"  # 32-true | bf16-mixed | 16-mixed
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    log_interval: int = 20  # steps
    valid_interval: int = 500  # steps
    valid_chunk_size: str = "640ms"
    valid_left_context: int | None = 4
    save_interval: int = 500  # steps
    save_minutes: float | None = None  # save also when the last save is so long ago
    keep_best: int = 1
    keep_last: int = 2  # checkpoints; should the last one be damaged, the one before it serves
    average: str = "none"  # none | ema | growing: running average of the weights, for validation and recognition
    ema_decay: float = 0.999  # of ema: what the old average keeps each step
    average_age: float = 0.1  # of growing: mean age of the averaged weights, as a share of the steps so far
    try_worst_batches: int | None = None  # of the largest, before training; None = 3 on a GPU, none on a CPU
    max_bad_steps: int = 20  # consecutive steps with a non-finite loss or gradient before the run stops

    def __post_init__(self) -> None:
        _require(self, "exp_dir", bool(self.exp_dir), "a folder")
        _require_range(self, "seed left_context valid_left_context", 0)
        _require_chunk_size(self, "chunk_size", ("full", "dynamic"))
        _require_chunk_size(self, "valid_chunk_size", ("full",))
        _require_range(self, "max_steps accumulate devices num_nodes log_interval valid_interval save_interval", 1)
        _require_range(self, "step_batches keep_best keep_last max_bad_steps", 1)
        _require_choice(self, "average", ("none", "ema", "growing"))
        _require_range(self, "warmup_hours", 0)
        _require_range(self, "ema_decay", 0, 1, open_ends=True)
        _require(self, "average_age", 0 < self.average_age <= 0.5, "above 0 and at most 0.5 (all steps alike)")
        _require_range(self, "learning_rate clip_norm save_minutes", 0, open_ends=True)
        _require_range(self, "try_worst_batches", 0)
        _require_range(self, "warmup_fraction final_lr_fraction", 0, 1)
        _require_range(self, "weight_decay", 0)
        _require_choice(self, "precision", ("32-true", "bf16-mixed", "16-mixed"))
        _require_choice(self, "accelerator", ("auto", "cpu", "gpu", "cuda", "mps"))
        _require(self, "strategy", bool(self.strategy), "a Lightning Fabric strategy, such as auto or ddp")


@dataclass(frozen=True)
class RecipeConfig:
    """One YAML file: everything bin/train needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    chunks: ChunkConfig = field(default_factory=ChunkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


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
}
