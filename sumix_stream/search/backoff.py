"""Weighted backoff automata over tokens: one table form for n-gram models and for hotwords, read in batches.

A state has arcs for some tokens. A token without an arc falls back: the state's backoff weight is added and its
fallback state asked, down to a root, where it costs nothing and stays. N states, S all states, A arcs, V tokens.
An n-gram model is such an automaton by definition (its states are contexts, its weights log-probabilities); so is an
Aho-Corasick matcher whose weights are differences of a potential (see hotwords.py). Held as tensors, as in
arXiv 2505.22857, the rows of many states are found together, on any device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

_LAST = torch.iinfo(torch.int64).max  # closes the sorted keys, so that a search never runs past them


@dataclass(frozen=True, eq=False)
class BackoffAutomaton:
    """Make one with `build` or `join`. The first state is where a sequence starts."""

    vocab_size: int
    depth: int  # most fallbacks from any state to its root
    fallback: Tensor  # (S,) a root's is itself
    backoff: Tensor  # (S,) weight of falling back, 0 at roots
    first_arc: Tensor  # (S + 1,) arcs of state s are first_arc[s] .. first_arc[s + 1] - 1
    keys: Tensor  # (A + 1,) state * V + token, ascending, then a sentinel
    weights: Tensor  # (A + 1,)
    targets: Tensor  # (A + 1,)

    @classmethod
    def build(
        cls,
        vocab_size: int,
        fallbacks: Sequence[int],
        backoffs: Sequence[float],
        arcs: Mapping[tuple[int, int], tuple[float, int]],
    ) -> BackoffAutomaton:
        """From the fallback state and weight of each state, and (state, token) -> (weight, next state)."""
        fallback = torch.tensor(fallbacks, dtype=torch.int64)
        depth, reached = 0, fallback
        while not torch.equal(reached, fallback[reached]):
            assert depth < len(fallback), "fallbacks run in a circle"
            depth, reached = depth + 1, fallback[reached]
        depth += bool((fallback != torch.arange(len(fallback))).any())
        order = sorted(arcs)
        keys = torch.tensor([state * vocab_size + token for state, token in order] + [_LAST], dtype=torch.int64)
        edges = torch.arange(len(fallback) + 1) * vocab_size
        return cls(
            vocab_size,
            depth,
            fallback,
            torch.tensor(backoffs, dtype=torch.float32),
            torch.searchsorted(keys, edges),
            keys,
            torch.tensor([arcs[key][0] for key in order] + [0.0], dtype=torch.float32),
            torch.tensor([arcs[key][1] for key in order] + [0], dtype=torch.int64),
        )

    @classmethod
    def empty(cls, vocab_size: int) -> BackoffAutomaton:
        """One state without arcs: every token costs nothing."""
        return cls.build(vocab_size, [0], [0.0], {})

    @staticmethod
    def join(parts: Sequence[BackoffAutomaton]) -> tuple[BackoffAutomaton, list[int]]:
        """Automata side by side in one, and the number of each one's first state."""
        vocab_size = parts[0].vocab_size
        assert all(part.vocab_size == vocab_size for part in parts), [part.vocab_size for part in parts]
        if len(parts) == 1:
            return parts[0], [0]
        states, arcs = [0], [0]
        for part in parts:
            states.append(states[-1] + len(part.fallback))
            arcs.append(arcs[-1] + len(part.keys) - 1)

        def cat(name: str, offsets: Sequence[int], drop: int) -> list[Tensor]:
            return [getattr(p, name)[: -drop or None] + offset for p, offset in zip(parts, offsets, strict=False)]

        end = {name: getattr(parts[-1], name)[-1:] for name in ("keys", "weights", "targets")}
        zeros = [0] * len(parts)
        joined = BackoffAutomaton(
            vocab_size,
            max(part.depth for part in parts),
            torch.cat(cat("fallback", states, 0)),
            torch.cat(cat("backoff", zeros, 0)),
            torch.cat([*cat("first_arc", arcs, 1), parts[-1].first_arc[-1:] + arcs[-2]]),
            torch.cat([*cat("keys", [n * vocab_size for n in states], 1), end["keys"]]),
            torch.cat([*cat("weights", zeros, 1), end["weights"]]),
            torch.cat([*cat("targets", states, 1), end["targets"]]),
        )
        return joined, states[:-1]

    def to(self, device: torch.device) -> BackoffAutomaton:
        """The automaton on a device; itself if it is there."""
        if self.keys.device == device:
            return self
        values = (getattr(self, field.name) for field in fields(self))
        return BackoffAutomaton(*(value.to(device) if isinstance(value, Tensor) else value for value in values))

    def rows(self, states: Tensor) -> Tensor:
        """Weights (N, V) of every token after states (N,)."""
        chain = [states]
        for _ in range(self.depth):
            chain.append(self.fallback[chain[-1]])
        out = self.weights.new_zeros(len(states), self.vocab_size)
        self._overwrite(out, torch.arange(len(states), device=states.device), chain[-1])
        for state, below in zip(chain[-2::-1], chain[:0:-1], strict=True):
            rows = (state != below).nonzero().squeeze(1)
            out[rows] += self.backoff[state[rows], None]
            self._overwrite(out, rows, state[rows])
        return out

    def _overwrite(self, out: Tensor, rows: Tensor, states: Tensor) -> None:
        """Write the weights of the states' own arcs into their rows."""
        first = self.first_arc[states]
        num_arcs = self.first_arc[states + 1] - first
        which = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), num_arcs)
        before = num_arcs.cumsum(0) - num_arcs
        arcs = torch.arange(len(which), device=rows.device) + (first - before)[which]
        out[rows[which], self.keys[arcs] % self.vocab_size] = self.weights[arcs]

    def next(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The states (N,) that tokens (N,) lead to."""
        result, found = states, torch.zeros_like(states, dtype=torch.bool)
        for _ in range(self.depth + 1):
            key = result * self.vocab_size + tokens
            arc = torch.searchsorted(self.keys, key)
            hit = ~found & (self.keys[arc] == key)
            result = torch.where(hit, self.targets[arc], torch.where(found, result, self.fallback[result]))
            found |= hit
        return result

    def to_root(self, states: Tensor) -> Tensor:
        """Sum of the backoff weights from states (any shape) down to their roots."""
        total = torch.zeros_like(states, dtype=torch.float32)
        for _ in range(self.depth):
            total += self.backoff[states]
            states = self.fallback[states]
        return total
