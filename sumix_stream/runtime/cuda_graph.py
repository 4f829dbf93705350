"""A step of many streams on a GPU as one CUDA graph.

A step is hundreds of small kernels, whose launches cost more than their work. Captured once, the same step is played
as a whole: inputs and outputs keep their memory, so nothing is allocated or launched by itself. A graph has one number
of streams, so that a batch is filled up to the next of GRAPH_SIZES.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sumix_stream.features import NUM_BINS

GRAPH_SIZES = (8, 16, 32, 64)  # streams; larger batches take multiples of the last
_WARM_UPS = 3  # before a capture: libraries are loaded and kernels tuned, which a graph cannot hold

Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph | None  # None: on another device, where a step is only filled up
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class StepGraphs:
    """A step, captured at its first use with so many streams.

    Args:
        step: feats (S, window, 80), lengths (S,), rows (S, bytes) -> frames (S, C, D), next rows; of streams by
            themselves, and without a look at any number on the device.
    """

    def __init__(self, step: Step, window: int, num_bytes: int, device: torch.device) -> None:
        self._step, self._window, self._num_bytes, self._device = step, window, num_bytes, device
        self._graphs: dict[int, _Graph] = {}

    def step(self, feats: Tensor, lengths: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """As `step`, for any number of streams B and up to `window` feature frames: frames (B, C, D), rows."""
        B, num_frames, _ = feats.shape
        last = GRAPH_SIZES[-1]
        size = next((size for size in GRAPH_SIZES if size >= B), B + -B % last)
        if size not in self._graphs:
            self._graphs[size] = self._capture(size)
        graph, inputs, outputs = self._graphs[size]
        inputs[0][:B, :num_frames].copy_(feats, non_blocking=True)
        inputs[1].zero_()
        inputs[1][:B].copy_(lengths, non_blocking=True)
        inputs[2][:B].copy_(table)
        if graph is None:
            outputs = self._step(*inputs)
        else:
            graph.replay()
        frames, after = (out[:B].clone() for out in outputs)  # a graph's own are overwritten by the next step
        return frames, after

    def _capture(self, size: int) -> _Graph:
        inputs = (
            torch.zeros(size, self._window, NUM_BINS, device=self._device),
            torch.zeros(size, dtype=torch.int64, device=self._device),
            torch.zeros(size, self._num_bytes, dtype=torch.uint8, device=self._device),
        )
        if self._device.type != "cuda":
            return _Graph(None, inputs, ())
        side, main = torch.cuda.Stream(self._device), torch.cuda.current_stream(self._device)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._step(*inputs)
        main.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._step(*inputs)
        return _Graph(graph, inputs, outputs)
