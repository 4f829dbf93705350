"""One YAML file: everything bin/train needs."""

import difflib
from dataclasses import dataclass, field

from sumix_stream.config.checks import ConfigError, require_choice
from sumix_stream.config.data import DataConfig, TokenizerConfig
from sumix_stream.config.model import ModelConfig
from sumix_stream.config.train import ChunkConfig, LossConfig, TrainConfig
from sumix_stream.registry import TASKS


@dataclass(frozen=True)
class RecipeConfig:
    """One YAML file: everything bin/train needs."""

    task: str = "transducer"  # what is learnt; one of the registry
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    chunks: ChunkConfig = field(default_factory=ChunkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        require_choice(self, "task", TASKS.names)
        self.chunks.frames(self.model.encoder.timebase)
        for name in () if self.model.encoder.streams else ("chunk_size", "valid_chunk_size"):
            if getattr(self.train, name) != "full":
                raise ConfigError(
                    f"train.{name} must be full for model.encoder.mixer {self.model.encoder.mixer}, which hears whole "
                    f"utterances only, got {getattr(self.train, name)!r}"
                )
        names, best = [name for name in self.data.valid_sets if name], self.train.best_by
        if best and best not in names:
            nearest = difflib.get_close_matches(best, names, n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            allowed = f"one of the sets of data.valid_cuts, {', '.join(names)}{hint}" if names else "left out"
            why = "" if names else ": data.valid_cuts has no sets with names"
            raise ConfigError(f"train.best_by must be {allowed}, got {best!r}{why}")

    @property
    def valid_sets(self) -> dict[str, tuple[str, ...]]:
        """The manifests of each validation set by name, the one that the best checkpoint goes by first."""
        sets = self.data.valid_sets
        first = {self.train.best_by: sets[self.train.best_by]} if self.train.best_by else {}
        return first | sets
