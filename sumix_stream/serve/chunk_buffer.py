"""Audio of one stream that waits until it completes a chunk."""

from collections import deque

import numpy as np


class ChunkBuffer:
    """Samples in the order of their arrival. Its owner holds a lock.

    Args:
        piece: samples that are taken together at most, beyond what was asked for: larger packets are split.
    """

    def __init__(self, piece: int | None = None) -> None:
        self.num_samples = 0  # that wait
        self._piece = piece
        self._waiting: deque[tuple[np.ndarray, float]] = deque()

    def add(self, samples: np.ndarray, arrival: float = 0.0) -> None:
        """Append samples (S,) that came at a time in seconds."""
        step = self._piece or max(1, len(samples))
        for start in range(0, len(samples), step):
            self._waiting.append((samples[start : start + step], arrival))
        self.num_samples += len(samples)

    def take(self, at_least: int | None = None) -> tuple[np.ndarray, float]:
        """Whole packets or pieces of them, of `at_least` so many samples where so many wait (None = all), and when the
        last of them came. There must be some."""
        taken, size, arrival = [], 0, 0.0
        while self._waiting and (at_least is None or size < at_least):
            samples, arrival = self._waiting.popleft()
            taken.append(samples)
            size += len(samples)
        self.num_samples -= size
        return np.concatenate(taken), arrival
