"""The tables on paper: formulas at cases that can be told in the head, and the page that shows them."""

import math
import subprocess

import pytest
from conftest import ROOT

from sumix_stream.bench.scaling import (
    BUCKET_BYTES,
    Cluster,
    all_reduce_seconds,
    efficiency,
    exposed_seconds,
    loader_rate,
    parameters,
)
from sumix_stream.tasks.build import build_model

QUIET = Cluster(gpus=4, within=100.0, between=10.0, within_latency=0.0, between_latency=0.0, spread=0.0, backward=0.5)


def test_bytes_over_bandwidth():
    assert all_reduce_seconds(400.0, 4, QUIET, "ring") == pytest.approx(2 * 300 / 100)
    assert all_reduce_seconds(400.0, 8, QUIET, "ring") == pytest.approx(6 + 2 * 0.5 * 400 / 10)
    assert all_reduce_seconds(400.0, 8, QUIET, "tree") == pytest.approx(6 + 2 * 400 / 10)
    with pytest.raises(ValueError, match="ring or tree, got 'star'"):
        all_reduce_seconds(400.0, 8, QUIET, "star")


def test_a_ring_waits_for_every_node_and_a_tree_for_its_depth():
    slow = Cluster(gpus=1, between_latency=1.0)
    assert all_reduce_seconds(0.0, 1024, slow, "ring") == pytest.approx(2 * 1023)
    assert all_reduce_seconds(0.0, 1024, slow, "tree") == pytest.approx(2 * 10)


def test_the_backward_pass_hides_all_but_the_last_bucket():
    size = 4 * BUCKET_BYTES
    whole, last = (all_reduce_seconds(part, 4, QUIET, "ring") for part in (size, BUCKET_BYTES))
    assert exposed_seconds(size, 10 * whole, 4, QUIET) == last
    assert exposed_seconds(size, whole, 4, QUIET) == pytest.approx(whole / 2)
    assert exposed_seconds(size, whole, 1, QUIET) == 0


def test_efficiency_is_one_alone_and_loses_to_the_slowest():
    assert efficiency(1e9, 0.1, 1, Cluster()) == 1
    spread = Cluster(within=math.inf, within_latency=0.0, spread=0.1)
    assert efficiency(1e9, 0.1, 8, spread) == pytest.approx(1 / (1 + 0.1 * math.sqrt(2 * math.log(8))))


def test_what_loaders_owe_and_what_is_exchanged():
    assert loader_rate(150, 0.5, Cluster(gpus=8)) == 2400  # 8 x 150 s in half a second
    assert parameters("tiny", 500) == build_model("tiny", 500).num_parameters


def test_the_page_shows_what_the_command_prints():
    command = [ROOT / "egs" / "librispeech" / "scaling"]
    tables = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "egs" / "librispeech" / "SCALING.md").read_text()
    assert page.partition("<!-- tables -->\n")[2].partition("<!-- /tables -->")[0] == tables
