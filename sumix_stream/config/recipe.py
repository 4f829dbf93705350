"""One YAML file: everything bin/train needs."""

from dataclasses import dataclass, field

from sumix_stream.config.checks import require_choice
from sumix_stream.config.data import DataConfig, TokenizerConfig
from sumix_stream.config.model import ModelConfig
from sumix_stream.config.train import ChunkConfig, LossConfig, TrainConfig
from sumix_stream.registry import TASKS


@dataclass(frozen=True)
class RecipeConfig:
    """One YAML file: everything bin/train needs."""

    task: str = "transducer"
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    chunks: ChunkConfig = field(default_factory=ChunkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        require_choice(self, "task", TASKS.names)
