"""Noise: at the ratio that was asked for, of the colour it is named after, harmless to silence."""

import numpy as np
import pytest

from sumix_stream.data.augment import noise
from sumix_stream.data.augment.noise import SAMPLE_RATE


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def talk(seconds: float, pause: float = 0.0, seed: int = 0) -> np.ndarray:
    """Bursts of 0.3 s (of a power of 0.01 each) and gaps of 0.1 s of sound 50 dB below; then a pause of it."""
    burst = np.tile(np.r_[np.ones(4800), np.full(1600, 10**-2.5)], int(seconds / 0.4) + 1)[: int(seconds * SAMPLE_RATE)]
    envelope = np.r_[burst, np.full(int(pause * SAMPLE_RATE), 10**-2.5)]
    return (0.1 * envelope * rng(seed).standard_normal(len(envelope))).astype(np.float32)


def decibels(power: float) -> float:
    return 10 * np.log10(power)


@pytest.mark.parametrize("pause", [0.0, 9.0])
@pytest.mark.parametrize("kind", [*noise.SIMULATED, "babble"])
@pytest.mark.parametrize("snr", [-5.0, 0.0, 17.5])
def test_the_ratio_is_that_of_speech_without_its_pauses(kind, snr, pause):
    speech = talk(6, pause)
    voices = [talk(3, seed=seed) for seed in range(1, 5)]
    sound = noise.babble(len(speech), voices, rng()) if kind == "babble" else noise.SIMULATED[kind](len(speech), rng())
    added = noise.mix(speech, sound, snr).astype(np.float64) - speech
    assert decibels(0.01 / np.mean(added**2)) == pytest.approx(snr, abs=0.1)


def test_level_of_speech_does_not_depend_on_its_pauses():
    assert decibels(noise.speech_power(talk(6, 30)) / noise.speech_power(talk(6))) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(("kind", "exponent"), [("white", 0), ("pink", 1), ("brown", 2)])
def test_colours(kind, exponent):
    """Power falls by `exponent` times 3.01 dB an octave, by Welch's averaged periodograms; nothing is below 30 Hz."""
    sound = noise.coloured(30 * SAMPLE_RATE, exponent, rng()).astype(np.float64)
    frames = sound[: len(sound) // 4096 * 4096].reshape(-1, 4096) * np.hanning(4096)
    power = np.square(np.abs(np.fft.rfft(frames))).mean(0)
    hertz = np.fft.rfftfreq(4096, 1 / SAMPLE_RATE)
    octaves = [power[(hertz >= low) & (hertz < 2 * low)].mean() for low in (125, 250, 500, 1000, 2000, 4000)]
    slope = np.polyfit(range(6), [decibels(p) for p in octaves], 1)[0]
    assert slope == pytest.approx(-3.01 * exponent, abs=0.15)
    if exponent:
        assert power[hertz < 15].max() < 1e-3 * power[(hertz > 35) & (hertz < 60)].min()


def test_hum_is_harmonics_of_the_mains():
    found = set()
    for seed in range(8):
        spectrum = np.abs(np.fft.rfft(noise.hum(SAMPLE_RATE, rng(seed)).astype(np.float64)))  # bins of 1 Hz
        lines = np.flatnonzero(spectrum > 1e-3 * spectrum.max())
        base = int(np.gcd.reduce(lines))
        assert base in (50, 60) and len(lines) > 5
        found.add(base)
    assert found == {50, 60}


def test_babble_is_several_voices_equally_loud():
    loud, quiet = talk(2, seed=1), talk(2, seed=2) / 100
    sound = noise.babble(4 * SAMPLE_RATE, [loud, quiet], rng())
    for voice in (loud, quiet):
        scores = np.fft.irfft(np.fft.rfft(sound[: 2 * SAMPLE_RATE]) * np.conj(np.fft.rfft(voice)))
        part = scores.max() / np.dot(voice, voice) * np.sqrt(noise.speech_power(voice))
        assert part == pytest.approx(1, abs=0.1)  # wherever it begins


def test_babble_of_nobody_is_silence():
    assert not noise.babble(100, [], rng()).any()
    assert not noise.babble(100, [np.zeros(50, np.float32)], rng()).any()


def test_swell_keeps_within_its_bounds():
    gains = noise.swell(20 * SAMPLE_RATE, rng())
    assert gains.max() <= 1 and gains.min() >= 10 ** (-noise.MAX_SWELL_DB / 20) - 1e-6
    assert gains.std() > 0.1 and np.abs(np.diff(gains)).max() < 1e-3


@pytest.mark.parametrize("num_samples", [0, 1, 2, 319, 320, 321, 16_001])
def test_every_length(num_samples):
    for make in noise.SIMULATED.values():
        made = make(num_samples, rng())
        assert made.shape == (num_samples,) and made.dtype == np.float32 and np.isfinite(made).all()
    for sound in (np.zeros(0, np.float32), np.ones(3, np.float32)):
        assert noise.repeat(sound, num_samples, rng()).shape == (num_samples,)


@pytest.mark.parametrize("quiet", [np.zeros(500, np.float32), np.full(500, 1e-30, np.float32)], ids=["silence", "tiny"])
def test_what_has_no_level_is_left_alone(quiet):
    sound = talk(1)[:500]
    assert noise.mix(quiet, sound, 10) is quiet
    assert noise.mix(sound, quiet, 10) is sound
    assert len(noise.mix(quiet[:0], quiet[:0], 10)) == 0


def test_other_lengths_are_refused():
    with pytest.raises(ValueError, match="of one length"):
        noise.mix(np.zeros(3, np.float32), np.zeros(4, np.float32), 0)


def test_floor_has_the_level_and_the_spectrum_of_the_quietest_part():
    background = 1e-3 * noise.coloured(5 * SAMPLE_RATE, 2, rng())
    background /= np.float32(noise.speech_power(background) ** 0.5 / 1e-3)  # -60 dB
    recording = background.copy()
    recording[: 4 * SAMPLE_RATE] += talk(4)
    floor = noise.noise_floor(recording, 8 * SAMPLE_RATE, rng(1)).astype(np.float64)
    assert decibels(np.mean(floor**2)) == pytest.approx(-60, abs=2.5)
    frames = floor.reshape(-1, 4000)
    assert np.std([decibels(p) for p in np.mean(frames**2, 1)]) < 2.5  # as steady as noise of this colour
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(4000)))).mean(0)  # bins of 4 Hz
    assert decibels(power[100:120].mean() / power[1000:1200].mean()) == pytest.approx(20, abs=4)  # brown


@pytest.mark.parametrize("samples", [np.zeros(9000), np.full(9000, 0.5), np.ones(1), np.zeros(0)], ids=len)
@pytest.mark.parametrize("num_samples", [0, 1, 5000])
def test_floor_of_anything(samples, num_samples):
    floor = noise.noise_floor(samples.astype(np.float32), num_samples, rng())
    assert floor.shape == (num_samples,) and np.isfinite(floor).all() and np.abs(floor).max(initial=0) <= 1
