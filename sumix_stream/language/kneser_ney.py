"""N-gram language models with interpolated modified Kneser-Ney smoothing (Chen and Goodman, 1998, section 3).

    p(w | h) = (c(h w) - D(c(h w))) / c(h .) + gamma(h) p(w | h'),    h' = h without its first token
    gamma(h) = sum over w of D(c(h w)) / c(h .)

c counts occurrences for the highest order, and for n-grams that begin with <s>; for the others it counts the different
tokens that stand before them. D is D1, D2 or D3 for counts of 1, 2, and more. Unigrams are interpolated with the
uniform distribution over all tokens and </s>, so that every token has a probability.

Sentences are <s> w_1 ... w_m </s>. S positions in all of them, G n-grams of an order, V tokens with <s> and </s>.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sumix_stream.language.text import LanguageModelError

FALLBACK = (0.5, 1.0, 1.5)  # discounts of an order whose counts of counts do not give any, as KenLM's


@dataclass
class Ngrams:
    """The n-grams of one order, sorted by their tokens."""

    tokens: np.ndarray  # (G, n) int32
    log_probs: np.ndarray  # (G,) float64, natural; of <s> alone -inf
    backoffs: np.ndarray  # (G,) float64, natural logarithm of gamma; 0 for the highest order


@dataclass
class _Counted:
    """Counts of one order. `prefix` and `suffix` are numbers of n-grams of the order below."""

    number: np.ndarray  # (S,) int64: n-gram that begins at each position, -1 for none
    prefix: np.ndarray  # (G,)
    suffix: np.ndarray  # (G,)
    last: np.ndarray  # (G,) token
    starts: np.ndarray  # (G,) bool: begins with <s>
    counts: np.ndarray  # (G,) occurrences


def estimate(
    sentences: Iterable[Sequence[int]],
    vocab_size: int,
    order: int,
    prune: Sequence[int] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> list[Ngrams]:
    """The model of each order, 1 to `order`.

    Args:
        sentences: token ids from 0 to vocab_size - 1; <s> becomes vocab_size and </s> vocab_size + 1.
        prune: for orders 1, 2, ... the number of occurrences up to which n-grams are left out (the last number holds
            for all higher orders; 0 for order 1). Their probability goes to the backoff. N-grams that a longer one
            begins with stay.
        tell: called with lines about what was found.
    Raises:
        LanguageModelError: there is no token to learn from, or `prune` falls or has a number for order 1.
    """
    limits = _limits(prune, order)
    counted = _count(sentences, vocab_size, order)
    adjusted = _adjusted(counted)
    kept = _kept(counted, limits)
    uniform = 1.0 / (vocab_size + 1)  # all tokens and </s>
    models: list[Ngrams] = []
    probabilities = None
    tokens = None
    gammas: list[np.ndarray] = []
    for n, (part, count) in enumerate(zip(counted, adjusted, strict=True), 1):
        discount = _discounts(count[~_never(part, n, vocab_size)], n, tell)[np.minimum(count, 3).astype(np.int64)]
        discount = np.where(kept[n - 1], discount, count)  # all of what is left out goes to the backoff
        contexts = 1 if n == 1 else len(counted[n - 2].counts)
        total = np.bincount(part.prefix, count, contexts)
        with np.errstate(invalid="ignore", divide="ignore"):
            gamma = np.where(total > 0, np.bincount(part.prefix, discount, contexts) / total, 1.0)
            share = np.where(total[part.prefix] > 0, (count - discount) / total[part.prefix], 0.0)
        lower = uniform if n == 1 else probabilities[part.suffix]
        probabilities = share + gamma[part.prefix] * lower
        gammas.append(gamma)
        tokens = part.last[:, None] if n == 1 else np.column_stack([tokens[part.prefix], part.last])
        with np.errstate(divide="ignore"):
            log_probs = np.log(probabilities)
        if n == 1:
            log_probs[vocab_size] = -np.inf  # <s> is never predicted
        models.append(Ngrams(tokens.astype(np.int32), log_probs, np.zeros(len(tokens))))
    for model, gamma, keep in zip(models, [*gammas[1:], None], kept, strict=True):
        if gamma is not None:
            model.backoffs[:] = np.log(np.maximum(gamma, 1e-30))
        model.tokens, model.log_probs, model.backoffs = model.tokens[keep], model.log_probs[keep], model.backoffs[keep]
    return models


def _limits(prune: Sequence[int], order: int) -> list[int]:
    given = list(prune) or [0]
    limits = (given + [given[-1]] * order)[:order]
    if limits[0] != 0 or any(a > b for a, b in pairwise(limits)) or min(limits) < 0:
        raise LanguageModelError(
            f"prune must be 0 for order 1 and not fall with the order, got {' '.join(map(str, given))}: 0 0 1 leaves "
            "out what occurs once from order 3 on"
        )
    return limits


def _count(sentences: Iterable[Sequence[int]], vocab_size: int, order: int) -> list[_Counted]:
    start, end = vocab_size, vocab_size + 1
    parts = [
        np.concatenate([[start], np.asarray(sentence, np.int64), [end]]) for sentence in sentences if len(sentence)
    ]
    if not parts:
        raise LanguageModelError("the text has no token to learn from")
    flat = np.concatenate(parts)
    sentence = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    V = vocab_size + 2
    occurrences = np.bincount(flat, minlength=V)
    everything = np.arange(V)
    none = np.zeros(V, np.int64)
    counted = [_Counted(flat, none, none, everything, everything == start, occurrences)]
    for n in range(2, order + 1):
        below = counted[-1]
        number = np.full(len(flat), -1, np.int64)
        inside = np.flatnonzero(sentence[n - 1 :] == sentence[: len(flat) - n + 1])
        keys, first, inverse, counts = np.unique(
            below.number[inside] * V + flat[inside + n - 1], return_index=True, return_inverse=True, return_counts=True
        )
        number[inside] = inverse
        prefix, last, where = keys // V, keys % V, inside[first]
        counted.append(_Counted(number, prefix, below.number[where + 1], last, below.starts[prefix], counts))
    return counted


def _adjusted(counted: Sequence[_Counted]) -> list[np.ndarray]:
    """Counts of the highest order, and how many different tokens stand before n-grams of the others."""
    result = []
    for part, above in zip(counted, [*counted[1:], None], strict=True):
        if above is None:
            result.append(part.counts.astype(np.float64))
        else:
            before = np.bincount(above.suffix, minlength=len(part.counts))
            result.append(np.where(part.starts, part.counts, before).astype(np.float64))
    result[0][counted[0].starts] = 0.0  # nothing predicts <s>
    return result


def _kept(counted: Sequence[_Counted], limits: Sequence[int]) -> list[np.ndarray]:
    kept = [part.counts > limit for part, limit in zip(counted, limits, strict=True)]
    kept[0][:] = True
    for n in range(len(counted) - 1, 0, -1):
        kept[n - 1][counted[n].prefix[kept[n]]] = True
    return kept


def _never(part: _Counted, n: int, vocab_size: int) -> np.ndarray:
    """(G,) True for what has no count to be discounted: of the unigrams <s> and what does not occur."""
    return (part.counts == 0) | (part.last == vocab_size) if n == 1 else np.zeros(len(part.counts), bool)


def _discounts(counts: np.ndarray, n: int, tell: Callable[[str], None]) -> np.ndarray:
    """(4,) discounts of counts 0, 1, 2 and more (Chen and Goodman, equation 26)."""
    of = [float((counts == k).sum()) for k in range(5)]
    if min(of[1:4]) > 0:
        y = of[1] / (of[1] + 2 * of[2])
        found = [k - (k + 1) * y * of[k + 1] / of[k] for k in (1, 2, 3)]
        if all(0 < value <= k for k, value in enumerate(found, 1)):
            return np.array([0.0, *found])
    tell(f"order {n}: too few n-grams for discounts of its own, {' '.join(map(str, FALLBACK))} are taken")
    return np.array([0.0, *FALLBACK])
