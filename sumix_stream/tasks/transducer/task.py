"""The task `transducer`: speech to tokens."""

from sumix_stream.config import LossConfig, ModelConfig
from sumix_stream.tasks.base import Weights
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.transducer.losses import loss_weights
from sumix_stream.tasks.transducer.model import Transducer


class TransducerTask:
    """Pruned RNN-T with a simple loss and an auxiliary CTC loss; validated by word error rate."""

    unusable = "more tokens than frames allow"

    def build(self, config: ModelConfig, num_outputs: int, seed: int) -> Transducer:
        return build_model(config, num_outputs, seed)

    def weights(self, step: int, config: LossConfig) -> Weights:
        return loss_weights(step, config)
