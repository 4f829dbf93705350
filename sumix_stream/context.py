"""What a frame may see: the chunk context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sumix_stream.timebase import Timebase, parse_duration

if TYPE_CHECKING:
    from torch import Tensor

# Stands for "whole utterance" and "unlimited" inside per-utterance tensors, which cannot hold None:
# every chunk size past an utterance's length means the same.
BEYOND_ANY_LENGTH = 2**30


@dataclass(frozen=True)
class ChunkContext:
    """Frame t sees every valid frame of its own chunk and of the `left_context` chunks before it, never a later chunk.

    chunk_size: encoder frames; None = the whole utterance is one chunk.
    left_context: chunks; None = unlimited.
    In training both may be int64 tensors of shape (B,) on the CPU: one context for each utterance of a batch.
    """

    chunk_size: int | Tensor | None
    left_context: int | Tensor | None = None

    def __post_init__(self) -> None:
        for name, least in (("chunk_size", 1), ("left_context", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or (isinstance(value, int) and value < least):
                raise ValueError(f"{name} must be an integer >= {least} or None, got {value!r}")

    @classmethod
    def full(cls) -> ChunkContext:
        """Every frame sees the whole utterance."""
        return cls(None, None)

    @classmethod
    def parse(cls, text: str | int, left_context: int | None = None, timebase: Timebase | None = None) -> ChunkContext:
        """Read a chunk size as written on command lines: `full`, `640ms`, `0.64s`, `16` (encoder frames).

        Raises ValueError for anything else, and for a duration that is no whole number of encoder frames
        (naming the two nearest that are).
        """
        if isinstance(text, int):
            return cls(text, left_context)
        word = text.strip().lower()
        if word == "full":
            return cls(None, left_context)
        if word == "dynamic":
            raise ValueError(
                "chunk size 'dynamic' is for training only; decode with full, 640ms or 16 (encoder frames)"
            )
        if word.isdigit():
            return cls(int(word), left_context)
        try:
            seconds = parse_duration(word)
        except ValueError:
            raise ValueError(
                f"chunk size must be full, a duration (640ms, 0.64s) or encoder frames (16), got {text!r}"
            ) from None
        return cls((timebase or Timebase()).encoder_frames(seconds), left_context)

    def repeated(self, times: int) -> ChunkContext:
        """The context of a batch that has every utterance `times` times, one whole batch behind the other."""
        values = (self.chunk_size, self.left_context)
        return ChunkContext(*(v if v is None or isinstance(v, int) else v.repeat(times) for v in values))

    def __str__(self) -> str:
        left = "unlimited" if self.left_context is None else f"{self.left_context} chunks"
        return "full" if self.chunk_size is None else f"{self.chunk_size} frames, left {left}"
