"""Words from tokens: grouping, times, delays, confidences."""

import math

import pytest
from talkative import LetterTokenizer

from sumix_stream.search.hypothesis import Hypothesis, Word
from sumix_stream.search.words import Delay, TokenTime, estimate_delay, token_times, utterance_confidence, words_of

TOKENIZER = LetterTokenizer()  # 1, 5, 9... begin a word
FRAME = 0.04


def hypothesis(tokens: list[int], times: list[float], confidence: list[float] | None = None) -> Hypothesis:
    return Hypothesis(TOKENIZER.decode(tokens), tokens, times, confidence or [0.5] * len(tokens))


def test_words_have_times_and_their_weakest_tokens_confidence():
    found = words_of(
        hypothesis([1, 2, 3, 5, 9, 10], [0.4, 0.52, 0.6, 1.0, 2.0, 2.4], [0.9, 0.3, 0.8, 1.0, 0.7, 0.6]),
        TOKENIZER,
        FRAME,
    )
    assert found == [
        Word("abc", 0.4, pytest.approx(0.64), 0.3),
        Word("e", 1.0, pytest.approx(1.04), 1.0),
        Word("ij", 2.0, pytest.approx(2.44), 0.6),
    ]
    assert words_of(hypothesis([], []), TOKENIZER, FRAME) == []


def test_a_first_token_that_begins_no_word_makes_one():
    assert [word.text for word in words_of(hypothesis([2, 3, 5], [0.0, 0.1, 0.2]), TOKENIZER, FRAME)] == ["bc", "e"]


def test_tokens_last_until_the_next_of_their_word():
    times = token_times(hypothesis([1, 2, 5], [0.4, 0.6, 1.0]), TOKENIZER, FRAME)
    assert times == [TokenTime(0.4, 0.6), TokenTime(0.6, pytest.approx(0.64)), TokenTime(1.0, pytest.approx(1.04))]


def test_a_delay_moves_both_ends_but_nothing_overlaps():
    delayed = hypothesis([1, 5, 9], [0.08, 1.0, 1.2])
    first, second, third = words_of(delayed, TOKENIZER, FRAME, Delay(0.3, -0.1))
    assert (first.start, first.end) == (0.0, pytest.approx(0.22))
    assert (second.start, second.end) == (pytest.approx(0.7), pytest.approx(0.9))  # its end would be 1.14
    assert (third.start, third.end) == (pytest.approx(0.9), pytest.approx(1.34))
    late = words_of(delayed, TOKENIZER, FRAME, Delay(0.0, 0.5))
    assert all(word.end >= word.start for word in late)


def test_delay_is_learnt_from_words_that_were_recognised():
    given = [Word("one", 0.5, 0.9), Word("two", 1.0, 1.4), Word("three", 2.0, 2.5), Word("four", 3.0, 3.2)]
    heard = [
        Word("one", 0.7, 1.0),
        Word("too", 9.0, 9.9),
        Word("three", 2.3, 2.6),
        Word("more", 8, 9),
        Word("four", 3.25, 3.35),
    ]
    delay = estimate_delay([(heard, given), ([], given)])
    assert delay == (pytest.approx(0.25), pytest.approx(0.1))
    with pytest.raises(ValueError, match="none of the given words was recognised"):
        estimate_delay([(heard, []), ([Word("x", 0, 1)], given)])


def test_learnt_delay_takes_itself_back():
    tokens, times = [1, 2, 5, 6, 9], [0.8, 0.96, 1.6, 1.72, 2.4]
    plain = words_of(hypothesis(tokens, times), TOKENIZER, FRAME)
    truth = [word._replace(start=word.start - 0.2, end=word.end + 0.06) for word in plain]
    delay = estimate_delay([(plain, truth)])
    found = words_of(hypothesis(tokens, times), TOKENIZER, FRAME, delay)
    for word, reference in zip(found, truth, strict=True):
        assert (word.start, word.end) == (pytest.approx(reference.start), pytest.approx(reference.end))


def test_confidence_of_an_utterance():
    assert utterance_confidence(hypothesis([1, 2], [0, 1], [0.9, 0.4])) == pytest.approx(math.sqrt(0.36))
    assert utterance_confidence(hypothesis([1], [0], [0.0])) == pytest.approx(0.0)
    assert utterance_confidence(hypothesis([], [])) is None
