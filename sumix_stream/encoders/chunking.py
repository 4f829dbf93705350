"""Dynamic chunk training: how the context of each training step is drawn (arXiv 2409.07165)."""

import random

from sumix_stream.config import ChunkConfig
from sumix_stream.context import BEYOND_ANY_LENGTH, ChunkContext
from sumix_stream.timebase import Timebase


class ChunkSampler:
    """Draws the context of each training step; the same on every rank, and again after a resume.

    Args:
        config: the distribution.
        seed: of the run; together with the step it determines the draw.
        timebase: the model's; None = frames of 40 ms.
    """

    def __init__(self, config: ChunkConfig, seed: int, timebase: Timebase | None = None) -> None:
        self.config = config
        self.seed = seed
        self._sizes = config.frames(timebase or Timebase())

    def draw(self, step: int, batch_size: int | None = None) -> ChunkContext:
        """Context of a step: one for the batch, or one for each of `batch_size` utterances if so configured."""
        rng = random.Random(f"chunk context {self.seed} {step}")
        if not self.config.per_utterance or batch_size is None:
            return ChunkContext(*self._draw_one(rng))
        import torch

        pairs = [self._draw_one(rng) for _ in range(batch_size)]
        columns = [
            torch.tensor([BEYOND_ANY_LENGTH if value is None else value for value in column])
            for column in zip(*pairs, strict=True)
        ]
        return ChunkContext(*columns)

    def _draw_one(self, rng: random.Random) -> tuple[int | None, int | None]:
        config = self.config
        if rng.random() < config.full_probability:
            return None, None
        chunk_size = rng.randint(*self._sizes)
        if rng.random() < config.limited_left_probability:
            return chunk_size, rng.randint(config.min_left, config.max_left)
        return chunk_size, None
