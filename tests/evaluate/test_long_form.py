"""One stream for long: errors land in the bin where they were made, and nothing invents any."""

import pytest
import torch
from talkative import LetterTokenizer, sound, talkative_model

from sumix_stream.data.manifests import Utterance
from sumix_stream.evaluate.long_form import _bins, _slope, long_form
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.recognizer import Recognizer

RATE = 16_000


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer(talkative_model(), LetterTokenizer())


def utterances(texts):
    return [Utterance(str(i), sound(2.0, seed=i), text, 2.0) for i, text in enumerate(texts)]


def test_plays_until_the_time_is_over(recognizer):
    streaming = recognizer.streaming(8, 2, endpointing=Endpointing.sherpa(rule1=0.4, rule2=0.3, rule3=3.0))
    spoken = utterances(["a b", "c"])
    result = long_form(recognizer, streaming, spoken, 0.3, bin_minutes=0.1, gap_seconds=0.5)
    assert 18 <= result.audio_seconds < 20.6
    assert [part.end for part in result.bins][:3] == [6.0, 12.0, 18.0]
    assert sum(part.word_errors.num_words for part in result.bins) == result.word_errors.num_words == 12
    assert result.num_segments > 3 and result.state_nbytes > 0
    assert result.aged_ms is None
    assert "minutes in one stream" in result.summary() and "state" in result.summary()

    # The words are those of one stream, cut nowhere.
    plain = recognizer.streaming(8, 2).create_stream()
    silence = torch.zeros(RATE // 2).numpy()
    for n in range(8):
        plain.feed(RATE, spoken[n % 2].samples)
        plain.feed(RATE, silence)
    found = " ".join(errors.hypothesis for errors in result.word_errors.utterances).split()
    assert "".join(found) == "".join(plain.finish().text.split())


def test_the_stream_is_compared_with_what_it_was(recognizer):
    streaming = recognizer.streaming(8, 2, endpointing=Endpointing.sherpa(rule1=0.4, rule2=0.3, rule3=3.0))
    result = long_form(recognizer, streaming, utterances(["a b", "c"]), 2.2)
    assert len(result.aged_ms) == 2 and min(result.aged_ms) > 0
    assert "minute 1 and that of minute 3, hearing the same chunk by chunk in turn" in result.summary()


def test_errors_are_counted_where_they_were_made():
    texts = [(5.0, "one two"), (9.0, "three"), (14.0, "four five"), (19.0, "six")]
    words = "one two tree four five more six and out".split()
    bins = _bins(texts, words, [(3.0, 0.002), (12.0, 0.004)], [(0.1, 50.0), (0.3, 60.0)], 10.0)
    assert [(part.begin, part.end) for part in bins] == [(0.0, 10.0), (10.0, 19.0)]
    assert [part.word_errors.num_words for part in bins] == [3, 3]
    assert [(part.word_errors.substitutions, part.word_errors.insertions) for part in bins] == [(1, 0), (0, 3)]
    assert [part.chunk_ms for part in bins] == [2.0, 4.0]
    assert [part.rss_mb for part in bins] == [50.0, 60.0]
    assert [part.end for part in _bins(texts, words, [], [], 18.5)] == [19.0], "a short rest is no bin of its own"


def test_slope():
    assert _slope([(1.0, 10.0), (2.0, 12.0), (3.0, 14.0)]) == pytest.approx(2.0)
    assert _slope([(1.0, 10.0)]) is None


def test_refuses(recognizer):
    streaming = recognizer.streaming(8, 2)
    with pytest.raises(ValueError, match="no utterances to play"):
        long_form(recognizer, streaming, [], 1)
    with pytest.raises(ValueError, match="must be above 0, got 0 and 10.0"):
        long_form(recognizer, streaming, utterances(["a"]), 0)
