"""Plans of epochs: each cut once, batches within their caps, alike for all ranks, drawn anew each epoch."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import write_cuts_and_tokenizer

from sumix_stream.config import DataConfig
from sumix_stream.data.batching.index import CutIndex
from sumix_stream.data.batching.plan import Lengths, Utterances, make_plan, usable_cuts
from sumix_stream.data.manifests import CutFilter
from sumix_stream.timebase import Timebase

CLOCK = Timebase()
CONFIG = DataConfig(max_duration=60.0, num_buckets=8)


def corpus(number: int, seed: int = 0) -> Lengths:
    """Cuts of 1 to 17 s, most of them long, with 5 to 15 tokens a second."""
    rng = np.random.default_rng(seed)
    samples = (16_000 * (1 + 16 * rng.beta(3, 1, number))).astype(np.int64)
    tokens = (samples / 16_000 * rng.uniform(5, 15, number)).astype(np.int64)
    return Lengths(samples, tokens, rng.integers(1, 5, number).astype(np.uint32))


def plan_of(lengths: Lengths, config: DataConfig = CONFIG, **options):
    options = {"seed": 1, "epoch": 0, **options}
    return make_plan(config, CLOCK, 100 + np.arange(len(lengths.num_samples)), lengths, **options)


def batches(plan):
    return [plan.batch(index) for index in range(len(plan))]


def cuts_of(plan) -> list[list[int]]:
    return [[piece.cut for utterance in batch for piece in utterance] for batch in batches(plan)]


@given(
    number=st.integers(1, 300),
    step_batches=st.integers(1, 9),
    epoch=st.integers(0, 3),
    num_buckets=st.integers(1, 40),
    max_duration=st.floats(5, 300),
    max_lattice=st.none() | st.integers(1, 200_000),
    max_cuts=st.none() | st.integers(1, 20),
)
@settings(max_examples=60, deadline=None)
def test_every_cut_once_in_batches_within_the_caps(
    number, step_batches, epoch, num_buckets, max_duration, max_lattice, max_cuts
):
    config = DataConfig(
        max_duration=max_duration,
        max_lattice=max_lattice,
        max_cuts=max_cuts,
        num_buckets=num_buckets,
        speed_perturb=(0.9, 1.1),
    )
    lengths = corpus(number, seed=number)
    plan = plan_of(lengths, config, epoch=epoch, step_batches=step_batches)
    found = cuts_of(plan)
    assert len(plan) == len(found) and len(plan) % step_batches == 0
    flat = [cut for batch in found for cut in batch]
    assert len(flat) == number + plan.repeated and sorted(set(flat)) == list(range(100, 100 + number))
    assert plan.repeated == 0 or (len(flat) == len(plan) and plan.repeated < step_batches)
    for index, batch in enumerate(batches(plan)):
        samples = [round(lengths.num_samples[piece.cut - 100] / piece.speed) for (piece,) in batch]
        tokens = [lengths.num_tokens[piece.cut - 100] for (piece,) in batch]
        frames = CLOCK.num_encoder_frames(CLOCK.num_feature_frames(max(samples)))
        measured = (len(batch), max(samples), frames, max(tokens))
        assert tuple(int(column[index]) for column in plan.sizes) == pytest.approx(measured, abs=1)
        cells = int(plan.sizes.cells[index])
        if len(batch) > 1:
            assert len(batch) * int(plan.sizes.num_samples[index]) <= round(max_duration * 16_000)
            assert max_cuts is None or len(batch) <= max_cuts
            assert max_lattice is None or cells <= max_lattice


def test_batches_are_full():
    """Within a few per cent of the cap: what is not is padding, and one batch too small for another utterance."""
    lengths = corpus(5000)
    plan = plan_of(lengths, replace(CONFIG, num_buckets=30))
    filled = plan.sizes.num_utterances * plan.sizes.num_samples / (60 * 16_000)
    assert np.sort(filled)[1:].min() > 0.65 and filled.mean() > 0.85
    padding = 1 - lengths.num_samples.sum() / (plan.sizes.num_utterances * plan.sizes.num_samples).sum()
    assert padding < 0.05


def test_a_plan_is_a_function_of_seed_and_epoch():
    lengths = corpus(400)
    assert cuts_of(plan_of(lengths)) == cuts_of(plan_of(lengths))
    drawn = [cuts_of(plan_of(lengths, seed=seed, epoch=epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    together = [{frozenset(batch) for batch in plan} for plan in drawn]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert drawn[a] != drawn[b] and len(together[a] & together[b]) < len(together[a]) / 10


def test_the_fingerprint_names_the_batches():
    lengths = corpus(400)
    smaller = replace(CONFIG, max_duration=CONFIG.max_duration / 2)
    plans = [plan_of(lengths, seed=2), plan_of(lengths, epoch=1), plan_of(corpus(401)), plan_of(lengths, smaller)]
    names = {plan.fingerprint for plan in (plan_of(lengths), *plans)}
    assert len(names) == 5 and plan_of(corpus(400)).fingerprint == plan_of(lengths).fingerprint


def test_a_plan_does_not_change_between_versions():
    """Training that goes on with newer libraries must see the batches it would have seen."""
    config = DataConfig(max_duration=7.0, num_buckets=2, speed_perturb=(0.9, 1.1))
    samples = 16_000 + 1601 * np.arange(12)
    plan = make_plan(
        *(config, CLOCK, np.arange(12), Lengths(samples, np.full(12, 5), np.zeros(12, np.uint32))),
        **{"seed": 7, "epoch": 3, "step_batches": 2},
    )
    assert cuts_of(plan) == GOLDEN_CUTS
    assert "".join(str(piece.speed)[-1] for batch in batches(plan) for (piece,) in batch) == GOLDEN_SPEEDS


GOLDEN_CUTS = [[10, 9, 5], [11], [7, 2, 8, 4], [0, 3, 1, 6]]
GOLDEN_SPEEDS = "199110111190"


@pytest.mark.parametrize("step_batches", [2, 8])
def test_ranks_wait_little_for_each_other(step_batches):
    plan = plan_of(corpus(4000), step_batches=step_batches)
    work = (plan.sizes.num_utterances * plan.sizes.num_samples).reshape(-1, step_batches)
    longest = plan.sizes.num_samples.reshape(-1, step_batches)
    assert (longest.min(1) / longest.max(1)).mean() > 0.8  # of random batches: 0.76 and 0.41
    assert (work.mean(1) / work.max(1)).mean() > 0.9
    first = longest.argmax(1)
    assert all((first == rank).mean() < 2 / step_batches for rank in range(step_batches))  # no rank is always last


def test_steps_come_in_random_order():
    longest = plan_of(corpus(4000)).sizes.num_samples.astype(float)
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.15


def test_speeds_are_as_likely_and_keep_utterances_usable():
    lengths = corpus(3000)
    config = replace(CONFIG, speed_perturb=(0.9, 1.1), max_utterance=18.5)
    speeds = {}
    for epoch in (0, 1):
        for batch in batches(plan_of(lengths, config, epoch=epoch)):
            for (piece,) in batch:
                speeds.setdefault(piece.cut, []).append(piece.speed)
    drawn = np.array(list(speeds.values()))
    assert all(abs((drawn == speed).mean() - 1 / 3) < 0.06 for speed in (0.9, 1.0, 1.1))
    assert 0.5 < (drawn[:, 0] != drawn[:, 1]).mean() < 0.75
    long = lengths.num_samples > 18.5 * 0.9 * 16_000
    assert long.any() and all(0.9 not in speeds[100 + i] for i in np.flatnonzero(long))


def test_sizes_are_those_of_the_perturbed_audio(tmp_path):
    cuts, _, _ = write_cuts_and_tokenizer(tmp_path, [0.5 + 0.0137 * i for i in range(30)])
    lengths = Lengths(np.array([cut.num_samples for cut in cuts]), np.full(30, 2), np.zeros(30, np.uint32))
    config = DataConfig(max_duration=2.0, max_cuts=1, speed_perturb=(0.9, 1.1, 0.77))
    plan, cuts = plan_of(lengths, config), list(cuts)
    speeds = set()
    for index, ((piece,),) in enumerate(batches(plan)):
        cut = cuts[piece.cut - 100]
        cut = cut if piece.speed == 1.0 else cut.perturb_speed(piece.speed)
        assert plan.sizes.num_samples[index] == cut.num_samples == cut.load_audio().shape[1]
        speeds.add(piece.speed)
    assert speeds == {1.0, 0.9, 1.1, 0.77}


def test_worst_batches_are_found():
    config = replace(CONFIG, max_lattice=30_000, max_cuts=9)
    plan = plan_of(corpus(500), config)
    worst = plan.worst(2)
    assert len(worst) == len(set(worst)) <= 8
    sizes = plan.sizes
    for measure in (
        sizes.num_utterances * sizes.num_frames,
        sizes.num_frames,
        sizes.cells,
        sizes.num_utterances,
    ):
        assert sorted(measure[worst])[-2:] == sorted(measure)[-2:]


def test_an_arrangement_joins_cuts():
    lengths = corpus(90)

    def by_speaker(lengths, seed, epoch):
        assert (seed, epoch) == (1, 2)
        cuts = np.argsort(lengths.speaker, kind="stable")
        starts = np.flatnonzero(np.diff(lengths.speaker[cuts], prepend=0))
        return Utterances(cuts, np.append(starts, len(cuts)), np.full(len(cuts), 1600))

    plan = plan_of(lengths, DataConfig(max_duration=2000.0, num_buckets=2), arrange=by_speaker, epoch=2)
    utterances = [utterance for batch in batches(plan) for utterance in batch]
    assert len(utterances) == 4 and sum(map(len, utterances)) == 90
    for utterance in utterances:
        assert len({lengths.speaker[piece.cut - 100] for piece in utterance}) == 1
        assert {piece.pause for piece in utterance} == {1600}
    longest = max(sum(lengths.num_samples[p.cut - 100] + 1600 for p in utterance) for utterance in utterances)
    assert plan.sizes.num_samples.max() == longest
    assert plan.sizes.num_tokens.max() == max(sum(lengths.num_tokens[p.cut - 100] for p in u) for u in utterances)


@pytest.mark.parametrize(
    "cuts, starts, pauses",
    [([0, 1, 1], [0, 3], [0, 0, 0]), ([0, 1, 2], [0, 2], [0, 0, 0]), ([0, 1, 2], [0, 0, 3], [0] * 3),
     ([0, 1, 2], [0, 3], [0, -1, 0]), ([0, 1], [0, 2], [0, 0])],
    ids=["twice", "not all in utterances", "empty utterance", "negative pause", "lost"],
)  # fmt: skip
def test_an_arrangement_that_loses_cuts_is_refused(cuts, starts, pauses):
    with pytest.raises(ValueError, match="each of the 3 cuts once"):
        plan_of(corpus(3), arrange=lambda *_: Utterances(*map(np.array, (cuts, starts, pauses))))


def test_usable_is_what_the_filter_keeps(tmp_path):
    """Both say it: one for arrays, one with the reason."""
    durations = [0.2 + 0.06 * i for i in range(40)]
    cuts, manifest, tokenizer = write_cuts_and_tokenizer(tmp_path, durations)
    index = CutIndex(manifest, tokenizer)
    config = DataConfig(min_utterance=0.44, max_utterance=2.0)
    judge = CutFilter(config, tokenizer, CLOCK)
    usable = usable_cuts(config, CLOCK, index.columns.duration, index.columns.num_tokens)
    assert usable.tolist() == [judge(cut) for cut in cuts]
    assert 0 < usable.sum() < 40
