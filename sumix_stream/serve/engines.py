"""Several engines over one model: each thread has its own streams and its own batches, and they share the weights."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from sumix_stream.decode.streaming import StreamingRecognizer
from sumix_stream.model.transducer import Transducer
from sumix_stream.serve.engine import Engine, Event, Session
from sumix_stream.serve.metrics import Metrics

# Beyond a few threads, what each does in Python waits for the others'.
_MOST_WORKERS = 4


def default_workers(recognizer: StreamingRecognizer) -> int:
    """One for each core, up to 4, for PyTorch on a CPU; one for a GPU and for a bundle, which use what there is.

    A batch keeps several cores busy with its products alone; all else in a step runs on one. Two batches need no more.
    """
    if not isinstance(recognizer.model, Transducer) or recognizer.model.device.type != "cpu":
        return 1
    return min(_MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class Engines:
    """A new session goes to the engine that has the fewest.

    Args:
        recognizer: used by the engines alone, from `start` to `stop`.
        count: of engines, each in a thread of its own with its share of PyTorch's threads.
    """

    def __init__(self, recognizer: StreamingRecognizer, metrics: Metrics, count: int = 1) -> None:
        if count < 1:
            raise ValueError(f"workers must be at least 1, got {count}")
        threads = None if count == 1 else max(1, torch.get_num_threads() // count)
        recognizers = [recognizer, *(recognizer.twin() for _ in range(count - 1))]
        self.engines = [Engine(each, metrics, threads) for each in recognizers]

    def start(self) -> None:
        for engine in self.engines:
            engine.start()

    def stop(self) -> None:
        for engine in self.engines:
            engine.stop()

    def open(self, sample_rate: int, report: Callable[[list[Event]], None]) -> Session:
        """A new session for audio of `sample_rate` Hz."""
        return min(self.engines, key=lambda engine: engine.num_sessions).open(sample_rate, report)

    @property
    def num_sessions(self) -> int:
        return sum(engine.num_sessions for engine in self.engines)
