"""What training hears: decided by seed, epoch and id alone; finite, as long as before, never clipped."""

import logging

import numpy as np
import pytest
import soundfile
from data.trees import tone, write_cuts_and_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet, Recording

from sumix_stream.config import ConfigError, DataConfig, NoiseConfig, ReverbConfig
from sumix_stream.data import ManifestError, TrainLoader
from sumix_stream.data.noise import SAMPLE_RATE, speech_power
from sumix_stream.data.waveforms import WaveformAugment, telephone
from sumix_stream.timebase import Timebase

EVERYTHING = DataConfig(
    noise=NoiseConfig(1.0, (0.0, 20.0)), reverb=ReverbConfig(1.0), telephone=0.5, gain=(-20.0, 10.0), spec_augment=None
)
IDS = [f"utt-{i:02d}" for i in range(5)]
BATCH = [tone(1 + 0.2 * i, seed=i) for i in range(5)]


def augmented(config: DataConfig, epoch: int = 0, seed: int = 0, ids=IDS, batch=BATCH) -> list[np.ndarray]:
    return WaveformAugment(config, seed)(epoch, ids, batch)


def same(a, b) -> list[bool]:
    return [np.array_equal(x, y) for x, y in zip(a, b, strict=True)]


def test_seed_epoch_and_id_decide():
    first = augmented(EVERYTHING)
    assert all(same(first, augmented(EVERYTHING)))
    assert not any(same(first, BATCH))
    assert not any(same(first, augmented(EVERYTHING, epoch=1)))
    assert not any(same(first, augmented(EVERYTHING, seed=1)))
    renamed = augmented(EVERYTHING, ids=[f"other-{i}" for i in range(5)])
    assert not any(same(first, renamed))


def test_only_babble_depends_on_the_batch():
    alone = DataConfig(noise=NoiseConfig(1.0, kinds=("pink", "hum")), reverb=ReverbConfig(0.5), telephone=0.5)
    assert np.array_equal(augmented(alone)[1], augmented(alone, ids=IDS[1:2], batch=BATCH[1:2])[0])
    mixed = DataConfig(noise=NoiseConfig(1.0, kinds=("babble",)))
    assert not np.array_equal(augmented(mixed)[1], augmented(mixed, ids=IDS[1:2], batch=BATCH[1:2])[0])


def test_one_effect_does_not_change_the_draws_of_another():
    reverb = DataConfig(reverb=ReverbConfig(0.5))
    both = DataConfig(reverb=ReverbConfig(0.5), noise=NoiseConfig(1.0, (100.0, 100.0)))
    for plain, noisy in zip(augmented(reverb), augmented(both), strict=True):
        assert np.abs(plain - noisy).max() < 1e-3


def test_without_augmentation_nothing_is_touched():
    loud = [2 * samples for samples in BATCH]  # beyond full scale, as float recordings may be
    assert all(a is b for a, b in zip(augmented(DataConfig(), batch=loud), loud, strict=True))


@pytest.mark.parametrize("effect", ["noise", "reverb", "telephone"])
def test_probabilities(effect):
    section = {"noise": NoiseConfig(0.3), "reverb": ReverbConfig(0.3), "telephone": 0.3}[effect]
    ids = [f"id-{i}" for i in range(300)]
    batch = [BATCH[0][:500] for _ in ids]
    changed = [a is not b for a, b in zip(augmented(DataConfig(**{effect: section}), 0, 0, ids, batch), batch)]
    assert sum(changed) == pytest.approx(90, abs=25)


def test_ratio_and_gain_are_drawn_within_their_bounds():
    noisy = augmented(DataConfig(noise=NoiseConfig(1.0, (10.0, 14.0))))
    quiet = augmented(DataConfig(gain=(-30.0, -10.0)))
    for clean, with_noise, soft in zip(BATCH, noisy, quiet, strict=True):
        added = np.square(with_noise - clean, dtype=np.float64).mean()
        assert 9.9 < 10 * np.log10(speech_power(clean) / added) < 14.1
        assert -30.1 < 10 * np.log10(speech_power(soft) / speech_power(clean)) < -9.9


