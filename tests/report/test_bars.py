"""Histograms of the page of prepared data."""

import re

from sumix_stream.report.bars import histogram


def heights(figure):
    return [float(height) for height in re.findall(r'class="bar"[^>]* height="([\d.]+)"', figure)]


def test_bars_are_as_high_as_their_counts_from_the_first_to_the_last():
    figure = histogram("Rates", [0, 1, 2, 4, 8, 16], [0, 10, 0, 5, 0], unit="a & b")
    tall = heights(figure)
    assert len(tall) == 3 and tall[1] == 0 and tall[0] == 2 * tall[2] > 0
    assert "a &amp; b" in figure and "<title>1 to 2: 10</title>" in figure


def test_nothing():
    assert "nothing yet" in histogram("Rates", [0, 1], [0])
