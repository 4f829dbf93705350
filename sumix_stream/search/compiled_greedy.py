"""Greedy search by `sumix_kernels.cpu`, for a packed model: frame by frame, in one call.

On a CPU a frame's product takes less time than to ask PyTorch for it. A stream's tokens and confidences are the same
bits in every batch. B streams, T encoder frames, D channels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sumix_stream.encoders.states import StateRows
from sumix_stream.runtime.base import AcousticModel
from sumix_stream.runtime.compiled_steps import compiled_kernels
from sumix_stream.runtime.packed import PackedPredictor
from sumix_stream.search.options import SearchOptions


def can_compile(model: AcousticModel) -> bool:
    """Whether a model is a packed one, and Numba is here."""
    return isinstance(model.predictor, PackedPredictor) and compiled_kernels() is not None


def search_arrays(model: AcousticModel) -> tuple[np.ndarray, ...]:
    """Joiner and predictor of a packed model as compiled searches take them."""
    joiner = model.joiner
    predictor = joiner.project_predictor.weight.detach().numpy()
    return (*joiner.project_encoder.panels, *model.predictor.arrays, predictor, *joiner.output.panels)


class CompiledGreedy:
    """The search over rows of states.

    Args:
        model: packed.
        rows: how a `greedy.GreedyState` lies in a row.
    """

    def __init__(self, model: AcousticModel, rows: StateRows) -> None:
        self._kernels, self._model = compiled_kernels(), model
        self._places = [start // torch.float32.itemsize for start in rows.starts[1:]]
        self._arrays = search_arrays(model)

    def search(
        self, enc: Tensor, lengths: Tensor, table: Tensor, options: SearchOptions
    ) -> list[tuple[list[int], list[int], list[float]]]:
        """Tokens, frames and confidences of each stream. enc (B, T, D), lengths (B,) valid frames; table (B, bytes) of
        rows, whose states move."""
        states = table.view(torch.float32).numpy()
        arrays = (enc.contiguous().numpy(), lengths.numpy(), states, *self._places, *self._arrays)
        numbers = np.float32(options.blank_penalty), np.float32(options.temperature), options.max_symbols
        *columns, counts = self._kernels.search_greedily(*arrays, self._model.blank_id, *numbers)
        columns, end, found = [column.tolist() for column in columns], 0, []
        for count in counts.tolist():
            begin, end = end, end + count
            found.append(tuple(column[begin:end] for column in columns))
        return found
