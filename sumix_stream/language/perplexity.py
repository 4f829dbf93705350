"""How well an n-gram model predicts text: scored as the file says, by backing off from the longest n-gram there is."""

import math
from collections.abc import Iterable, Sequence

from sumix_stream.search.ngram import END, START, Ngrams


def log10_prob(orders: Sequence[Ngrams], context: Sequence[str], word: str) -> float:
    """log10 p(word | context), the words before it, of which the last order - 1 are seen. -inf for an unknown word."""
    context, weight = tuple(context)[max(0, len(context) - len(orders) + 1) :], 0.0
    while True:
        found = orders[len(context)].get((*context, word))
        if found is not None:
            return weight + found[0]
        if not context:
            return -math.inf
        weight += orders[len(context) - 1].get(context, (0.0, 0.0))[1]
        context = context[1:]


def perplexity(orders: Sequence[Ngrams], sentences: Iterable[Sequence[str]]) -> tuple[float, int]:
    """Perplexity a token, the ends of sentences counted, and the number of tokens."""
    total, number = 0.0, 0
    for sentence in sentences:
        words = [START, *sentence, END]
        for i in range(1, len(words)):
            total += log10_prob(orders, words[:i], words[i])
            number += 1
    return 10 ** (-total / max(number, 1)), number
