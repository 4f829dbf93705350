"""Training batches: complete, reproducible, resumable, and not stopped by a bad file."""

import logging
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
from data.trees import write_cuts_and_tokenizer

from sumix_stream.config import DataConfig
from sumix_stream.data import ManifestError, TrainLoader, UtteranceError
from sumix_stream.features import fbank
from sumix_stream.timebase import Timebase

DURATIONS = [1.0 + 0.07 * (i % 13) for i in range(24)]
PLAIN = DataConfig(max_duration=6.0, num_buckets=3, spec_augment=None)
AUGMENTED = DataConfig(max_duration=6.0, num_buckets=3, speed_perturb=(0.9, 1.1))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_cuts_and_tokenizer(tmp_path_factory.mktemp("corpus"), DURATIONS)


@pytest.fixture
def own_tree(tmp_path):
    """A tree that the test may damage."""
    return write_cuts_and_tokenizer(tmp_path, DURATIONS)


def loader(tree, config: DataConfig = PLAIN, **options) -> TrainLoader:
    _, manifest, tokenizer = tree
    return TrainLoader(config, manifest, tokenizer, Timebase(), **{"seed": 0, **options})


def damage(tree, wanted: Callable[[str], bool]) -> None:
    for cut in tree[0]:
        if wanted(cut.id):
            Path(cut.recording.sources[0].source).write_bytes(b"not audio")


