"""A validation set that cannot be read is no error rate of 0 %."""

import logging
from pathlib import Path

import pytest
from lhotse import CutSet
from train.fakes import FakeLoader, FakeModel, FakeTokenizer, fake_recipe
from trees import write_cuts_and_tokenizer

from sumix_stream.data import load_cuts
from sumix_stream.evaluate.scoring import WordErrors, align
from sumix_stream.train.loop import Trainer
from sumix_stream.train.validation import MAX_TRIED, NoErrorRate, Validator


class Result:
    def __init__(self, utterances):
        self.word_errors = WordErrors(tuple(align(u.id, u.text, "ALPHA") for u in utterances))

    @property
    def metrics(self):
        return {"wer": self.word_errors.wer}

    def summary(self):
        return self.word_errors.summary()


@pytest.fixture
def cuts(tmp_path):
    """Four utterances, read lazily."""
    folder = tmp_path / "data"
    folder.mkdir()
    _, manifest, _ = write_cuts_and_tokenizer(folder, [0.3, 0.4, 0.5, 0.6])
    return load_cuts(manifest)


def validator(cuts):
    return Validator(cuts, lambda model, utterances: Result(utterances))


def lose(cuts, *numbers):
    for number, cut in enumerate(cuts):
        if number in numbers:
            Path(cut.recording.sources[0].source).unlink()


def test_a_set_that_can_be_read_is_scored(cuts):
    validate = validator(cuts)
    validate.check()
    result = validate(None)
    assert len(result.word_errors.utterances) == 4 and result.word_errors.num_words == 12
    assert validate(None).metrics == result.metrics


def test_a_run_does_not_begin_without_validation_audio(cuts, caplog):
    lose(cuts, 0, 1, 2, 3)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(NoErrorRate, match="none of its first 4 utterances can be read"),
    ):
        validator(cuts).check()
    assert caplog.text.count("no such file") == 4


def test_it_does_not_read_a_whole_corpus_to_find_out(cuts, caplog):
    lose(cuts, 0)
    first = next(iter(cuts))
    many = [first] * (MAX_TRIED + 1) + list(cuts)[1:]
    with pytest.raises(NoErrorRate, match=f"first {MAX_TRIED} utterances"):
        validator(many).check()
    validator([first, *list(cuts)[1:]]).check()  # one that is missing is no reason


def test_nor_without_transcripts(cuts):
    silent = CutSet.from_cuts(cut.drop_supervisions() for cut in cuts)
    with pytest.raises(NoErrorRate, match="no utterance has a transcript"):
        validator(silent).check()


def test_audio_lost_on_the_way_gives_no_rate(cuts, caplog):
    validate = validator(cuts)
    validate(None)
    lose(cuts, 1)
    with caplog.at_level(logging.WARNING), pytest.raises(NoErrorRate, match="only 9 of 12 reference words"):
        validate(None)
    assert "1 of 4 utterances could not be read" in caplog.text
    lose(cuts, 0, 2, 3)
    with pytest.raises(NoErrorRate, match="0 of 4 utterances could be read, with no reference word"):
        validate(None)


def test_no_checkpoint_is_the_best_by_a_rate_that_is_none(cuts, tmp_path):
    """The set is lost after the first validation: the run goes on, and its best is the one that was measured."""
    exp = tmp_path / "exp"

    def hook(epoch, index):
        if (epoch, index) == (0, 3):
            lose(cuts, 0, 1, 2, 3)

    recipe = fake_recipe(exp, max_steps=6, valid_interval=2, save_interval=2, log_interval=1)
    loader = FakeLoader(hook=hook)
    Trainer(recipe, FakeModel(), FakeTokenizer(), loader, validator(cuts)).fit()
    assert (exp / "best.txt").read_text() == "checkpoints/step-00000002\n"
    assert (exp / "last.txt").read_text() == "checkpoints/step-00000006\n"
    log = (exp / "train.log").read_text()
    assert log.count("no error rate, and no best checkpoint by it") == 2
    assert "0.00%" not in log
