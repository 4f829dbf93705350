"""Train, valid and test: what sources say, speakers apart, else at random."""

import numpy as np
import pytest

from sumix_stream.corpora.splitting import MOST_SECONDS, PARTS, split

NOBODY = -np.ones(1000, int)


def shares(seconds, parts):
    return {name: seconds[parts == n].sum() / seconds.sum() for n, name in enumerate(PARTS)}


def test_speakers_are_kept_apart():
    rng = np.random.default_rng(0)
    seconds, speakers = rng.uniform(1, 10, 1000), rng.integers(0, 60, 1000)
    found = split(seconds, speakers, NOBODY)
    heard = [set(speakers[found.parts == n]) for n in range(3)]
    assert not heard[0] & heard[1] and not heard[0] & heard[2] and not heard[1] & heard[2]
    share = shares(seconds, found.parts)
    assert 0.025 < share["valid"] < 0.075 and 0.025 < share["test"] < 0.075
    assert all("speakers that training does not hear" in note for note in found.notes)
    assert (found.parts == split(seconds, speakers, NOBODY).parts).all()
    assert (found.parts != split(seconds, speakers, NOBODY, seed=1).parts).any()


@pytest.mark.parametrize("kind", ["unknown", "one speaker", "two speakers"])
def test_without_speakers_to_spare_utterances_are_drawn(kind):
    seconds = np.ones(1000)
    speakers = {"unknown": NOBODY, "one speaker": NOBODY + 1, "two speakers": np.arange(1000) % 2}[kind]
    found = split(seconds, speakers, NOBODY, valid=0.1, test=0.02)
    assert [int((found.parts == n).sum()) for n in (1, 2)] == [98, 20]  # a tenth of what the test leaves
    assert all("at random" in note for note in found.notes)


def test_what_sources_say_is_kept():
    given = np.repeat([0, 0, 2, -1], 250)
    found = split(np.ones(1000), np.arange(1000) // 10, given, valid=0.1)
    assert ((found.parts == 2) == (given == 2)).all() and "as the sources say" in found.notes[0]
    assert 30 <= (found.parts == 1).sum() <= 110


def test_numbers_limits_and_nothing():
    seconds = np.full(100_000, 10.0)
    speakers = -np.ones(100_000, int)
    given = -np.ones(100_000, int)
    found = split(seconds, speakers, given, valid=50, test=0.5)
    assert (found.parts == 1).sum() == 50
    assert seconds[found.parts == 2].sum() == MOST_SECONDS["test"]
    none = split(seconds[:9], speakers[:9], given[:9], valid=0, test=0)
    assert (none.parts == 0).all() and none.notes == ["test: none", "valid: none"]
    few = split(seconds[:2], speakers[:2], given[:2])
    assert (few.parts == 0).sum() == 1


def test_bad_values():
    ones = np.ones(10)
    for values in ({"valid": -1}, {"test": 1.5}):
        with pytest.raises(ValueError, match="must be a share below 1, or a number"):
            split(ones, -ones, -ones, **values)
    with pytest.raises(ValueError, match="left to train on"):
        split(ones, -ones, 2 * ones)
