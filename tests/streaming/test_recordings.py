"""Recordings of any length: as one stream, in parts, and what is settled on the way."""

import numpy as np
import pytest
from talkative import LetterTokenizer, sound, talkative_model

from sumix_stream.search.options import SearchOptions
from sumix_stream.streaming.live import CUTS, Gathered, packets, play, play_words, words_so_far
from sumix_stream.streaming.recognizer import Recognizer
from sumix_stream.streaming.recordings import parts, quietest, recognise

RATE = 16_000


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer(talkative_model(), LetterTokenizer())


def blocks(samples, size=5_003):
    return (samples[start : start + size] for start in range(0, len(samples), size))


def test_what_does_not_fit_is_one_stream(recognizer):
    samples = sound(9.0)
    context = recognizer.context("320ms", 2)
    whole = recognise(recognizer, blocks(samples), RATE, context)
    streamed = recognise(recognizer, blocks(samples), RATE, context, longest=2.0)
    assert streamed == whole and len(whole.hypothesis.tokens) > 30
    assert whole.seconds == 9.0 and whole.num_parts == 1
    twice = np.repeat(samples, 3)  # 48 kHz
    a, b = (recognise(recognizer, blocks(twice), 3 * RATE, context, longest=n) for n in (2.0, 60.0))
    assert a == b


def test_segments_of_a_stream_change_no_token(recognizer):
    """80 s: there are cuts by length."""
    context, samples = recognizer.context("640ms", 2), sound(80.0)
    streaming = recognizer.streaming(context, endpointing=CUTS)
    gathered, shown = Gathered(), []
    for _, words in play_words(streaming, blocks(samples), RATE, 1.0, False, gathered):
        shown += words
    plain = recognizer.stream(context)
    plain.feed(RATE, samples)
    expected = plain.finish()
    assert gathered.hypothesis(recognizer.tokenizer) == expected
    words = recognizer.words(expected)
    assert {word.start for word in words} <= {word.start for word in shown} and len(words) > 50
    assert len(shown) < 3 * len(words)  # most are said once, those that were open again


def test_parts_under_full_context_are_cut_where_it_is_quiet(recognizer):
    samples = sound(10.0)
    samples[int(3.1 * RATE) : int(3.6 * RATE)] *= 0.001
    cut = parts(blocks(samples), RATE, 4.0)
    first, *others = [len(part) for part in cut]
    assert 3.1 * RATE < first < 3.6 * RATE and sum(others) + first == len(samples) and max(others) <= 4 * RATE
    context = recognizer.whole_context()
    found = recognise(recognizer, blocks(samples), RATE, context, longest=4.0)
    assert found.num_parts == len(others) + 1 and found.seconds == 10.0
    expected, begin = Gathered(), 0
    for size in (first, *others):
        expected.add(recognizer.transcribe((samples[begin : begin + size], RATE)), begin / RATE)
        begin += size
    assert found.hypothesis == expected.hypothesis(recognizer.tokenizer)
    assert found.hypothesis.timestamps == sorted(found.hypothesis.timestamps)
    assert recognise(recognizer, blocks(samples), RATE, context).hypothesis == recognizer.transcribe((samples, RATE))


def test_what_cannot_be_cut_anywhere(recognizer):
    assert quietest(np.ones(100, np.float32), 60, RATE) == 100
    with pytest.raises(ValueError, match="longest part must be above 0 s, got 0"):
        recognise(recognizer, [], RATE, recognizer.whole_context(), longest=0)
    search = SearchOptions(method="modified_beam", nbest=2)
    with pytest.raises(ValueError, match="at most 1 s of audio"):
        recognise(recognizer, blocks(sound(2.0)), RATE, recognizer.whole_context(), search, 1.0)
    assert recognise(recognizer, [], RATE, recognizer.whole_context()).hypothesis.text == ""


@pytest.mark.parametrize("search", [SearchOptions(), SearchOptions(method="modified_beam", beam=4)], ids=str)
def test_settled_words_never_change(recognizer, search):
    streaming = recognizer.streaming("320ms", 2, search=search)
    stream, settled, late = streaming.create_stream(), [], 0
    for _ in play(streaming, stream, blocks(sound(8.0)), RATE, 0.05):
        found = words_so_far(streaming, stream)
        assert found.settled[: len(settled)] == settled
        assert found.settled + found.open == recognizer.words(streaming.result(stream))
        settled, late = found.settled, max(late, len(found.open))
    assert len(settled) > 5 and late >= 1
    if search.method == "greedy":
        assert late == 1


def test_packets():
    data = np.arange(1_000, dtype=np.float32)
    for size in (1, 7, 100, 999, 1_000, 3_000):
        found = list(packets(blocks(data, 77), size))
        np.testing.assert_array_equal(np.concatenate(found), data)
        assert {len(part) for part in found[:-1]} <= {size} and 0 < len(found[-1]) <= size
