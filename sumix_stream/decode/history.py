"""The tokens that the hypotheses of a beam are made of, kept by reference frame by frame and written out by chunk.

B streams, A of them with frames left, K hypotheses of a stream, T frames of a chunk, U tokens of the longest
hypothesis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class History(NamedTuple):
    """Tokens of each hypothesis, padded to the longest."""

    tokens: Tensor  # (B, K, U) int32
    frames: Tensor  # (B, K, U) int32, counted from the start of the stream
    log_probs: Tensor  # (B, K, U) of each token at its frame
    num_tokens: Tensor  # (B, K)

    @classmethod
    def init(cls, batch_size: int, beam: int, device: torch.device) -> History:
        empty = torch.zeros(batch_size, beam, 0, dtype=torch.int32, device=device)
        num_tokens = torch.zeros(batch_size, beam, dtype=torch.int64, device=device)
        return cls(empty, empty.clone(), empty.float(), num_tokens)

    @staticmethod
    def stack(parts: Sequence[History]) -> History:
        """Join streams of any length."""
        width = max(part.tokens.shape[2] for part in parts)
        padded = (part._widen(width) for part in parts)
        return History(*(torch.cat(column) for column in zip(*padded, strict=True)))

    def unstack(self) -> list[History]:
        """One for each stream, as wide as it needs; the parts own their memory."""
        widths = self.num_tokens.amax(1).tolist()
        return [
            History(*(part[b : b + 1, :, :width].clone() for part in self[:3]), self.num_tokens[b : b + 1].clone())
            for b, width in enumerate(widths)
        ]

    def select(self, streams: Tensor) -> History:
        """The streams in this order."""
        return History(*(part[streams] for part in self))

    def of(self, hypotheses: Tensor) -> tuple[list, list, list, list]:
        """Tokens, frames, probabilities and number of tokens of hypotheses (B, n), as nested lists padded to U."""
        index = hypotheses[..., None].expand(-1, -1, self.tokens.shape[2])
        tokens, frames, log_probs = (part.gather(1, index) for part in self[:3])
        return (
            tokens.tolist(),
            frames.tolist(),
            log_probs.exp().tolist(),
            self.num_tokens.gather(1, hypotheses).tolist(),
        )

    def _widen(self, width: int) -> History:
        more = (0, max(0, width - self.tokens.shape[2]))
        return History(*(pad(part, more) for part in self[:3]), self.num_tokens)


class Alignments:
    """Where the hypotheses after each frame of a chunk come from, streams sorted so that active ones come first."""

    def __init__(self, batch_size: int, beam: int, blank_id: int, device: torch.device) -> None:
        self._batch_size, self._beam, self._blank_id = batch_size, beam, blank_id
        self._identity = torch.arange(beam, device=device).expand(batch_size, beam)
        self._frames: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, parents: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        """One more frame, (A, K) each: hypothesis before it, token or blank, log-probability of that."""
        self._frames.append((parents, tokens, log_probs))

    def append_to(self, history: History, num_frames: Tensor) -> History:
        """The history after the chunk, whose first frame is number num_frames (B,) of its stream."""
        if not self._frames:
            return history
        shape = (len(self._frames), self._batch_size, self._beam)
        tokens = torch.full(shape, self._blank_id, device=self._identity.device)
        log_probs = torch.zeros(shape, device=self._identity.device)
        at = self._identity.clone()
        for n, (parent, token, log_prob) in reversed(list(enumerate(self._frames))):
            here = at[: len(parent)]
            tokens[n, : len(parent)] = token.gather(1, here)
            log_probs[n, : len(parent)] = log_prob.gather(1, here)
            at[: len(parent)] = parent.gather(1, here)
        tokens, log_probs = tokens.permute(1, 2, 0), log_probs.permute(1, 2, 0)  # (B, K, T)
        emitted = tokens != self._blank_id
        before = history.num_tokens.gather(1, at)
        num_tokens = before + emitted.sum(2)
        place = (before[..., None] + emitted.cumsum(2) - 1)[emitted]
        stream, hypothesis, frame = emitted.nonzero(as_tuple=True)
        width = int(num_tokens.max())
        index = at[..., None].expand(-1, -1, history.tokens.shape[2])
        past = History(*(part.gather(1, index) for part in history[:3]), num_tokens)
        result = past._widen(width)
        new = (tokens[emitted].int(), (num_frames[stream] + frame).int(), log_probs[emitted])
        for part, values in zip(result[:3], new, strict=True):
            part[stream, hypothesis, place] = values
        return result