def test_loud_results_are_scaled_not_clipped():
    config = DataConfig(gain=(20.0, 20.0))
    for clean, loud in zip(BATCH, augmented(config), strict=True):
        assert np.abs(loud).max() == pytest.approx(1)
        np.testing.assert_allclose(loud, clean / np.abs(clean).max(), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    length=st.sampled_from([0, 1, 2, 159, 320, 400, 5001]),
    kind=st.sampled_from(["zero", "dc", "full scale", "square", "tiny", "float", "click"]),
    seed=st.integers(0, 1000),
)
def test_anything_comes_back_finite_and_as_long(length, kind, seed):
    rng = np.random.default_rng(seed)
    samples = {
        "zero": np.zeros(length),
        "dc": np.full(length, 0.7),
        "full scale": rng.choice([-1.0, 1.0], length),
        "square": np.sign(np.sin(np.arange(length) / 9)),
        "tiny": np.full(length, 1e-38),
        "float": rng.normal(0, 1e4, length),
        "click": np.eye(1, length)[0] if length else np.zeros(0),
    }[kind].astype(np.float32)
    others = [samples, np.zeros(3, np.float32), rng.normal(0, 1e3, 2000).astype(np.float32)]
    out = augmented(EVERYTHING, seed, 0, list("abcd"), [samples, *others])
    assert [len(o) for o in out] == [length, length, 3, 2000]
    for o in out:
        assert o.dtype == np.float32 and np.isfinite(o).all() and np.abs(o).max(initial=0) <= 1 + 1e-6


def test_telephone_passes_its_band():
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    for hertz, passes in {100: False, 150: False, 400: True, 1000: True, 3300: True, 4000: False, 7000: False}.items():
        heard = telephone((0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32))[2000:-2000]
        power = np.square(heard).mean() / 0.125
        assert power == pytest.approx(1, abs=0.05) if passes else power < 1e-4, hertz
    heard = telephone(np.full(1, 0.3, np.float32))
    assert heard.shape == (1,)
    spread = np.unique(telephone(BATCH[0]))
    assert len(spread) <= 255  # 8 bits


def recorded(folder, seconds, name, channels: int = 1):
    sound = np.stack([tone(seconds, seed=100 + channel) for channel in range(channels)], 1)
    soundfile.write(folder / f"{name}.flac", sound, SAMPLE_RATE)
    cut = Recording.from_file(folder / f"{name}.flac", recording_id=name).to_cut()
    manifest = folder / f"{name}.jsonl.gz"
    CutSet.from_cuts([cut]).to_file(manifest)
    return str(manifest), sound


@pytest.mark.parametrize(("seconds", "channels"), [(0.3, 1), (20.0, 1), (20.0, 3)])
def test_recorded_noise_is_a_stretch_of_its_recording(tmp_path, seconds, channels):
    manifest, sound = recorded(tmp_path, seconds, "noise", channels)
    out = augmented(DataConfig(noise=NoiseConfig(1.0, (0.0, 0.0), cuts=(manifest,))))
    for clean, noisy in zip(BATCH, out, strict=True):
        added = (noisy * np.float32(1) - clean)[:3000].astype(np.float64)  # within one repetition at its start
        added = added[: int(0.05 * SAMPLE_RATE)]
        best = max(_correlation(added, sound[:, channel]) for channel in range(channels))
        assert best > 0.99
    assert augmented(DataConfig(noise=NoiseConfig(1.0, cuts=(manifest,))))[0].tolist() != out[0].tolist()


def _correlation(piece: np.ndarray, sound: np.ndarray) -> float:
    sound = np.concatenate([sound, sound]).astype(np.float64)
    scores = np.correlate(sound, piece, "valid")
    energies = np.convolve(np.square(sound), np.ones(len(piece)), "valid")
    return float((scores / np.sqrt(energies * np.square(piece).sum())).max())