def assert_same(a, b):
    assert (a.index, a.ids, a.texts, a.seconds) == (b.index, b.ids, b.texts, b.seconds)
    for name in ("feats", "feat_lengths", "tokens", "token_lengths"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_an_epoch_is_every_utterance_once(tree):
    cuts, _, tokenizer = tree
    batches = list(loader(tree).epoch_batches(0))
    assert [batch.index for batch in batches] == list(range(len(batches)))
    assert sorted(chain.from_iterable(batch.ids for batch in batches)) == sorted(cuts.ids)
    assert sum(batch.seconds for batch in batches) == pytest.approx(sum(DURATIONS), abs=0.01)
    for batch in batches:
        # Lhotse closes a batch when one more of its longest would be too much, so it may overshoot by a little.
        assert len(batch) * max(cuts[id].duration for id in batch.ids) <= 1.3 * 6.0
        for b, id in enumerate(batch.ids):
            length, num_tokens = int(batch.feat_lengths[b]), int(batch.token_lengths[b])
            torch.testing.assert_close(batch.feats[b, :length], fbank(cuts[id].load_audio()[0]), rtol=0, atol=1e-4)
            assert (batch.feats[b, length:] == 0).all() and (batch.tokens[b, num_tokens:] == 0).all()
            assert tokenizer.decode(batch.tokens[b, :num_tokens].tolist()) == batch.texts[b]
            assert batch.texts[b] == cuts[id].supervisions[0].text
        assert batch.feats.shape == (len(batch), batch.feat_lengths.max(), 80) and batch.tokens.dtype == torch.int64


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_depend_on_seed_and_epoch_only(tree, num_workers):
    first = list(loader(tree, AUGMENTED).epoch_batches(3))
    config = DataConfig(**{**vars(AUGMENTED), "num_workers": num_workers})
    other = loader(tree, config)
    list(other.epoch_batches(0))  # what was drawn before does not matter
    for a, b in zip(first, other.epoch_batches(3), strict=True):
        assert_same(a, b)


def test_seed_and_epoch_change_the_order(tree):
    def ids(seed, epoch):
        return [batch.ids for batch in loader(tree, seed=seed).epoch_batches(epoch)]

    assert ids(0, 0) != ids(0, 1) and ids(0, 0) != ids(1, 0)


def test_features_are_augmented_anew_each_epoch(tree):
    config = DataConfig(max_duration=100.0, num_buckets=2)
    rows = [
        {id: batch.feats[b] for batch in loader(tree, config).epoch_batches(epoch) for b, id in enumerate(batch.ids)}
        for epoch in (0, 1)
    ]
    changed = [not torch.equal(rows[0][id][:90], rows[1][id][:90]) for id in rows[0]]
    assert sum(changed) > len(changed) // 2


@pytest.mark.parametrize("skip", [1, 5])
def test_skip_is_the_tail_of_the_epoch(tree, skip, monkeypatch):
    whole = list(loader(tree, AUGMENTED).epoch_batches(1))
    read = []
    from sumix_stream.data import batches

    monkeypatch.setattr(
        batches, "load_samples", lambda cut, load=batches.load_samples: read.append(cut.id) or load(cut)
    )
    tail = list(loader(tree, AUGMENTED).epoch_batches(1, skip=skip))
    for a, b in zip(whole[skip:], tail, strict=True):
        assert_same(a, b)
    assert sorted(read) == sorted(chain.from_iterable(batch.ids for batch in tail))  # the skipped were not read


def test_skipping_the_whole_epoch_leaves_nothing(tree):
    assert list(loader(tree).epoch_batches(0, skip=1000)) == []


def test_ranks_share_an_epoch(tree):
    shards = [list(loader(tree, rank=rank, world_size=2).epoch_batches(0)) for rank in (0, 1)]
    assert len(shards[0]) == len(shards[1])
    ids = [id.split("_dup")[0] for batch in chain(*shards) for id in batch.ids]
    assert set(ids) == set(tree[0].ids) and len(ids) <= len(DURATIONS) + 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_utterance_is_left_out_by_name(own_tree, caplog, num_workers):
    damage(own_tree, lambda id: id == "utt-07")
    config = DataConfig(**{**vars(PLAIN), "num_workers": num_workers})
    with caplog.at_level(logging.WARNING):
        ids = sorted(chain.from_iterable(batch.ids for batch in loader(own_tree, config).epoch_batches(0)))
    assert ids == sorted(set(own_tree[0].ids) - {"utt-07"})
    if num_workers == 0:  # a worker's log goes to its own standard error
        assert "utt-07" in caplog.text and "utt-07.flac" in caplog.text


@pytest.fixture
def lost_batch(own_tree):
    """The third batch of epoch 0 cannot be read."""
    lost = list(loader(own_tree).epoch_batches(0))[2]
    damage(own_tree, lambda id: id in lost.ids)
    return own_tree


def test_an_unreadable_batch_is_left_out(lost_batch):
    indices = [batch.index for batch in loader(lost_batch).epoch_batches(0)]
    assert indices == [0, 1, *range(3, len(indices) + 1)]


def test_ranks_stay_in_step_when_one_loses_a_batch(own_tree):
    whole = [list(loader(own_tree, rank=rank, world_size=2).epoch_batches(0)) for rank in (0, 1)]
    lost = [id.split("_dup")[0] for id in whole[1][1].ids]
    damage(own_tree, lambda id: id in lost)
    shards = [list(loader(own_tree, rank=rank, world_size=2).epoch_batches(0)) for rank in (0, 1)]
    assert len(shards[0]) == len(shards[1]) == len(whole[0])


def test_ranks_stay_in_step_when_the_last_batch_is_lost(own_tree):
    whole = list(loader(own_tree, rank=1, world_size=2).epoch_batches(0))
    lost = [id.split("_dup")[0] for id in whole[-1].ids]
    damage(own_tree, lambda id: id in lost)
    assert len(list(loader(own_tree, rank=1, world_size=2).epoch_batches(0))) == len(whole)


def test_ranks_hear_when_nothing_can_be_read(own_tree):
    damage(own_tree, lambda id: True)
    with pytest.raises(UtteranceError, match="could be read"):
        list(loader(own_tree, world_size=2).epoch_batches(0))


def test_nothing_left_to_train_on_is_an_error(tree, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(ManifestError, match="no cut is left"):
        loader(tree, DataConfig(min_utterance=20.0)).epoch_batches(0)
    assert "utt-00" in caplog.text


def test_one_utterance_is_a_batch(tmp_path):
    (batch,) = loader(write_cuts_and_tokenizer(tmp_path, [1.0])).epoch_batches(0)
    assert batch.ids == ["utt-00"] and batch.to("cpu").feats is not None


@pytest.mark.parametrize("options", [{"rank": 2, "world_size": 2}, {"rank": -1}], ids=str)
def test_impossible_rank_is_refused(tree, options):
    with pytest.raises(ValueError, match="rank must lie in"):
        loader(tree, **options)
