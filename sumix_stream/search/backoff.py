"""Weighted backoff automata over tokens: one table form for n-gram models and for hotwords, read in batches.

A state has arcs for some tokens. A token without an arc falls back: the state's backoff weight is added and its
fallback state asked, down to a root, where it costs nothing and stays. N states, S all states, A arcs, V tokens.
An n-gram model is such an automaton by definition (its states are contexts, its weights log-probabilities); so is an
Aho-Corasick matcher whose weights are differences of a potential (see hotwords.py). Held as arrays, as in
arXiv 2505.22857, the rows of many states are found together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_LAST = np.iinfo(np.int64).max  # closes the sorted keys, so that a search never runs past them


@dataclass(frozen=True, eq=False)
class BackoffAutomaton:
    """Make one with `build` or `join`. The first state is where a sequence starts."""

    vocab_size: int
    depth: int  # most fallbacks from any state to its root
    fallback: np.ndarray  # (S,) a root's is itself
    backoff: np.ndarray  # (S,) weight of falling back, 0 at roots
    first_arc: np.ndarray  # (S + 1,) arcs of state s are first_arc[s] .. first_arc[s + 1] - 1
    keys: np.ndarray  # (A + 1,) state * V + token, ascending, then a sentinel
    weights: np.ndarray  # (A + 1,)
    targets: np.ndarray  # (A + 1,)

    @classmethod
    def build(
        cls,
        vocab_size: int,
        fallbacks: Sequence[int],
        backoffs: Sequence[float],
        arcs: Mapping[tuple[int, int], tuple[float, int]],
    ) -> BackoffAutomaton:
        """From the fallback state and weight of each state, and (state, token) -> (weight, next state)."""
        fallback = np.array(fallbacks, np.int64)
        depth, reached = 0, fallback
        while not np.array_equal(reached, fallback[reached]):
            assert depth < len(fallback), "fallbacks run in a circle"
            depth, reached = depth + 1, fallback[reached]
        depth += bool((fallback != np.arange(len(fallback))).any())
        order = sorted(arcs)
        keys = np.array([state * vocab_size + token for state, token in order] + [_LAST], np.int64)
        edges = np.arange(len(fallback) + 1) * vocab_size
        return cls(
            vocab_size,
            depth,
            fallback,
            np.array(backoffs, np.float32),
            np.searchsorted(keys, edges),
            keys,
            np.array([arcs[key][0] for key in order] + [0.0], np.float32),
            np.array([arcs[key][1] for key in order] + [0], np.int64),
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

        def cat(name: str, offsets: Sequence[int], drop: int) -> list[np.ndarray]:
            return [getattr(p, name)[: -drop or None] + offset for p, offset in zip(parts, offsets, strict=False)]

        end = {name: getattr(parts[-1], name)[-1:] for name in ("keys", "weights", "targets")}
        zeros = [0] * len(parts)
        joined = BackoffAutomaton(
            vocab_size,
            max(part.depth for part in parts),
            np.concatenate(cat("fallback", states, 0)),
            np.concatenate(cat("backoff", zeros, 0)),
            np.concatenate([*cat("first_arc", arcs, 1), parts[-1].first_arc[-1:] + arcs[-2]]),
            np.concatenate([*cat("keys", [n * vocab_size for n in states], 1), end["keys"]]),
            np.concatenate([*cat("weights", zeros, 1), end["weights"]]),
            np.concatenate([*cat("targets", states, 1), end["targets"]]),
        )
        return joined, states[:-1]

    def rows(self, states: np.ndarray) -> np.ndarray:
        """Weights (N, V) of every token after states (N,)."""
        chain = [states]
        for _ in range(self.depth):
            chain.append(self.fallback[chain[-1]])
        out = np.zeros((len(states), self.vocab_size), np.float32)
        self._overwrite(out, np.arange(len(states)), chain[-1])
        for state, below in zip(chain[-2::-1], chain[:0:-1], strict=True):
            rows = (state != below).nonzero()[0]
            out[rows] += self.backoff[state[rows], None]
            self._overwrite(out, rows, state[rows])
        return out

    def _overwrite(self, out: np.ndarray, rows: np.ndarray, states: np.ndarray) -> None:
        """Write the weights of the states' own arcs into their rows."""
        first = self.first_arc[states]
        num_arcs = self.first_arc[states + 1] - first
        which = np.repeat(np.arange(len(rows)), num_arcs)
        before = num_arcs.cumsum() - num_arcs
        arcs = np.arange(len(which)) + (first - before)[which]
        out[rows[which], self.keys[arcs] % self.vocab_size] = self.weights[arcs]

    def next(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The states (N,) that tokens (N,) lead to."""
        result, found = states, np.zeros(states.shape, bool)
        for _ in range(self.depth + 1):
            key = result * self.vocab_size + tokens
            arc = np.searchsorted(self.keys, key)
            hit = ~found & (self.keys[arc] == key)
            result = np.where(hit, self.targets[arc], np.where(found, result, self.fallback[result]))
            found |= hit
        return result

    def to_root(self, states: np.ndarray) -> np.ndarray:
        """Sum of the backoff weights from states (any shape) down to their roots."""
        total = np.zeros(states.shape, np.float32)
        for _ in range(self.depth):
            total += self.backoff[states]
            states = self.fallback[states]
        return total
