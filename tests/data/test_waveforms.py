"""What training hears: decided by seed, epoch and id alone; finite, as long as before, never clipped."""

import logging

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet, Recording, RecordingSet
from lhotse.recipes import prepare_musan, prepare_rir_noise
from trees import tone, write_cuts_and_tokenizer

from sumix_stream.config import ConfigError, DataConfig, NoiseConfig, ReverbConfig
from sumix_stream.data import ManifestError, TrainLoader
from sumix_stream.data.augment.noise import SAMPLE_RATE, speech_power
from sumix_stream.data.augment.waveforms import WaveformAugment, telephone
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
        heard = telephone((0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32))
        assert heard.shape == (SAMPLE_RATE,) and heard.dtype == np.float32
        power = np.square(heard[2000:-2000]).mean() / 0.125
        assert power == pytest.approx(1, abs=0.05) if passes else power < 1e-4, hertz


def test_telephone_has_eight_bits_at_eight_kilohertz():
    """Mu-law's error is 37 or so dB below speech of any level; nothing is above 4 kHz, that error neither."""
    rng, hertz = np.random.default_rng(0), np.fft.rfftfreq(SAMPLE_RATE, 1 / SAMPLE_RATE)
    inside = (hertz > 310) & (hertz < 3390)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(SAMPLE_RATE)) * inside)
    for level in (0.2, 0.02):
        speech = (level * noise / noise.std()).astype(np.float32)
        heard = telephone(speech)
        error = (heard - speech)[2000:-2000]
        assert 10 * np.log10(np.square(speech).mean() / np.square(error).mean()) == pytest.approx(37, abs=3)
        power = np.square(np.abs(np.fft.rfft(heard[2000:-2000] * np.hanning(SAMPLE_RATE - 4000))))
        assert power[len(power) * 17 // 32 :].sum() < 1e-8 * power.sum()  # above 4.25 kHz
    assert telephone(np.full(1, 0.3, np.float32)).shape == (1,)


def recorded(folder, seconds, name, channels: int = 1):
    sound = np.stack([tone(seconds, seed=100 + channel) for channel in range(channels)], 1)
    soundfile.write(folder / f"{name}.flac", sound, SAMPLE_RATE)
    cut = Recording.from_file(folder / f"{name}.flac", recording_id=name).to_cut()
    manifest = folder / f"{name}.jsonl.gz"
    CutSet.from_cuts([cut]).to_file(manifest)
    return str(manifest), sound


@pytest.mark.parametrize(("seconds", "channels"), [(0.3, 1), (5.0, 1), (5.0, 3)])
def test_recorded_noise_is_a_stretch_of_its_recording(tmp_path, seconds, channels):
    manifest, sound = recorded(tmp_path, seconds, "noise", channels)
    out = augmented(DataConfig(noise=NoiseConfig(1.0, (0.0, 0.0), recordings=(manifest,))))
    for clean, noisy in zip(BATCH, out, strict=True):
        added = (noisy - clean)[: int(0.05 * SAMPLE_RATE)].astype(np.float64)
        assert max(_correlation(added, sound[:, channel]) for channel in range(channels)) > 0.99


def _correlation(piece: np.ndarray, sound: np.ndarray) -> float:
    sound = np.concatenate([sound, sound]).astype(np.float64)
    scores = np.correlate(sound, piece, "valid")
    energies = np.convolve(np.square(sound), np.ones(len(piece)), "valid")
    return float((scores / np.sqrt(energies * np.square(piece).sum())).max())


def test_recorded_responses_keep_words_in_place(tmp_path):
    response = np.zeros(4000, np.float32)
    response[900], response[1300] = 0.8, 0.4
    soundfile.write(tmp_path / "room.wav", response, SAMPLE_RATE, subtype="FLOAT")
    RecordingSet.from_recordings([Recording.from_file(tmp_path / "room.wav")]).to_file(tmp_path / "rooms.jsonl.gz")
    out = augmented(DataConfig(reverb=ReverbConfig(1.0, recordings=(str(tmp_path / "rooms.jsonl.gz"),))))
    for clean, wet in zip(BATCH, out, strict=True):
        expected = clean + 0.5 * np.r_[np.zeros(400, np.float32), clean[:-400]]
        scale = np.dot(wet, expected) / np.dot(expected, expected)
        np.testing.assert_allclose(wet, scale * expected, atol=1e-4)


def test_an_unreadable_noise_is_named_and_left_out(tmp_path, caplog):
    manifest, _ = recorded(tmp_path, 2.0, "broken")
    (tmp_path / "broken.flac").write_bytes(b"not audio")
    with caplog.at_level(logging.WARNING):
        out = augmented(DataConfig(noise=NoiseConfig(1.0, recordings=(manifest,))))
    assert all(same(out, BATCH)) and "broken.flac" in caplog.text


def test_a_missing_manifest_is_an_error_at_once():
    with pytest.raises(ManifestError, match="no such cut manifest"):
        WaveformAugment(DataConfig(noise=NoiseConfig(1.0, recordings=("gone.jsonl.gz",))), 0)
    WaveformAugment(DataConfig(noise=NoiseConfig(0.0, recordings=("gone.jsonl.gz",))), 0)


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


def test_manifests_that_lhotse_prepares_can_be_used(tmp_path):
    """MUSAN's noises and RIRS_NOISES' arrays of 8 channels, in their own layouts."""
    rng = np.random.default_rng(0)
    sounds = {
        "musan/noise/free-sound/noise-free-sound-0000.wav": 0.1 * rng.standard_normal(48_000),
        "RIRS_NOISES/real_rirs_isotropic_noises/air_type1_rir.wav": rng.standard_normal((4000, 8)) * 0.1,
    }
    for name, sound in sounds.items():
        (tmp_path / name).parent.mkdir(parents=True)
        soundfile.write(tmp_path / name, sound, SAMPLE_RATE)
    prepare_musan(tmp_path / "musan", tmp_path, parts=["noise"])
    prepare_rir_noise(tmp_path / "RIRS_NOISES", tmp_path, parts=["real_rir"])
    noise = NoiseConfig(1.0, recordings=(str(tmp_path / "musan_recordings_noise.jsonl.gz"),))
    reverb = ReverbConfig(1.0, recordings=(str(tmp_path / "real-rir_recordings_all.jsonl.gz"),))
    for section in ({"noise": noise}, {"reverb": reverb}):
        out = augmented(DataConfig(**section))
        assert not any(same(out, BATCH)) and all(np.isfinite(o).all() for o in out)
