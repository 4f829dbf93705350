"""The table of state sizes: what it says is what streams hold, and that unlimited context costs no more than little."""

import pytest

from sumix_stream.config import PRESETS
from sumix_stream.evaluate.state_size import state_sizes, table


def test_sizes_are_what_the_shapes_say():
    sizes = {(size.mixer, size.context.left_context): size for size in state_sizes(["tiny"], (None, 4, 8))}
    assert len(sizes) == 6
    encoder = PRESETS["tiny"].encoder
    ours, twin = sizes["summary", None], sizes["attention", None]
    assert ours.growth == 0 and all(sizes["summary", left].growth == 0 for left in (4, 8))
    second = 25 * encoder.num_layers * 2 * encoder.dim * 4  # keys and values of 25 frames
    assert twin.growth == pytest.approx(second)
    for mixer, chunk in (("summary", encoder.num_layers * 4 * (encoder.dim + 1)), ("attention", 0.64 * second)):
        four, eight = sizes[mixer, 4], sizes[mixer, 8]
        assert eight.encoder - four.encoder == pytest.approx(4 * chunk) and eight.rest == four.rest
    assert ours.encoder <= sizes["summary", 4].encoder < sizes["attention", 4].encoder
    assert ours.rest == twin.rest > 63 * 80 * 4, "63 feature frames wait for the 64th"
    lines = table(list(sizes.values())).splitlines()
    assert len(lines) == 2 + 3 and "a second" in lines[2] and "after an hour" in lines[2]
    assert f"{twin.total(3600):,}" in lines[2] and "a second" not in lines[3]


def test_an_unknown_preset():
    with pytest.raises(ValueError, match="tiny, small"):
        state_sizes(["huge"])
