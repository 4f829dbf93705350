"""Training batches: complete, reproducible, resumable, and not stopped by a bad file."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trees import write_cuts_and_tokenizer

from sumix_stream.config import DataConfig
from sumix_stream.data import ManifestError, TrainLoader, UtteranceError
from sumix_stream.data.batching import loader as batches
from sumix_stream.data.batching.plan import Utterances
from sumix_stream.features import whole_fbank
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
        assert len(batch) * max(cuts[id].duration for id in batch.ids) <= 6.0
        for b, id in enumerate(batch.ids):
            length, num_tokens = int(batch.feat_lengths[b]), int(batch.token_lengths[b])
            expected = whole_fbank(cuts[id].load_audio()[0])
            np.testing.assert_allclose(batch.feats[b, :length], expected, rtol=0, atol=1e-4)
            assert (batch.feats[b, length:] == 0).all() and (batch.tokens[b, num_tokens:] == 0).all()
            assert tokenizer.decode(batch.tokens[b, :num_tokens].tolist()) == batch.texts[b]
            assert batch.texts[b] == cuts[id].supervisions[0].text
        assert batch.feats.shape == (len(batch), batch.feat_lengths.max(), 80) and batch.tokens.dtype == torch.int64


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_depend_on_seed_and_epoch_only(tree, num_workers):
    first = list(loader(tree, AUGMENTED).epoch_batches(3))
    config = replace(AUGMENTED, num_workers=num_workers)
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
    from sumix_stream.data.batching import loader as batches

    monkeypatch.setattr(
        batches, "load_samples", lambda cut, load=batches.load_samples: read.append(cut.id) or load(cut)
    )
    tail = list(loader(tree, AUGMENTED).epoch_batches(1, skip=skip))
    for a, b in zip(whole[skip:], tail, strict=True):
        assert_same(a, b)
    assert sorted(read) == sorted(chain.from_iterable(batch.ids for batch in tail))  # the skipped were not read


def test_skipping_the_whole_epoch_leaves_nothing(tree):
    assert list(loader(tree).epoch_batches(0, skip=1000)) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_goes_on_from_anywhere(tree, num_workers):
    whole = list(loader(tree, AUGMENTED).epoch_batches(2))
    config = replace(AUGMENTED, num_workers=num_workers)
    for skip in (1, 4, len(whole) - 1, len(whole)) if num_workers == 0 else (3,):
        tail = list(loader(tree, config).epoch_batches(2, skip))
        assert len(tail) == len(whole) - skip
        for a, b in zip(whole[skip:], tail, strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("world_size, accumulate", [(2, 1), (3, 1), (2, 2)])
def test_ranks_share_what_one_process_would_accumulate(tree, world_size, accumulate):
    one = list(loader(tree, AUGMENTED, accumulate=world_size * accumulate).epoch_batches(1))
    assert len(one) % (world_size * accumulate) == 0
    assert sorted(id.split("_sp")[0] for batch in one for id in batch.ids) == sorted(tree[0].ids)
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "accumulate": accumulate}
        own = list(loader(tree, AUGMENTED, **options).epoch_batches(1))
        for n, (a, b) in enumerate(zip(one[rank::world_size], own, strict=True)):
            assert b.index == n
            assert_same(replace(a, index=n), b)


def test_too_few_utterances_for_the_ranks_come_twice(tmp_path, caplog):
    tree = write_cuts_and_tokenizer(tmp_path, [1.0, 1.1, 1.2])
    with caplog.at_level(logging.WARNING):
        shards = [list(loader(tree, rank=rank, world_size=4).epoch_batches(0)) for rank in range(4)]
    assert [len(batches) for batches in shards] == [1, 1, 1, 1]
    assert {id for (batch,) in shards for id in batch.ids} == set(tree[0].ids)
    assert [record.message for record in caplog.records] == [
        "epoch 0: 1 utterances come twice, so that each of 4 ranks has 1 for a step"
    ]


def test_worst_batches_are_the_worst_of_all_ranks(tree):
    config = replace(PLAIN, max_cuts=3, max_lattice=1200)
    batches = list(loader(tree, config, accumulate=2).epoch_batches(1))
    frames = [int(Timebase().num_encoder_frames(batch.feat_lengths.max())) for batch in batches]
    cells = [len(b) * t * (b.tokens.shape[1] + 1) for b, t in zip(batches, frames, strict=True)]
    assert max(map(len, batches)) <= 3
    assert all(len(batch) == 1 or cell <= 1200 for batch, cell in zip(batches, cells, strict=True))
    worst = [loader(tree, config, rank=rank, world_size=2).worst_batches(1, epoch=1) for rank in (0, 1)]
    assert [batch.ids for batch in worst[0]] == [batch.ids for batch in worst[1]]

    def measures(batch):
        t = int(Timebase().num_encoder_frames(batch.feat_lengths.max()))
        return len(batch) * t, t, len(batch) * t * (batch.tokens.shape[1] + 1), len(batch)

    most = [max(column) for column in zip(*map(measures, batches), strict=True)]
    assert [max(column) for column in zip(*map(measures, worst[0]), strict=True)] == most


def test_cuts_can_be_joined_with_pauses(tree):
    cuts, *_ = tree

    def in_pairs(lengths, seed, epoch):
        number = len(lengths.num_samples)
        return Utterances(np.arange(number), np.arange(0, number + 1, 2), np.tile([8000, 0], number // 2))

    batches = list(loader(tree, replace(PLAIN, max_duration=12.0), arrange=in_pairs).epoch_batches(0))
    found = {id: (batch, b) for batch in batches for b, id in enumerate(batch.ids)}
    assert sorted(found) == [f"utt-{i:02d}+utt-{i + 1:02d}" for i in range(0, 24, 2)]
    batch, b = found["utt-02+utt-03"]
    parts = [cuts[id].load_audio()[0] for id in ("utt-02", "utt-03")]
    expected = torch.from_numpy(whole_fbank(np.concatenate([parts[0], np.zeros(8000, np.float32), parts[1]])))
    feats = batch.feats[b, : batch.feat_lengths[b]]
    assert feats.shape == expected.shape
    pause = slice(len(parts[0]) // 160 - 2, (len(parts[0]) + 8000) // 160 + 3)  # holds the noise floor of the first
    for speech in (slice(0, pause.start), slice(pause.stop, None)):
        torch.testing.assert_close(feats[speech], expected[speech], rtol=0, atol=1e-4)
    assert batch.texts[b] == " ".join(cuts[id].supervisions[0].text for id in ("utt-02", "utt-03"))


def test_cuts_may_be_held_in_memory(tree):
    cuts, _, tokenizer = tree
    for a, b in zip(
        loader(tree, AUGMENTED).epoch_batches(0),
        loader((cuts, cuts, tokenizer), AUGMENTED).epoch_batches(0),
        strict=True,
    ):
        assert_same(a, b)


def test_the_run_s_random_state_is_left_alone(tree):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    next(loader(tree, replace(AUGMENTED, num_workers=1)).epoch_batches(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_utterance_is_left_out_by_name(own_tree, caplog, num_workers):
    damage(own_tree, lambda id: id == "utt-07")
    config = replace(PLAIN, num_workers=num_workers)
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


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_batch_is_replaced_by_the_next(lost_batch, num_workers):
    config = replace(PLAIN, num_workers=num_workers)
    whole = list(loader(lost_batch, config).epoch_batches(0))
    assert [batch.index for batch in whole] == list(range(len(whole)))
    assert whole[2].ids == whole[3].ids
    assert_same(next(loader(lost_batch, config).epoch_batches(0, skip=2)), whole[2])


def test_a_lost_last_batch_is_replaced_by_the_first(own_tree):
    whole = list(loader(own_tree).epoch_batches(0))
    damage(own_tree, lambda id: id in whole[-1].ids)
    assert list(loader(own_tree).epoch_batches(0))[-1].ids == whole[0].ids


@pytest.mark.parametrize("num_workers", [0, 1])
def test_nothing_that_can_be_read_is_an_error(own_tree, num_workers):
    damage(own_tree, lambda id: True)
    with pytest.raises(UtteranceError, match=r"^no utterance of \d+ batches in a row could be read"):
        list(loader(own_tree, replace(PLAIN, num_workers=num_workers), world_size=2).epoch_batches(0))


def test_nothing_left_to_train_on_is_an_error(tree, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(ManifestError, match="no cut is left"):
        loader(tree, DataConfig(min_utterance=20.0)).epoch_batches(0)
    assert "utt-00" in caplog.text


def test_one_utterance_is_a_batch(tmp_path):
    (batch,) = loader(write_cuts_and_tokenizer(tmp_path, [1.0])).epoch_batches(0)
    assert batch.ids == ["utt-00"] and batch.to("cpu").feats is not None


@pytest.mark.parametrize("options", [{"rank": 2, "world_size": 2}, {"rank": -1}, {"accumulate": 0}], ids=str)
def test_impossible_ranks_are_refused(tree, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must"):
        loader(tree, **options)


@pytest.mark.parametrize(("workers", "megabytes", "warned"), [(8, 64, True), (8, 700, False), (0, 64, False)])
def test_little_shared_memory_is_told(tree, caplog, monkeypatch, workers, megabytes, warned):
    """Docker gives 64 MB, in which 8 workers do not find room for two batches of 300 s each."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=megabytes * 10**6))
    monkeypatch.setattr(batches, "SHARED_MEMORY", Path(tree[1]).parent)
    with caplog.at_level(logging.WARNING):
        loader(tree, replace(PLAIN, num_workers=workers, max_duration=300.0))
    assert ("has 64 MB free, 8 workers may need 163 MB" in caplog.text) == warned
