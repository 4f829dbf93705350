"""`kill -9` loses nothing: tests/train/killing.py with one kill. Its 20 are in docs/train.md."""

import pytest
from train.beeps import beep_recipe
from train.killing import differences, killed, untouched


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("processes, num_workers", [(1, 2), (2, 1)], ids=["start again", "torchrun restarts"])
def test_killed_and_untouched_runs_are_identical(tmp_path, processes, num_workers):
    """Most of the time goes into starting processes and loaders, so there are few of either."""
    how = {"num_workers": num_workers, "accumulate": 2}
    expected = untouched(beep_recipe(tmp_path / "untouched"), 30, processes=processes, **how)
    actual = killed(beep_recipe(tmp_path / "killed"), 30, kills=1, seed=1, processes=processes, **how)
    assert differences(expected, actual) == []
    assert [line["step"] for line in actual.steps] == list(range(1, 31))
    assert len(actual.killed_at) == 1
    assert actual.resumed_from, "every kill came before the first save: nothing was tested"
