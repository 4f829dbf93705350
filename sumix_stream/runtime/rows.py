"""The one layout of an encoder's state outside PyTorch's modules: a stream's arrays side by side in a row of bytes.

A batch of streams is joined by one copy and taken apart by another; a row's parts are views into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from sumix_stream.trees import check_arrays

_ALIGNMENT = 8  # bytes: parts of a row begin where any type may


class Rows:
    """How a state of one stream lies in a row.

    Args:
        parts: arrays (1, ...) of a stream by name, in order; their shapes and types count.

    `starts`: bytes before each part. `size`: bytes of a row.
    """

    def __init__(self, parts: Mapping[str, np.ndarray]) -> None:
        self.parts = dict(parts)
        ends = accumulate((part.nbytes + -part.nbytes % _ALIGNMENT for part in self.parts.values()), initial=0)
        *starts, self.size = ends
        self.starts = dict(zip(self.parts, starts, strict=True))

    def views(self, table: np.ndarray) -> dict[str, np.ndarray]:
        """The parts (B, ...) of a table of rows (B, size) uint8, which they share."""
        return {
            name: table[:, self.starts[name] : self.starts[name] + part.nbytes]
            .view(part.dtype)
            .reshape(len(table), *part.shape[1:])
            for name, part in self.parts.items()
        }

    def table(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Rows (B, size) uint8 of the parts (B, ...), in order."""
        table = np.zeros((len(arrays[0]) if arrays else 1, self.size), np.uint8)
        for view, array in zip(self.views(table).values(), arrays, strict=True):
            view[...] = array
        return table

    def save(self, row: np.ndarray) -> dict[str, np.ndarray]:
        """A row's parts by name, as copies."""
        return {name: view.copy() for name, view in self.views(row[None]).items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The inverse of `save`. Raises ValueError for other names, types or shapes."""
        check_arrays(self.parts, arrays)
        return self.table([arrays[name] for name in self.parts])[0]
