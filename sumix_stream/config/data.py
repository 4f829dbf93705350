"""What to train on, and how utterances are augmented on the fly."""

import re
from dataclasses import dataclass, field

from sumix_stream.config.checks import PATH, path_field, require, require_interval, require_range


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Masks of SpecAugment (arXiv 1904.08779), drawn for each utterance."""

    num_time_masks: int = 2  # masks of an utterance
    max_time_mask: int = 20  # feature frames (10 ms)
    num_freq_masks: int = 2  # masks of an utterance
    max_freq_mask: int = 20  # bins
    time_warp: int = 0  # feature frames; 0 = none

    def __post_init__(self) -> None:
        require_range(self, "num_time_masks max_time_mask num_freq_masks time_warp", 0)
        require_range(self, "max_freq_mask", 0, 80)


NOISES = ("white", "pink", "brown", "hum", "babble")


@dataclass(frozen=True)
class NoiseConfig:
    """Noise in training utterances: of `recordings` where they are given, else simulated."""

    probability: float = 0.0  # share of utterances that get noise
    snr: tuple[float, ...] = (5.0, 25.0)  # dB, lowest and highest: of the speech without its pauses
    kinds: tuple[str, ...] = NOISES  # simulated; babble is other utterances of the batch
    recordings: tuple[str, ...] = path_field(())  # Lhotse manifests of recordings or cuts, such as MUSAN's

    def __post_init__(self) -> None:
        require_range(self, "probability", 0, 1)
        require_interval(self, "snr", -30, 100)
        known = bool(self.kinds) and set(self.kinds) <= set(NOISES)
        require(self, "kinds", known, f"some of {', '.join(NOISES)}")


@dataclass(frozen=True)
class ReverbConfig:
    """Reverberation of training utterances: impulse responses of `recordings` where they are given, else simulated."""

    probability: float = 0.0  # share of utterances that are reverberated
    rt60: tuple[float, ...] = (0.1, 0.6)  # seconds of 60 dB of decay in simulated rooms, lowest and highest
    recordings: tuple[str, ...] = path_field(())  # Lhotse manifests of recordings or cuts, such as RIRS_NOISES'

    def __post_init__(self) -> None:
        require_range(self, "probability", 0, 1)
        require_interval(self, "rt60", 0.05, 1)


@dataclass(frozen=True)
class ConcatenateConfig:
    """Utterances of one speaker joined to longer ones in training, with a gap of 0.1 to 0.6 s of their noise floor."""

    probability: float = 0.0  # that the next utterance is joined to the ones before it
    max_duration: float = 30.0  # seconds that nothing joined exceeds

    def __post_init__(self) -> None:
        require_range(self, "probability", 0, 1)
        require_range(self, "max_duration", 0, open_ends=True)


@dataclass(frozen=True)
class PauseConfig:
    """Long pauses, of the recording's own noise floor: at the start or end of an utterance, or between joined ones."""

    probability: float = 0.0  # share of utterances that get a pause
    seconds: tuple[float, ...] = (1.0, 10.0)  # lowest and highest

    def __post_init__(self) -> None:
        require_range(self, "probability", 0, 1)
        require_interval(self, "seconds", 0, 60)


@dataclass(frozen=True)
class SourceConfig:
    """A training manifest with its part in what is heard."""

    path: str = path_field("")  # Lhotse cut manifest, jsonl.gz
    weight: float = 1.0  # share of the training audio, to those of the other sources

    def __post_init__(self) -> None:
        require(self, "path", bool(self.path), "a cut manifest")
        require_range(self, "weight", 0, open_ends=True)


ValidSets = tuple[str, ...] | dict[str, str]
_SET_NAME = re.compile(r"[\w.-]+")  # it becomes a part of tags and file names


@dataclass(frozen=True)
class DataConfig:
    """What to train and validate on; durations in seconds."""

    train_cuts: tuple[str | SourceConfig, ...] = path_field(())  # Lhotse cut manifests, or {path: A, weight: 0.3} each
    valid_cuts: ValidSets = field(default_factory=tuple, metadata=PATH)  # also {name: manifest}; none = no validation
    max_duration: float = 120.0  # seconds of audio in a batch, padding included
    max_lattice: int | None = None  # cells: encoder frames x (tokens + 1), padded, of all utterances of a batch
    max_cuts: int | None = None  # utterances in a batch
    num_buckets: int = 10  # of similar length, out of which batches are drawn
    num_workers: int = 0  # processes that make batches; 0 = the training process does
    min_utterance: float = 0.1  # seconds; shorter ones are left out
    max_utterance: float = 30.0  # seconds; longer ones are left out
    speed_perturb: tuple[float, ...] = ()  # e.g. (0.9, 1.1); 1.0 is always there
    concatenate: ConcatenateConfig = field(default_factory=ConcatenateConfig)
    pause: PauseConfig = field(default_factory=PauseConfig)
    reverb: ReverbConfig = field(default_factory=ReverbConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    telephone: float = 0.0  # share of training utterances heard through a telephone: 300 to 3400 Hz, 8 bits
    gain: tuple[float, ...] = (0.0, 0.0)  # dB, lowest and highest change of level in training
    spec_augment: SpecAugmentConfig | None = field(default_factory=SpecAugmentConfig)

    def __post_init__(self) -> None:
        require_range(self, "max_duration", 0, open_ends=True)
        require_range(self, "max_lattice max_cuts num_buckets", 1)
        require_range(self, "num_workers min_utterance", 0)
        require_range(self, "max_utterance", self.min_utterance, open_ends=True)
        require_range(self, "telephone", 0, 1)
        require_interval(self, "gain", -60, 40)
        allowed = "factors between 0.5 and 2"
        require(self, "speed_perturb", all(0.5 <= factor <= 2 for factor in self.speed_perturb), allowed)
        weighted = sum(isinstance(source, SourceConfig) for source in self.train_cuts)
        alike = weighted in (0, len(self.train_cuts))
        require(self, "train_cuts", alike, "all plain manifests, or {path: A, weight: 1} each: give every one a weight")
        names = self.valid_cuts if isinstance(self.valid_cuts, dict) else {}
        plain = all(_SET_NAME.fullmatch(name) and path for name, path in names.items())
        require(self, "valid_cuts", plain, "manifests by names of letters, digits and . _ -")

    @property
    def train_paths(self) -> tuple[str, ...]:
        """The training manifests."""
        return tuple(source.path if isinstance(source, SourceConfig) else source for source in self.train_cuts)

    @property
    def train_weights(self) -> tuple[float, ...]:
        """The weights of `train_paths`; empty where all is heard once in an epoch."""
        return tuple(source.weight for source in self.train_cuts if isinstance(source, SourceConfig))

    @property
    def valid_sets(self) -> dict[str, tuple[str, ...]]:
        """The manifests of each validation set; the name of a plain list is empty."""
        if isinstance(self.valid_cuts, dict):
            return {name: (path,) for name, path in self.valid_cuts.items()}
        return {"": self.valid_cuts} if self.valid_cuts else {}


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer, whose vocabulary is the model's."""

    path: str = path_field("")  # sentencepiece model, made by the recipe's prepare
