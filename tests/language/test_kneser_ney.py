"""Modified Kneser-Ney against its definition, written a second time with dictionaries, and against a case by hand."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from sumix_stream.language.arpa import write_arpa
from sumix_stream.language.kneser_ney import FALLBACK, estimate
from sumix_stream.language.perplexity import log10_prob, perplexity
from sumix_stream.language.text import LanguageModelError
from sumix_stream.search.ngram import END, START, read_arpa

VOCAB = 6
PIECES = [f"w{i}" for i in range(VOCAB)] + [START, END]


def corpus(sentences=200, seed=0):
    rng = np.random.default_rng(seed)
    skewed = rng.dirichlet(np.full(VOCAB - 1, 0.4), size=VOCAB)
    return [
        [int(rng.choice(VOCAB - 1, p=skewed[n % VOCAB])) for n in range(rng.integers(1, 7))] for _ in range(sentences)
    ]


def definition(sentences, order, limits):
    """p(w | h) as a function, from counts in dictionaries."""
    start, end = VOCAB, VOCAB + 1
    raw = [Counter() for _ in range(order + 1)]
    for sentence in sentences:
        words = (start, *sentence, end)
        for n in range(1, order + 1):
            raw[n].update(words[i : i + n] for i in range(len(words) - n + 1))
    counts = [Counter() for _ in range(order + 1)]
    counts[order] = raw[order].copy()
    for n in range(1, order):
        for words in raw[n + 1]:
            counts[n][words[1:]] += 1
        for words, number in raw[n].items():
            if words[0] == start:
                counts[n][words] = number
    del counts[1][(start,)]
    kept = [None] + [
        {words for words in raw[n] if n == 1 or raw[n][words] > limits[n - 1]} for n in range(1, order + 1)
    ]
    for n in range(order, 1, -1):
        kept[n - 1] |= {words[:-1] for words in kept[n]}
    discounts = [None]
    for n in range(1, order + 1):
        of = Counter(counts[n].values())
        if min(of[1], of[2], of[3]) > 0:
            y = of[1] / (of[1] + 2 * of[2])
            found = [k - (k + 1) * y * of[k + 1] / of[k] for k in (1, 2, 3)]
        else:
            found = list(FALLBACK)
        if not all(0 < d <= k for k, d in enumerate(found, 1)):
            found = list(FALLBACK)
        discounts.append(found)
    total, mass = defaultdict(float), defaultdict(float)
    for n in range(1, order + 1):
        for words, number in counts[n].items():
            total[words[:-1]] += number
            mass[words[:-1]] += discounts[n][min(number, 3) - 1] if words in kept[n] else number

    def p(context, word):
        context = tuple(context)
        lower = p(context[1:], word) if context else 1 / (VOCAB + 1)
        if not total[context]:
            return lower
        n, words = len(context) + 1, (*context, word)
        number = counts[n][words] if words in kept[n] else 0
        discount = discounts[n][min(number, 3) - 1] if number else 0
        return (number - discount + mass[context] * lower) / total[context]

    return p


@pytest.mark.parametrize(("order", "prune"), [(1, [0]), (2, [0]), (3, [0]), (4, [0]), (3, [0, 0, 1]), (4, [0, 1, 2])])
def test_probabilities_are_those_of_the_definition_and_add_up_to_one(order, prune, tmp_path):
    sentences = corpus()
    write_arpa(tmp_path / "lm.arpa", estimate(sentences, VOCAB, order, prune), PIECES)
    orders = read_arpa(tmp_path / "lm.arpa")
    p = definition(sentences, order, (prune + [prune[-1]] * order)[:order])
    outcomes = [*range(VOCAB), VOCAB + 1]
    contexts = [
        (),
        (VOCAB,),
        *((VOCAB, a) for a in range(3)),
        *((a, b, c) for a in range(5) for b in range(5) for c in (0, 3)),
    ]
    for context in contexts:
        context = context[max(0, len(context) - order + 1) :]
        found = [10 ** log10_prob(orders, [PIECES[t] for t in context], PIECES[word]) for word in outcomes]
        assert found == pytest.approx([p(context, word) for word in outcomes], rel=1e-4)
        assert sum(found) == pytest.approx(1.0, abs=1e-4)


def test_two_sentences_by_hand():
    """`a b` and `a a` with the fallback discounts 0.5, 1, 1.5: bigrams <s>a 2, ab 1, aa 1, b</s> 1, a</s> 1."""
    unigrams, bigrams = estimate([[0, 1], [0, 0]], 2, 2)
    # Before a: <s> and a; before b: a; before </s>: b and a. Discounts 1, 0.5 and 1 of 5: 2.5 / 5 goes to 1 / 3.
    a, b, end = ((count - d) / 5 + 0.5 / 3 for count, d in ((2, 1), (1, 0.5), (2, 1)))
    assert np.exp(unigrams.log_probs[[0, 1, 3]]) == pytest.approx([a, b, end])
    assert a + b + end == pytest.approx(1.0)
    found = {tuple(row): math.exp(value) for row, value in zip(bigrams.tokens.tolist(), bigrams.log_probs, strict=True)}
    # After a came b, a and </s>, once each: 0.5 of each 1 goes to the unigrams, 1.5 / 3.
    assert found[0, 1] == pytest.approx(0.5 / 3 + 0.5 * b)
    assert found[0, 0] == pytest.approx(0.5 / 3 + 0.5 * a)
    assert found[2, 0] == pytest.approx((2 - 1) / 2 + 0.5 * a)  # after <s> twice a
    assert math.exp(unigrams.backoffs[0]) == pytest.approx(0.5)


def test_a_longer_order_predicts_its_own_text_better_and_one_token_is_enough(tmp_path):
    sentences = corpus(300, seed=1)
    values = []
    for order in (1, 3):
        write_arpa(tmp_path / "lm.arpa.gz", estimate(sentences, VOCAB, order), PIECES)
        values.append(perplexity(read_arpa(tmp_path / "lm.arpa.gz"), [[PIECES[t] for t in s] for s in sentences]))
    assert values[1][0] < 0.8 * values[0][0] and values[0][1] == sum(map(len, sentences)) + len(sentences)
    told = []
    estimate([[1]], VOCAB, 3, tell=told.append)
    assert len(told) == 3 and "too few n-grams for discounts" in told[0]


@pytest.mark.parametrize("prune", [[1], [0, 2, 1], [0, -1]])
def test_wrong_pruning_and_empty_text_are_refused(prune):
    with pytest.raises(LanguageModelError, match="prune must be 0 for order 1 and not fall"):
        estimate([[1]], VOCAB, 3, prune)
    with pytest.raises(LanguageModelError, match="no token to learn from"):
        estimate([[], []], VOCAB, 3)