def test_recorded_responses_keep_words_in_place(tmp_path):
    response = np.zeros(4000, np.float32)
    response[900], response[1300] = 0.8, 0.4
    soundfile.write(tmp_path / "room.wav", response, SAMPLE_RATE, subtype="FLOAT")
    cut = Recording.from_file(tmp_path / "room.wav").to_cut()
    CutSet.from_cuts([cut]).to_file(tmp_path / "rooms.jsonl.gz")
    out = augmented(DataConfig(reverb=ReverbConfig(1.0, cuts=(str(tmp_path / "rooms.jsonl.gz"),))))
    for clean, wet in zip(BATCH, out, strict=True):
        expected = clean + 0.5 * np.r_[np.zeros(400, np.float32), clean[:-400]]
        scale = np.dot(wet, expected) / np.dot(expected, expected)
        np.testing.assert_allclose(wet, scale * expected, atol=1e-4)


def test_an_unreadable_noise_is_named_and_left_out(tmp_path, caplog):
    manifest, _ = recorded(tmp_path, 2.0, "broken")
    (tmp_path / "broken.flac").write_bytes(b"not audio")
    with caplog.at_level(logging.WARNING):
        out = augmented(DataConfig(noise=NoiseConfig(1.0, cuts=(manifest,))))
    assert all(same(out, BATCH)) and "broken.flac" in caplog.text


def test_a_missing_manifest_is_an_error_at_once():
    with pytest.raises(ManifestError, match="no such cut manifest"):
        WaveformAugment(DataConfig(noise=NoiseConfig(1.0, cuts=("gone.jsonl.gz",))), 0)
    WaveformAugment(DataConfig(noise=NoiseConfig(0.0, cuts=("gone.jsonl.gz",))), 0)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (NoiseConfig, {"probability": 1.1}),
        (NoiseConfig, {"snr": (5.0,)}),
        (NoiseConfig, {"snr": (20.0, 5.0)}),
        (NoiseConfig, {"kinds": ("purple",)}),
        (ReverbConfig, {"rt60": (0.1, 5.0)}),
        (DataConfig, {"telephone": -0.1}),
        (DataConfig, {"gain": (0.0, float("inf"))}),
    ],
)
def test_impossible_settings_are_refused(cls, values):
    (name,) = values
    with pytest.raises(ConfigError, match=rf"^{name} must be "):
        cls(**values)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same_after_a_resume_and_in_workers(tmp_path, num_workers):
    _, manifest, tokenizer = write_cuts_and_tokenizer(tmp_path, [1.0 + 0.1 * (i % 5) for i in range(16)])

    def batches(workers: int, skip: int = 0, **changes):
        config = DataConfig(**{**vars(EVERYTHING), "max_duration": 5.0, "num_buckets": 2, "num_workers": workers})
        config = DataConfig(**{**vars(config), **changes})
        return list(TrainLoader(config, manifest, tokenizer, Timebase(), seed=3).epoch_batches(1, skip))

    whole, plain = batches(0), batches(0, noise=NoiseConfig(), reverb=ReverbConfig(), telephone=0.0, gain=(0.0, 0.0))
    tail = batches(num_workers, skip=2)
    assert [batch.ids for batch in whole[2:]] == [batch.ids for batch in tail] and len(tail) > 1
    for a, b in zip(whole[2:], tail, strict=True):
        assert (a.feats == b.feats).all() and (a.feat_lengths == b.feat_lengths).all()
    for a, b in zip(whole, plain, strict=True):  # what is learnt of them stays the same
        assert a.ids == b.ids and (a.feat_lengths == b.feat_lengths).all() and (a.tokens == b.tokens).all()
        assert not (a.feats == b.feats).all() and a.feats.isfinite().all()
