"""What encoders cost is measured of all kinds, each by the runtime that can."""

import pytest

from sumix_stream.bench.kinds import costs, table


def test_a_row_for_each_kind():
    kinds = ["conformer, fast", "branchformer, full, 80 ms"]
    found = costs("tiny", kinds, utterances=2, seconds=1.0, repeats=1)
    assert [cost.kind for cost in found] == kinds
    assert found[1].runtime == "torch"
    assert all(min(cost.training, cost.alone, cost.among_many) > 0 for cost in found)
    assert len(table(found).splitlines()) == 4
    with pytest.raises(ValueError, match="kinds must be of conformer, fast; .*got 'zipformer'"):
        costs("tiny", ["zipformer"], utterances=2, seconds=1.0, repeats=1)
