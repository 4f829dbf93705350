"""Joined utterances and pauses: every cut once, within the limits, of one speaker, with lengths that add up."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data._utils.pin_memory import pin_memory
from trees import write_cuts_and_tokenizer

from sumix_stream.config import ConcatenateConfig, ConfigError, DataConfig, PauseConfig
from sumix_stream.data import TrainLoader
from sumix_stream.data.augment.joining import GAP, Joiner, spoken
from sumix_stream.data.batching.plan import Lengths
from sumix_stream.timebase import Timebase

TIMEBASE = Timebase()
RATE = TIMEBASE.sample_rate


def lengths(number: int = 400, seed: int = 0, num_speakers: int = 7) -> Lengths:
    rng = np.random.default_rng(seed)
    samples = rng.integers(RATE, 12 * RATE, number)
    frames = TIMEBASE.num_encoder_frames(TIMEBASE.num_feature_frames(samples))
    return Lengths(samples, frames, rng.integers(0, num_speakers, number).astype(np.uint32))  # as many tokens as fit


def joiner(join: float = 0.5, pause: float = 0.0, most: float = 30.0, seconds=(1.0, 10.0), **data) -> Joiner:
    config = DataConfig(concatenate=ConcatenateConfig(join, most), pause=PauseConfig(pause, seconds), **data)
    return Joiner(config, TIMEBASE)


def rows(arranged) -> list[tuple[np.ndarray, np.ndarray]]:
    """(cuts, pauses after them) of each utterance."""
    return [
        (arranged.cuts[a:b], arranged.pauses[a:b])
        for a, b in zip(arranged.starts[:-1], arranged.starts[1:], strict=True)
    ]


@settings(max_examples=40, deadline=None)
@given(
    join=st.sampled_from([0.0, 0.3, 1.0]),
    pause=st.sampled_from([0.0, 0.5, 1.0]),
    most=st.sampled_from([5.0, 30.0, 100.0]),
    number=st.sampled_from([1, 2, 50]),
    seed=st.integers(0, 100),
)
def test_an_arrangement_keeps_its_promises(join, pause, most, number, seed):
    given_lengths = lengths(number, seed)
    arranged = joiner(join, pause, most)(given_lengths, seed, 1)
    assert sorted(arranged.cuts.tolist()) == list(range(number))
    for cuts, pauses in rows(arranged):
        own = int(given_lengths.num_samples[cuts].sum())
        gaps = pauses[:-1]
        assert ((gaps >= GAP[0] * RATE) & (gaps <= (GAP[1] + 10) * RATE)).all()
        assert pauses[-1] == 0 or RATE <= pauses[-1] <= 10 * RATE
        assert np.count_nonzero(gaps > GAP[1] * RATE + 0.5) + (pauses[-1] > 0) <= 1  # one long pause at most
        assert len(set(given_lengths.speaker[cuts].tolist())) == 1
        total = own + int(pauses.sum())
        assert total <= max(30.0, most) * RATE
        if len(cuts) > 1 and pause == 0:
            assert total <= most * RATE
        frames = TIMEBASE.num_encoder_frames(TIMEBASE.num_feature_frames(total))
        assert given_lengths.num_tokens[cuts].sum() <= frames  # as each had a path, so has the whole


def test_without_either_nothing_happens():
    arranged = joiner(0.0)(lengths(), 0, 0)
    assert arranged.cuts.tolist() == list(range(400)) and arranged.starts.tolist() == list(range(401))
    assert not arranged.pauses.any()


def test_seed_and_epoch_decide():
    first, again, *others = (
        joiner(0.5, 0.5)(lengths(), seed, epoch) for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(not np.array_equal(first.cuts, other.cuts) for other in others)


def test_probabilities():
    given_lengths = lengths(4000, num_speakers=1)
    long_enough = joiner(0.25, 0.0, most=1000.0)(given_lengths, 0, 0)
    assert len(rows(long_enough)) == pytest.approx(3000, rel=0.05)
    paused = joiner(0.5, 0.3, max_utterance=100.0)(given_lengths, 0, 0)
    long = [pauses[pauses > GAP[1] * RATE] for _, pauses in rows(paused)]
    assert sum(len(p) > 0 for p in long) == pytest.approx(0.3 * len(long), rel=0.1)
    drawn = np.concatenate(long) / RATE
    assert 1.0 <= drawn.min() < 1.5 and 9.5 < drawn.max() < 10.7 and drawn.mean() == pytest.approx(5.6, abs=0.4)
    where = [np.argmax(p) / (len(p) - 1) for _, p in rows(paused) if len(p) > 1 and p.max() > GAP[1] * RATE]
    assert np.mean(where) == pytest.approx(0.5, abs=0.06)  # anywhere: after the first as often as after the last


def test_a_pause_is_cut_to_what_fits():
    given_lengths = Lengths(np.array([25 * RATE, int(29.5 * RATE)]), np.ones(2, int), np.zeros(2, np.uint32))
    arranged = joiner(0.0, 1.0, seconds=(1.0, 60.0))(given_lengths, 0, 0)
    assert RATE <= arranged.pauses[0] <= 5 * RATE and arranged.pauses[1] == 0


def test_nobodys_cuts_are_joined_at_random():
    unnamed = lengths(num_speakers=1)
    assert len(rows(joiner(0.5)(unnamed, 0, 0))) < 300


@pytest.mark.parametrize("seed", range(6))
def test_what_is_spoken_is_the_parts_with_their_own_floor_between(seed):
    rng = np.random.default_rng(5)
    loud, soft = (a * rng.standard_normal(8000).astype(np.float32) for a in (0.1, 0.001))
    whole = spoken([loud, soft], [3200, 4800], np.random.default_rng(seed))
    assert len(whole) == 8000 + 3200 + 8000 + 4800 and np.isfinite(whole).all() and whole.dtype == np.float32
    lead = 0 if np.array_equal(whole[:8000], loud) else 4800
    np.testing.assert_array_equal(whole[lead : lead + 8000], loud)
    np.testing.assert_array_equal(whole[lead + 11_200 : lead + 19_200], soft)
    assert whole[lead + 8000 : lead + 11_200].std() == pytest.approx(0.1, rel=0.2)
    outer, level = (whole[:4800], 0.1) if lead else (whole[-4800:], 0.001)
    assert outer.std() == pytest.approx(level, rel=0.2)


def test_pauses_come_first_or_last():
    part = np.random.default_rng(0).standard_normal(400).astype(np.float32)
    first = [np.array_equal(spoken([part], [50], np.random.default_rng(s))[:400], part) for s in range(40)]
    assert 8 < sum(first) < 32
    np.testing.assert_array_equal(spoken([part, part], [0, 0], np.random.default_rng(0)), np.r_[part, part])


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (ConcatenateConfig, {"probability": -0.1}),
        (ConcatenateConfig, {"max_duration": 0.0}),
        (PauseConfig, {"probability": 2.0}),
        (PauseConfig, {"seconds": (10.0, 1.0)}),
        (PauseConfig, {"seconds": (0.0, 100.0)}),
    ],
)
def test_impossible_settings_are_refused(cls, values):
    (name,) = values
    with pytest.raises(ConfigError, match=rf"^{name} must be "):
        cls(**values)


def test_batches_of_joined_utterances(tmp_path):
    """Texts, ids, features and their lengths belong together; silence is not zero; the next epoch is another."""
    cuts, manifest, tokenizer = write_cuts_and_tokenizer(tmp_path, [1.0 + 0.1 * (i % 5) for i in range(24)])
    config = DataConfig(
        max_duration=20.0,
        num_buckets=2,
        concatenate=ConcatenateConfig(0.7, 6.0),
        pause=PauseConfig(0.5, (0.5, 1.0)),
        spec_augment=None,
    )

    def batches(epoch: int, workers: int = 0):
        loader = TrainLoader(replace(config, num_workers=workers), manifest, tokenizer, TIMEBASE, seed=0)
        return list(loader.epoch_batches(epoch))

    seen, joined, paused = [], 0, 0
    for batch in batches(0):
        for b, id in enumerate(batch.ids):
            own = [cuts[part] for part in id.split("+")]
            text = " ".join(cut.supervisions[0].text for cut in own)
            assert batch.texts[b] == text
            assert tokenizer.decode(batch.tokens[b, : batch.token_lengths[b]].tolist()) == text
            assert batch.token_lengths[b] == sum(len(tokenizer.encode(cut.supervisions[0].text)) for cut in own)
            assert len({cut.supervisions[0].speaker for cut in own}) == 1
            seconds = float(batch.feat_lengths[b]) / 100
            spare = seconds - sum(cut.duration for cut in own) - GAP[0] * (len(own) - 1)
            assert -0.02 < spare < 1.02 + (GAP[1] - GAP[0]) * (len(own) - 1) and seconds < 7.02
            floor = batch.feats[b, : batch.feat_lengths[b]].mean(1).min()
            assert floor > -14  # log 2**-23 is -15.9: digital silence
            joined, paused = joined + (len(own) > 1), paused + (len(own) == 1 and spare > 0.4)
            seen += [cut.id for cut in own]
    assert sorted(seen) == sorted(cuts.ids) and joined > 3 and paused > 0
    assert [batch.ids for batch in batches(0)] != [batch.ids for batch in batches(1)]
    for a, b in zip(batches(0), batches(0, workers=2), strict=True):
        assert a.ids == b.ids and (a.feats == b.feats).all()


def test_a_batch_can_be_pinned(tmp_path, monkeypatch):
    _, manifest, tokenizer = write_cuts_and_tokenizer(tmp_path, [1.0])
    (batch,) = TrainLoader(DataConfig(), manifest, tokenizer, TIMEBASE, seed=0).epoch_batches(0)
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    assert pin_memory(batch).ids == batch.ids and len(pinned) == 4
