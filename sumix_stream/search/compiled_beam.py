"""Modified beam search by `sumix_kernels.cpu`, for a packed model without language model and hotwords, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sumix_stream.runtime.base import AcousticModel
from sumix_stream.runtime.compiled_steps import compiled_kernels
from sumix_stream.search.compiled_greedy import search_arrays
from sumix_stream.search.history import Alignments
from sumix_stream.search.options import SearchOptions

if TYPE_CHECKING:
    from sumix_stream.search.beam import Beams


def search_beams(
    model: AcousticModel,
    enc: Tensor,
    lengths: Tensor,
    beams: Beams,
    best: Tensor,
    alignments: Alignments,
    options: SearchOptions,
    multiplier: int,
) -> None:
    """Go on over frames (B, T, D): beams and best (B,) are moved in place, alignments are added to.

    Args:
        beams: whose tensors nobody else has.
        multiplier: of the hash of sequences.
    """
    (B, T, _), K = enc.shape, options.beam
    predicted = beams.predicted
    own = (beams.scores, beams.hashes, beams.parents, beams.last, predicted.projection)
    own = [part.view(B, K, *part.shape[1:]).numpy() for part in (*own, *predicted.predictor)]
    parents, tokens = torch.empty(2, T, B, K, dtype=torch.int64).unbind()
    log_probs = torch.empty(T, B, K)
    numbers = model.blank_id, np.float32(options.blank_penalty), np.float32(options.temperature), multiplier
    compiled_kernels().search_beams(
        enc.float().contiguous().numpy(), lengths.numpy(), *own, best.numpy(), *search_arrays(model), *numbers,
        parents.numpy(), tokens.numpy(), log_probs.numpy(),
    )  # fmt: skip
    for frame in zip(parents, tokens, log_probs, strict=True):
        alignments.add(*frame)
