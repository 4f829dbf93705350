"""Rooms: the decay that was asked for, energies as physics has them, and no word moved in time."""

import numpy as np
import pytest

from sumix_stream.data.augment import rooms
from sumix_stream.data.augment.noise import SAMPLE_RATE, speech_power


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def decay_time(response: np.ndarray) -> float:
    """RT60 (s) from -5 to -35 dB of Schroeder's integral, backwards over the energy (JASA 37, 1965)."""
    left = np.cumsum(np.square(response[::-1], dtype=np.float64))[::-1]
    curve = 10 * np.log10(left / left[0] + 1e-30)
    begin, end = np.argmax(curve < -5), np.argmax(curve < -35)
    return -60 / np.polyfit(np.arange(begin, end) / SAMPLE_RATE, curve[begin:end], 1)[0]


@pytest.mark.parametrize("rt60", [0.1, 0.2, 0.35, 0.6])
def test_decay_is_the_asked_for(rt60):
    generator = rng()
    times = []
    for _ in range(25):
        room = rooms.draw_room(rt60, generator)
        response, direct = rooms.impulse_response(room, generator)
        times.append(decay_time(response[direct:]))
    assert np.mean(times) == pytest.approx(rt60, rel=0.1 if rt60 < 0.15 else 0.03)
    assert np.max(np.abs(np.array(times) / rt60 - 1)) < (0.35 if rt60 < 0.15 else 0.1)


def test_reflection_is_eyrings():
    room = rooms.Room(np.array([5.0, 4.0, 3.0]), np.ones(3), np.full(3, 1.5), 0.4)
    assert (room.volume, room.surface) == (60.0, 94.0)
    absorption = 1 - room.reflection**2
    eyring = 24 * np.log(10) * 60 / (343 * -94 * np.log(1 - absorption))
    assert eyring == pytest.approx(0.4)
    assert 0.161 * 60 / (94 * absorption) == pytest.approx(0.4, rel=0.25)  # Sabine's is longer where much is absorbed


def test_tail_has_the_level_of_the_reflections_before_it():
    """Early (exact images) and late (noise) energies differ by the decay between them, on the average of rooms."""
    generator, early, late = rng(), 0.0, 0.0
    for _ in range(60):
        response, direct = rooms.impulse_response(rooms.draw_room(0.4, generator), generator)
        energy = np.square(response[direct:], dtype=np.float64)
        early += energy[320:640].sum()  # 20 to 40 ms
        late += energy[800:1120].sum()  # 50 to 70 ms
    assert 10 * np.log10(early / late) == pytest.approx(60 * 0.03 / 0.4, abs=0.7)


def test_first_reflection_is_where_the_mirror_puts_it():
    """A speaker and a microphone 1 m above the floor, 2 m apart: the floor's image is sqrt(2^2 + 2^2) m away."""
    room = rooms.Room(np.array([9.0, 8.0, 9.0]), np.array([3.5, 4.0, 1.0]), np.array([5.5, 4.0, 1.0]), 0.3)
    response, direct = rooms.impulse_response(room, rng())
    assert response[direct] == pytest.approx(1, abs=0.01) and np.abs(response[: direct - 2]).max() < 0.02
    late = (np.sqrt(8) - 2) / rooms.SPEED_OF_SOUND * SAMPLE_RATE
    around = response[direct + int(late) - 6 : direct + int(late) + 8]
    assert int(around.argmin()) - 6 + int(late) == round(late)
    assert around.sum() == pytest.approx(-room.reflection * 2 / np.sqrt(8), rel=0.1)


def test_rooms_hold_speaker_and_microphone():
    generator = rng()
    for _ in range(200):
        room = rooms.draw_room(0.3, generator)
        for place in (room.source, room.microphone):
            assert (place >= 0.3).all() and (place <= room.size - 0.3).all()
        assert 0.29 < np.linalg.norm(room.source - room.microphone) < 3.01


@pytest.mark.parametrize("num_samples", [1, 16_383, 16_384, 16_385, 50_000])
def test_convolution(num_samples):
    samples = rng(1).standard_normal(num_samples).astype(np.float32)
    response = rng(2).standard_normal(700).astype(np.float32)
    expected = np.convolve(samples.astype(np.float64), response)
    np.testing.assert_allclose(rooms.convolve(samples, response), expected, atol=3e-4)


def test_words_stay_where_they_were():
    """The strongest correlation with the dry sound is at a shift of zero samples."""
    generator = rng()
    dry = np.zeros(48_000, np.float32)
    dry[16_000:24_000] = generator.standard_normal(8_000)
    for rt60 in (0.1, 0.3, 0.6):
        for _ in range(10):
            response, direct = rooms.impulse_response(rooms.draw_room(rt60, generator), generator)
            wet = rooms.reverberate(dry, response, direct)
            scores = np.fft.irfft(np.fft.rfft(wet) * np.conj(np.fft.rfft(dry)))
            assert int(scores.argmax()) == 0 and scores[0] > 0
            assert np.square(wet[:15_990]).sum() < 1e-5 * np.square(wet).sum()  # nothing is heard before it is said
            assert wet.shape == dry.shape and speech_power(wet) == pytest.approx(speech_power(dry), rel=1e-3)


def test_recorded_responses_are_aligned_and_cut():
    recorded = np.zeros(40_000, np.float32)
    recorded[5_000], recorded[5_100] = -0.3, 0.1
    response, direct = rooms.align(recorded)
    assert response[direct] == 1 and response[direct + 100] == pytest.approx(-1 / 3)
    assert len(response) == rooms.MAX_RESPONSE and direct < 100
    response, direct = rooms.align(np.array([1, 0.5], np.float32))
    assert direct == 0 and len(response) == 2


@pytest.mark.parametrize("bad", [np.zeros(0), np.zeros(9)], ids=["empty", "silent"])
def test_a_silent_response_is_refused(bad):
    with pytest.raises(ValueError, match="must not be silent"):
        rooms.align(bad.astype(np.float32))


@pytest.mark.parametrize(("length", "direct"), [(0, 0), (5, 5), (5, -1), (rooms.MAX_RESPONSE + 1, 0)])
def test_impossible_responses_are_refused(length, direct):
    with pytest.raises(ValueError, match="direct lies among them"):
        rooms.reverberate(np.zeros(5, np.float32), np.ones(length, np.float32), direct)


@pytest.mark.parametrize("samples", [np.zeros(700), np.ones(1), np.full(700, 1e-30), np.ones(20_000)], ids=str)
def test_anything_is_finite(samples):
    samples = samples.astype(np.float32)
    wet = rooms.reverberate(samples, *rooms.impulse_response(rooms.draw_room(0.5, rng()), rng()))
    assert wet.shape == samples.shape and wet.dtype == np.float32 and np.isfinite(wet).all()
