"""The one constructor of models: training, decoding and export all come through here."""

import torch

from sumix_stream.config import PRESETS, ModelConfig
from sumix_stream.tasks.transducer.model import Transducer


def build_model(config: str | ModelConfig, vocab_size: int = 500, seed: int = 0) -> Transducer:
    """An untrained model on the CPU in evaluation mode; equal arguments give equal weights.

    Args:
        config: the name of one of `PRESETS`, such as tiny, or a ModelConfig.
        vocab_size: tokens, blank (0) included.
        seed: of the weights. The global random state is left as it was.
    """
    if isinstance(config, str):
        if config not in PRESETS:
            raise ValueError(f"config must be a ModelConfig or one of {', '.join(PRESETS)}, got {config!r}")
        config = PRESETS[config]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transducer(config, vocab_size).eval()
