"""Configuration of models, data and training: frozen, strict, plain values only. Files: config.reader."""

from sumix_stream.config.checks import ConfigError, ValueNotAllowed
from sumix_stream.config.data import (
    NOISES,
    ConcatenateConfig,
    DataConfig,
    NoiseConfig,
    PauseConfig,
    ReverbConfig,
    SourceConfig,
    SpecAugmentConfig,
    TokenizerConfig,
)
from sumix_stream.config.model import PRESETS, EncoderConfig, ModelConfig, PredictorConfig
from sumix_stream.config.recipe import RecipeConfig
from sumix_stream.config.train import ChunkConfig, LossConfig, TrainConfig

__all__ = [
    "NOISES",
    "PRESETS",
    "ChunkConfig",
    "ConcatenateConfig",
    "ConfigError",
    "DataConfig",
    "EncoderConfig",
    "LossConfig",
    "ModelConfig",
    "NoiseConfig",
    "PauseConfig",
    "PredictorConfig",
    "RecipeConfig",
    "ReverbConfig",
    "SourceConfig",
    "SpecAugmentConfig",
    "TokenizerConfig",
    "TrainConfig",
    "ValueNotAllowed",
]
