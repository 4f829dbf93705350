"""The tokens that the hypotheses of a beam are made of, kept by reference frame by frame and written out by chunk.

B streams, A of them with frames left, K hypotheses of a stream, T frames of a chunk, U tokens of the longest
hypothesis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_SETTLE = 64  # tokens of a hypothesis from which on it is worth looking for those that all hypotheses share


class Settled:
    """Tokens that all hypotheses of a stream share, which no more can change: the first `count` of three lists.

    States that follow each other share the lists, and one that goes on from an older state copies them first.
    """

    def __init__(self) -> None:
        self._lists: tuple[list[int], list[int], list[float]] = ([], [], [])
        self.count = 0

    def grown(self, tokens: list[int], frames: list[int], confidence: list[float]) -> Settled:
        """These tokens and more."""
        result = Settled()
        result._lists = self._lists if len(self._lists[0]) == self.count else self.lists()
        for values, new in zip(result._lists, (tokens, frames, confidence), strict=True):
            values.extend(new)
        result.count = self.count + len(tokens)
        return result

    def lists(self) -> tuple[list[int], list[int], list[float]]:
        """Tokens, frames and probabilities, as copies."""
        return tuple(values[: self.count] for values in self._lists)


class History(NamedTuple):
    """Tokens of each hypothesis: those of `settled`, then its own, padded to the longest."""

    tokens: np.ndarray  # (B, K, U) int32
    frames: np.ndarray  # (B, K, U) int32, counted from the start of the stream
    log_probs: np.ndarray  # (B, K, U) of each token at its frame
    num_tokens: np.ndarray  # (B, K) beyond the settled ones
    settled: tuple[Settled, ...]  # of each stream

    @classmethod
    def init(cls, batch_size: int, beam: int) -> History:
        empty = np.zeros((batch_size, beam, 0), np.int32)
        num_tokens = np.zeros((batch_size, beam), np.int64)
        return cls(empty, empty.copy(), empty.astype(np.float32), num_tokens, (Settled(),) * batch_size)

    @staticmethod
    def stack(parts: Sequence[History]) -> History:
        """Join streams of any length."""
        width = max(part.tokens.shape[2] for part in parts)
        *columns, settled = zip(*(part.widened(width) for part in parts), strict=True)
        return History(*map(np.concatenate, columns), sum(settled, ()))

    def unstack(self) -> list[History]:
        """One for each stream, as wide as it needs; the parts own their memory."""
        widths = self.num_tokens.max(1).tolist()
        return [
            History(
                *(part[b : b + 1, :, :width].copy() for part in self[:3]),
                self.num_tokens[b : b + 1].copy(),
                (settled,),
            )
            for b, (width, settled) in enumerate(zip(widths, self.settled, strict=True))
        ]

    def select(self, streams: np.ndarray) -> History:
        """The streams in this order."""
        return History(*(part[streams] for part in self[:4]), tuple(self.settled[n] for n in streams.tolist()))

    def widened(self, width: int) -> History:
        """Padded to `width` tokens, or as it is if that is less."""
        more = (0, 0), (0, 0), (0, max(0, width - self.tokens.shape[2]))
        return self._replace(**{name: np.pad(getattr(self, name), more) for name in self._fields[:3]})

    def of(self, hypotheses: np.ndarray) -> list[list[tuple[list[int], list[int], list[float]]]]:
        """Tokens, frames and probabilities of hypotheses (B, n), stream by stream."""
        streams = np.arange(len(hypotheses))[:, None]
        tokens, frames, log_probs = (part[streams, hypotheses] for part in self[:3])
        own = zip(tokens.tolist(), frames.tolist(), np.exp(log_probs).tolist(), strict=True)
        num_tokens = self.num_tokens[streams, hypotheses].tolist()
        return [
            [
                tuple(old + new[:u] for old, new in zip(settled.lists(), of_hypothesis, strict=True))
                for of_hypothesis, u in zip(zip(*of_stream, strict=True), counts, strict=True)
            ]
            for of_stream, counts, settled in zip(own, num_tokens, self.settled, strict=True)
        ]

    def num_shared(self, alive: np.ndarray) -> np.ndarray:
        """Tokens beyond the settled ones that all hypotheses of a stream share which are alive (B, K): (B,)."""
        places, streams = np.arange(self.tokens.shape[2]), np.arange(len(alive))
        first = alive.argmax(1)
        same = places < self.num_tokens[..., None]
        for part in self[:2]:
            same &= part == part[streams, first][:, None]
        return np.cumprod((same | ~alive[..., None]).all(1), axis=1).sum(1)

    def settle(self, alive: np.ndarray) -> History:
        """Move what all hypotheses that are alive (B, K) share to the settled tokens, once there is much."""
        width = self.tokens.shape[2]
        if width < _SETTLE:
            return self
        shared, first = self.num_shared(alive), alive.argmax(1)
        settled = []
        for b, count in enumerate(shared.tolist()):
            own = [part[b, first[b], :count] for part in self[:3]]
            settled.append(self.settled[b].grown(*(v.tolist() for v in (*own[:2], np.exp(own[2])))))
        num_tokens = np.maximum(self.num_tokens - shared[:, None], 0)
        left = int(num_tokens.max())
        index = np.minimum(np.arange(left) + shared[:, None], width - 1)[:, None]
        return History(*(np.take_along_axis(part, index, 2) for part in self[:3]), num_tokens, tuple(settled))


class Alignments:
    """Where the hypotheses after each frame of a chunk come from, streams sorted so that active ones come first."""

    def __init__(self, batch_size: int, beam: int, blank_id: int) -> None:
        self._batch_size, self._beam, self._blank_id = batch_size, beam, blank_id
        self._frames: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, parents: np.ndarray, tokens: np.ndarray, log_probs: np.ndarray) -> None:
        """One more frame, (A, K) each: hypothesis before it, token or blank, log-probability of that."""
        self._frames.append((parents, tokens, log_probs))

    def append_to(self, history: History, num_frames: np.ndarray) -> History:
        """The history after the chunk, whose first frame is number num_frames (B,) of its stream."""
        if not self._frames:
            return history
        shape = (len(self._frames), self._batch_size, self._beam)
        tokens, log_probs = np.full(shape, self._blank_id), np.zeros(shape, np.float32)
        at = np.tile(np.arange(self._beam), (self._batch_size, 1))
        for n, (parent, token, log_prob) in reversed(list(enumerate(self._frames))):
            here = at[: len(parent)]
            tokens[n, : len(parent)] = np.take_along_axis(token, here, 1)
            log_probs[n, : len(parent)] = np.take_along_axis(log_prob, here, 1)
            at[: len(parent)] = np.take_along_axis(parent, here, 1)
        tokens, log_probs = tokens.transpose(1, 2, 0), log_probs.transpose(1, 2, 0)  # (B, K, T)
        emitted, streams = tokens != self._blank_id, np.arange(self._batch_size)[:, None]
        before = history.num_tokens[streams, at]
        num_tokens = before + emitted.sum(2)
        place = (before[..., None] + emitted.cumsum(2) - 1)[emitted]
        stream, hypothesis, frame = emitted.nonzero()
        past = History(*(part[streams, at] for part in history[:3]), num_tokens, history.settled)
        result = past.widened(int(num_tokens.max()))
        new = tokens[emitted], num_frames[stream] + frame, log_probs[emitted]
        for part, values in zip(result[:3], new, strict=True):
            part[stream, hypothesis, place] = values
        return result
