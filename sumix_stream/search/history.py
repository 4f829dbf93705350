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

    tokens: Tensor  # (B, K, U) int32
    frames: Tensor  # (B, K, U) int32, counted from the start of the stream
    log_probs: Tensor  # (B, K, U) of each token at its frame
    num_tokens: Tensor  # (B, K) beyond the settled ones
    settled: tuple[Settled, ...]  # of each stream

    @classmethod
    def init(cls, batch_size: int, beam: int, device: torch.device) -> History:
        empty = torch.zeros(batch_size, beam, 0, dtype=torch.int32, device=device)
        num_tokens = torch.zeros(batch_size, beam, dtype=torch.int64, device=device)
        return cls(empty, empty.clone(), empty.float(), num_tokens, (Settled(),) * batch_size)

    @staticmethod
    def stack(parts: Sequence[History]) -> History:
        """Join streams of any length."""
        width = max(part.tokens.shape[2] for part in parts)
        *columns, settled = zip(*(part.widened(width) for part in parts), strict=True)
        return History(*map(torch.cat, columns), sum(settled, ()))

    def unstack(self) -> list[History]:
        """One for each stream, as wide as it needs; the parts own their memory."""
        widths = self.num_tokens.amax(1).tolist()
        return [
            History(
                *(part[b : b + 1, :, :width].clone() for part in self[:3]),
                self.num_tokens[b : b + 1].clone(),
                (settled,),
            )
            for b, (width, settled) in enumerate(zip(widths, self.settled, strict=True))
        ]

    def select(self, streams: Tensor) -> History:
        """The streams in this order."""
        return History(*(part[streams] for part in self[:4]), tuple(self.settled[n] for n in streams.tolist()))

    def widened(self, width: int) -> History:
        """Padded to `width` tokens, or as it is if that is less."""
        more = (0, max(0, width - self.tokens.shape[2]))
        return self._replace(**{name: pad(getattr(self, name), more) for name in self._fields[:3]})

    def of(self, hypotheses: Tensor) -> list[list[tuple[list[int], list[int], list[float]]]]:
        """Tokens, frames and probabilities of hypotheses (B, n), stream by stream."""
        index = hypotheses[..., None].expand(-1, -1, self.tokens.shape[2])
        tokens, frames, log_probs = (part.gather(1, index) for part in self[:3])
        own = zip(tokens.tolist(), frames.tolist(), log_probs.exp().tolist(), strict=True)
        num_tokens = self.num_tokens.gather(1, hypotheses).tolist()
        return [
            [
                tuple(old + new[:u] for old, new in zip(settled.lists(), of_hypothesis, strict=True))
                for of_hypothesis, u in zip(zip(*of_stream, strict=True), counts, strict=True)
            ]
            for of_stream, counts, settled in zip(own, num_tokens, self.settled, strict=True)
        ]

    def settle(self, alive: Tensor) -> History:
        """Move what all hypotheses that are alive (B, K) share to the settled tokens, once there is much."""
        width = self.tokens.shape[2]
        if width < _SETTLE:
            return self
        places = torch.arange(width, device=alive.device)
        first = alive.int().argmax(1)[:, None, None].expand(-1, 1, width)
        same = places < self.num_tokens[..., None]
        for part in self[:2]:
            same &= part == part.gather(1, first)
        shared = (same | ~alive[..., None]).all(1).int().cumprod(1).sum(1)  # (B,)
        settled = []
        for b, count in enumerate(shared.tolist()):
            lists = (part[b, first[b, 0, 0], :count] for part in (*self[:2], self.log_probs.exp()))
            settled.append(self.settled[b].grown(*(values.tolist() for values in lists)))
        index = (places + shared[:, None]).clamp(max=width - 1)[:, None].expand_as(self.tokens)
        num_tokens = (self.num_tokens - shared[:, None]).clamp(min=0)
        left = int(num_tokens.max())
        return History(*(part.gather(2, index)[..., :left] for part in self[:3]), num_tokens, tuple(settled))


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
        past = History(*(part.gather(1, index) for part in history[:3]), num_tokens, history.settled)
        result = past.widened(width)
        new = (tokens[emitted].int(), (num_frames[stream] + frame).int(), log_probs[emitted])
        for part, values in zip(result[:3], new, strict=True):
            part[stream, hypothesis, place] = values
        return result
