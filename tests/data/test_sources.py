"""Weighted sources: their shares of the audio are those asked, and an epoch is a function of (seed, epoch) alone.

Shares are counted here from the ids of what is planned and the durations in the manifests.
"""

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from lhotse import CutSet
from train.fakes import FakeModel, FakeTokenizer, fake_recipe
from trees import write_cuts_and_tokenizer

from sumix_stream.config import DataConfig, SourceConfig
from sumix_stream.config.reader import to_dict
from sumix_stream.data import ManifestError, TrainLoader
from sumix_stream.timebase import Timebase
from sumix_stream.train.loop import Trainer

NUMBERS = {"new": 7, "old": 40, "far": 90}  # cuts of each source
WEIGHTS = {"new": 1.0, "old": 0.3, "far": 2.5}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Manifests of three sources, seconds of each cut by its id, and a tokenizer. All share a few audio files."""
    folder = tmp_path_factory.mktemp("sources")
    cuts, _, tokenizer = write_cuts_and_tokenizer(folder, [1.0 + 0.09 * i for i in range(9)])
    cuts, manifests, seconds = list(cuts), {}, {}
    for start, (name, number) in enumerate(NUMBERS.items()):
        own = [cuts[(start + i * i) % 9].with_id(f"{name}-{i}") for i in range(number)]
        manifests[name] = folder / f"{name}.jsonl.gz"
        CutSet.from_cuts(own).to_file(manifests[name])
        seconds |= {cut.id: cut.duration for cut in own}
    return manifests, seconds, tokenizer


def make(sources, weights=WEIGHTS, **options) -> TrainLoader:
    manifests, _, tokenizer = sources
    chosen = tuple(SourceConfig(str(manifests[name]), weight) for name, weight in weights.items())
    config = DataConfig(train_cuts=chosen, max_duration=6.0, num_buckets=3, speed_perturb=(0.9,))
    return TrainLoader(config, config.train_paths, tokenizer, Timebase(), **{"seed": 0, **options})


def ids(loader, epoch):
    plan = loader.plan(epoch)
    pieces = chain.from_iterable(chain.from_iterable(plan.batch(number) for number in range(len(plan))))
    return [loader._index.read(piece.cut).id for piece in pieces]


def seconds_of(found, seconds):
    total = Counter()
    for id in found:
        total[id.split("-")[0]] += seconds[id]
    return total


@pytest.mark.parametrize("weights", [WEIGHTS, {"new": 3, "far": 1}, {"far": 1.0, "old": 1e-3}, {"old": 5.0}], ids=str)
def test_shares_of_the_audio_are_the_weights(sources, weights):
    """After any number of epochs, to less than a cut."""
    _, seconds, _ = sources
    loader, longest = make(sources, weights), max(seconds.values())
    hours = {name: sum(s for id, s in seconds.items() if id.startswith(name)) for name in weights}
    scale = min(hours[name] / weight for name, weight in weights.items())
    heard, times = Counter(), Counter()
    for epoch in range(30):
        found = ids(loader, epoch)
        assert len(set(found)) == len(found), "a cut comes twice in an epoch"
        heard += seconds_of(found, seconds)
        times.update(found)
        for name, weight in weights.items():
            assert abs(heard[name] - (epoch + 1) * weight * scale) < longest, (epoch, name)
    for name in weights:  # and nothing of a source is preferred
        counts = [times[id] for id in seconds if id.startswith(name)]
        assert max(counts) - min(counts) <= 1
    first = min(weights, key=lambda name: hours[name] / weights[name])
    assert all(times[id] == 30 for id in seconds if id.startswith(first))  # spent in every epoch


def test_weights_by_hours_are_the_plain_list(sources):
    manifests, seconds, tokenizer = sources
    samples = {name: round(16_000 * sum(s for id, s in seconds.items() if id.startswith(name))) for name in NUMBERS}
    weighted = make(sources, samples)
    config = replace(weighted.config, train_cuts=tuple(map(str, manifests.values())))
    plain = TrainLoader(config, config.train_paths, tokenizer, Timebase(), seed=0)
    assert [weighted.fingerprint(epoch) for epoch in range(3)] == [plain.fingerprint(epoch) for epoch in range(3)]
    assert weighted.fingerprint(0) != make(sources).fingerprint(0)
    assert plain.describe_sources() is None


def test_an_epoch_depends_on_seed_and_number_alone(sources):
    first, other = make(sources), make(sources)
    assert ids(first, 5) == ids(other, 5)  # whatever came before
    assert set(ids(first, 0)) != set(ids(first, 1)) and set(ids(make(sources, seed=1), 0)) != set(ids(first, 0))


def test_ranks_and_steps_share_what_one_process_takes(sources):
    one = list(make(sources, accumulate=2).epoch_batches(3))
    for rank in range(2):
        own = list(make(sources, rank=rank, world_size=2).epoch_batches(3, skip=1))
        assert [batch.ids for batch in own] == [batch.ids for batch in one[rank::2]][1:]
        assert all(torch.equal(a.feats, b.feats) for a, b in zip(one[rank::2][1:], own, strict=True))


def test_a_run_goes_on_bit_for_bit(sources, tmp_path):
    """Across the end of an epoch, and from the middle of one."""

    def run(folder, steps):
        model = FakeModel()
        recipe = fake_recipe(folder, max_steps=steps, warmup_fraction=0.0, final_lr_fraction=1.0)
        Trainer(recipe, model, FakeTokenizer(), make(sources, {"new": 1, "far": 0.5})).fit()
        return model.state_dict()

    straight = run(tmp_path / "a", 9)
    for steps in (2, 5, 9):
        resumed = run(tmp_path / "b", steps)
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    lines = [(tmp_path / name / "metrics.jsonl").read_text().count('"loss"') for name in "ab"]
    assert lines == [9, 9]


def test_the_log_says_what_is_heard(sources):
    told, tmp = make(sources, {"new": 1, "old": 0.25}).describe_sources(), sources[0]["new"].parent.name
    assert f"{tmp}/new.jsonl.gz 80.0% (0.00 h, all of it each epoch)" in told
    assert "old.jsonl.gz 20.0% (0.01 h, once in " in told


def test_a_source_that_gives_nothing_is_named(sources, tmp_path):
    manifests, _, tokenizer = sources
    cut = next(iter(CutSet.from_file(manifests["new"])))
    cut.supervisions[0].text = " "
    CutSet.from_cuts([cut]).to_file(tmp_path / "silent.jsonl.gz")
    config = DataConfig(
        train_cuts=(SourceConfig(str(manifests["old"])), SourceConfig(str(tmp_path / "silent.jsonl.gz"), 0.3))
    )
    with pytest.raises(ManifestError, match=r"silent.jsonl.gz: no cut of it can be trained on"):
        TrainLoader(config, config.train_paths, tokenizer, Timebase(), seed=0)
    Path(tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ManifestError, match=r"none.jsonl: no cuts in it"):
        TrainLoader(config, [manifests["old"], tmp_path / "none.jsonl"], tokenizer, Timebase(), seed=0)
    with pytest.raises(ValueError, match="has 2 weights; the cuts come from 1 manifests"):
        TrainLoader(config, manifests["old"], tokenizer, Timebase(), seed=0)


def test_weights_are_plain_in_yaml():
    config = DataConfig(train_cuts=(SourceConfig("a", 1), SourceConfig("b", 0.3)))
    assert to_dict(config)["train_cuts"] == [{"path": "a", "weight": 1}, {"path": "b", "weight": 0.3}]
    assert config.train_paths == ("a", "b") and config.train_weights == (1, 0.3)
