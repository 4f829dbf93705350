"""An opened bundle as a model: the parts of a `Transducer` that recognisers and searches use, on the CPU.

B streams, D encoder and P predictor channels, V tokens with blank = 0.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sumix_stream.encoders.states import PredictorState
from sumix_stream.runtime.bundle import OnnxFiles


class ExportedModel:
    """Its encoder is run by the decoder's BundleEncoder, under the one context of the bundle."""

    def __init__(self, bundle: OnnxFiles) -> None:
        self.bundle = bundle
        self.timebase, self.vocab_size, self.context = bundle.timebase, bundle.vocab_size, bundle.context
        self.blank_id = (bundle.blank_id + bundle.offset) % bundle.vocab_size
        self.device = torch.device("cpu")
        self.predictor = ExportedPredictor(bundle)
        self.joiner = ExportedJoiner(bundle)

    @property
    def fingerprint(self) -> str:
        """Names the files' contents."""
        return self.bundle.fingerprint


class ExportedPredictor:
    """As `LstmPredictor`'s steps."""

    def __init__(self, bundle: OnnxFiles) -> None:
        self.bundle = bundle

    def init_state(self, batch_size: int) -> PredictorState:
        return PredictorState(*map(torch.from_numpy, self.bundle.predictor_state(batch_size)))

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        """tokens (B,) of the model -> (B, P), next state."""
        own = (tokens.numpy() - self.bundle.offset) % self.bundle.vocab_size
        out, after = self.bundle.predict(own, [np.ascontiguousarray(part.numpy()) for part in state])
        return torch.from_numpy(out), PredictorState(*map(torch.from_numpy, after))


class ExportedJoiner:
    """As `Joiner`, but for the projections, which the file does with the rest."""

    def __init__(self, bundle: OnnxFiles) -> None:
        self.bundle = bundle

    def project_encoder(self, enc: Tensor) -> Tensor:
        return enc

    def project_predictor(self, pred: Tensor) -> Tensor:
        return pred

    def join(self, enc: Tensor, pred: Tensor) -> Tensor:
        """enc (..., D) and pred (..., P), broadcast against each other -> logits (..., V) of the model's tokens."""
        lead = torch.broadcast_shapes(enc.shape[:-1], pred.shape[:-1])
        given = (part.expand(*lead, -1).reshape(-1, part.shape[-1]).numpy() for part in (enc, pred))
        logits = torch.from_numpy(self.bundle.join(*given))
        if self.bundle.offset:
            logits = logits.roll(self.bundle.offset, -1)
        return logits.view(*lead, -1)
