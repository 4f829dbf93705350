"""The seam between a model's arithmetic and all that uses it: who computes a stream's chunk.

B streams, F feature frames, T encoder frames, D encoder channels; N hypotheses, J joiner and P predictor channels, Y
predictor layers, V tokens with blank = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from sumix_stream.context import ChunkContext
from sumix_stream.features import NUM_BINS
from sumix_stream.timebase import Timebase

State = Any  # of one stream: a value that nobody but its runtime looks into, and that no step changes
Frames = Any  # (B, T, D) of a runtime's own arrays; `len`, slices and indices of the first two dimensions work


class PredictorState(NamedTuple):
    """LSTM state, (N, Y, P) float32 each."""

    hidden: np.ndarray
    cell: np.ndarray


class GreedyState(NamedTuple):
    """What a greedy search remembers of the tokens emitted so far."""

    projection: np.ndarray  # (B, J) predictor output in the joiner
    predictor: PredictorState


Found = tuple[list[int], list[int], list[float]]  # tokens, their frames in the given ones, their probabilities
GreedySearch = Callable[[Frames, np.ndarray, GreedyState, float, float, int], tuple[list[Found], GreedyState]]


class Runtime(Protocol):
    """A model under one context. Features enter as NumPy arrays; of frames and states only this runtime knows more.

    source: the model, as `registry.make_runtime` takes it for another context.
    search_greedily: greedy search of the runtime's own, equal to `search.greedy.greedy_decode`'s, or None: (frames,
        lengths (B,), state, blank_penalty, temperature, max_symbols) -> what each stream emitted, next state.
    beam_arrays: weights as `sumix_kernels.cpu.search_beams` takes them, or None.
    batch_sizes: that a step is prepared for at its first use, in rising order; none = no matter.
    can_fork: whether a process that has made one may be copied, and the copies go on with it.
    """

    name: str
    device: str
    source: Any
    blank_id: int
    vocab_size: int
    frame_dim: int  # D
    timebase: Timebase
    context: ChunkContext
    search_greedily: GreedySearch | None
    beam_arrays: tuple[np.ndarray, ...] | None
    batch_sizes: tuple[int, ...]
    can_fork: bool

    @classmethod
    def can_run(cls, model: Any, context: ChunkContext) -> str | None:
        """Why this runtime cannot run a model under a context; None = it can."""

    @property
    def fingerprint(self) -> str:
        """Names the model's weights and configuration."""

    def fresh_state(self) -> State:
        """Of a stream that has heard nothing."""

    def encode(
        self, feats: np.ndarray, lengths: np.ndarray, states: Sequence[State], final: np.ndarray
    ) -> tuple[Frames, list[State]]:
        """One chunk of every stream: its encoder frames (B, T, D), padded ones zero, and the next states.

        Under full context the chunk is the whole utterance and the state a fresh one.

        Args:
            feats: (B, F, 80) float32.
            lengths: (B,) valid feature frames; fewer than a chunk's only where final (B,) is true.
        """

    def nbytes(self, state: State) -> int:
        """Bytes kept of a stream's past."""

    def save(self, state: State) -> dict[str, np.ndarray]:
        """A stream's state as named arrays (1, ...), which every runtime of the same weights can load."""

    def load(self, arrays: Mapping[str, np.ndarray]) -> State:
        """The inverse of `save`. Raises ValueError for what it does not write."""

    def predictor_state(self, count: int) -> PredictorState:
        """Before the first blank."""

    def predict(self, tokens: np.ndarray, state: PredictorState) -> tuple[np.ndarray, PredictorState]:
        """tokens (N,) -> the predictor's output in the joiner (N, J), next state."""

    def project(self, frames: Frames) -> np.ndarray:
        """Encoder frames in the joiner, (B, T, J)."""

    def join(self, enc: np.ndarray, pred: np.ndarray) -> np.ndarray:
        """(..., J) twice, broadcast against each other -> logits (..., V), the caller's own."""


def chunk_frames(timebase: Timebase, context: ChunkContext) -> int | None:
    """Feature frames of a chunk; None under full context. Raises ValueError for a context of a training batch."""
    for value in (context.chunk_size, context.left_context):
        if value is not None and not isinstance(value, int):
            raise ValueError(f"recognition needs one chunk size and left context for the batch, got {context}")
    return None if context.chunk_size is None else timebase.feature_frames_per_chunk(context.chunk_size)


def check_chunk(feats: np.ndarray, lengths: np.ndarray, final: np.ndarray, window: int | None) -> None:
    """Raise ValueError for what `Runtime.encode` does not take."""
    if feats.ndim != 3 or feats.shape[1] == 0 or feats.shape[2] != NUM_BINS or feats.dtype != np.float32:
        raise ValueError(f"feats must be (B, F >= 1, {NUM_BINS}) float32, got {feats.shape} {feats.dtype}")
    if lengths.shape != feats.shape[:1] or final.shape != lengths.shape:
        raise ValueError(f"lengths and final must be ({len(feats)},), got {lengths.shape} and {final.shape}")
    if window is not None and (feats.shape[1] > window or ((lengths != window) & ~final).any()):
        raise ValueError(
            f"a chunk has {window} feature frames, fewer only where a stream ends, "
            f"got {feats.shape[1]} and lengths {lengths.tolist()}"
        )


def plain(frames: Frames) -> np.ndarray:
    """A runtime's frames as a NumPy array on the host."""
    return frames.cpu().numpy() if hasattr(frames, "cpu") else frames
