"""Weights tried on frames that are computed once give what decoding with each of them gives."""

from dataclasses import replace

import pytest
from evaluate.test_error_rates import CONTEXT, utterances
from talkative import VOCAB_SIZE, LetterTokenizer, talkative_model

from sumix_stream.config import PredictorConfig
from sumix_stream.evaluate.error_rates import masked_wer
from sumix_stream.evaluate.tuning import Encoded, Point, best, table, try_weights
from sumix_stream.runtime.registry import make_runtime
from sumix_stream.search.neural_lm import NeuralLm
from sumix_stream.search.options import SearchOptions
from sumix_stream.tasks.language_model import LstmLm


@pytest.fixture(scope="module")
def given():
    return utterances(1.1, 0.3, 2.4, 0.02, 1.7)


@pytest.fixture(scope="module")
def encoded(given):
    return Encoded.of(make_runtime(talkative_model(), CONTEXT), LetterTokenizer(), given)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    LstmLm(PredictorConfig(embed_dim=8, hidden_dim=8), VOCAB_SIZE).save(folder)
    return SearchOptions(method="modified_beam", beam=3, lm=NeuralLm.load(folder))


def test_points_are_what_decoding_gives(given, encoded, options, tmp_path):
    points = list(try_weights(encoded, options, [0.0, 0.8], [0.0, 3.0], tmp_path / "notes.jsonl"))
    assert [(point.lm_scale, point.blank_penalty) for point in points] == [(0, 0), (0, 3), (0.8, 0), (0.8, 3)]
    assert len({point[2:] for point in points}) > 1  # the weights matter
    for point in points:
        chosen = replace(options, lm_scale=point.lm_scale, blank_penalty=point.blank_penalty)
        expected = masked_wer(talkative_model(), LetterTokenizer(), given, CONTEXT, options=chosen).word_errors
        assert (point.rate, point.substitutions, point.deletions, point.insertions) == (
            expected.wer,
            expected.substitutions,
            expected.deletions,
            expected.insertions,
        )
    greedy = list(try_weights(encoded, SearchOptions(), [0.0], [0.0], tmp_path / "notes.jsonl"))
    assert greedy[0].rate == masked_wer(talkative_model(), LetterTokenizer(), given, CONTEXT).wer


def test_what_was_found_is_not_searched_again(encoded, options, tmp_path, monkeypatch):
    notes = tmp_path / "notes.jsonl"
    first = list(try_weights(encoded, options, [0.0], [0.0, 1.0], notes))
    notes.write_text(notes.read_text() + '{"key": "half a line of a run that was killed\n')
    searched, errors = [], Encoded.errors
    monkeypatch.setattr(Encoded, "errors", lambda self, options: searched.append(options) or errors(self, options))
    again = list(try_weights(encoded, options, [0.0], [0.0, 1.0, 2.0], notes))
    assert again[:2] == first and [options.blank_penalty for options in searched] == [2.0]

    class OtherModel:  # whose encoder is the same
        fingerprint = "another"

    assert replace(encoded, runtime=OtherModel()).fingerprint != encoded.fingerprint
    other = replace(encoded, batches=[batch._replace(texts=["x"] * len(batch.texts)) for batch in encoded.batches])
    assert next(try_weights(other, options, [0.0], [0.0], notes)) != first[0]  # other references, another result


def test_none_to_try():
    with pytest.raises(ValueError, match="no utterance"):
        Encoded.of(make_runtime(talkative_model(), CONTEXT), LetterTokenizer(), [])


def test_the_table_marks_the_best():
    points = [Point(scale, penalty, rate, None, 0, 0, 0) for scale, penalty, rate in [(0, 0, 0.5), (0.2, 0, 0.25)]]
    assert best(points).lm_scale == 0.2 and best([points[0], points[1]._replace(rate=0.5)]).lm_scale == 0
    assert table(points).splitlines() == [
        "| lm scale | blank penalty 0 |",
        "|--:|--:|",
        "| 0 | 50.00 |",
        "| 0.2 | **25.00** |",
    ]
