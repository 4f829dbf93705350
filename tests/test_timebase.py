import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sumix_stream.timebase import Timebase, format_duration, parse_duration

TIMEBASE = Timebase()


@pytest.mark.parametrize(
    ("num_samples", "num_frames"),
    [(0, 0), (1, 0), (79, 0), (80, 1), (239, 1), (240, 2), (400, 3), (16_000, 100), (57_600_000, 360_000)],
)
def test_feature_frames_as_kaldi_counts_them(num_samples, num_frames):
    assert TIMEBASE.num_feature_frames(num_samples) == num_frames


@pytest.mark.parametrize(("feature_frames", "encoder_frames"), [(0, 0), (1, 1), (4, 1), (5, 2), (100, 25)])
def test_a_short_last_group_makes_an_encoder_frame(feature_frames, encoder_frames):
    assert TIMEBASE.num_encoder_frames(feature_frames) == encoder_frames


@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=5))
def test_tensors_count_as_integers_do(num_samples):
    feature_frames = TIMEBASE.num_feature_frames(torch.tensor(num_samples))
    assert feature_frames.tolist() == [TIMEBASE.num_feature_frames(n) for n in num_samples]
    expected = [TIMEBASE.num_encoder_frames(n) for n in feature_frames.tolist()]
    assert TIMEBASE.num_encoder_frames(feature_frames).tolist() == expected


@given(st.integers(1, 100_000))
def test_durations_of_whole_frames_are_those_frames(num_frames):
    assert TIMEBASE.encoder_frames(num_frames * 0.04) == num_frames
    assert TIMEBASE.encoder_frames(num_frames * 40 / 1000) == num_frames


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (0.65, "650 ms is not a whole number of encoder frames of 40 ms; the nearest are 640 ms and 680 ms"),
        (0.639, "the nearest are 600 ms and 640 ms"),
        (0.01, "10 ms is shorter than an encoder frame; the nearest is 40 ms"),
        (0, "above 0"),
        (-0.64, "above 0"),
        (math.inf, "finite"),
        (math.nan, "finite"),
    ],
)
def test_other_durations_are_refused_with_the_nearest(seconds, message):
    with pytest.raises(ValueError, match=message):
        TIMEBASE.encoder_frames(seconds)


def test_times():
    assert TIMEBASE.encoder_frame_seconds == 0.04
    assert TIMEBASE.encoder_frame_time(25) == 1.0
    assert TIMEBASE.feature_frames_per_chunk(16) == 64
    assert TIMEBASE.seconds(8_000) == 0.5
    assert TIMEBASE.num_samples(0.1) == 1_600
    # The window of a chunk's last feature frame ends (25 - 10) / 2 ms after the chunk.
    assert TIMEBASE.chunk_latency_seconds(16) == pytest.approx(0.6475)
    assert TIMEBASE.chunk_latency_seconds(None) == math.inf


@given(st.floats(0, 1e5), st.sampled_from([8_000, 11_025, 16_000]))
def test_samples_are_the_nearest_to_a_duration(seconds, rate):
    timebase = Timebase(sample_rate=rate)
    assert abs(timebase.num_samples(seconds) - seconds * rate) <= 0.5
    assert timebase.num_samples(timebase.seconds(timebase.num_samples(seconds))) == timebase.num_samples(seconds)


@pytest.mark.parametrize(("name", "value"), [("sample_rate", 0), ("subsampling", -1), ("frame_shift", 1.5)])
def test_impossible_timebases_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {value}"):
        Timebase(**{name: value})


def test_windows_shorter_than_their_shift_are_refused():
    with pytest.raises(ValueError, match=r"frame_length must be at least frame_shift \(160 samples\), got 100"):
        Timebase(frame_length=100)


@pytest.mark.parametrize(("text", "seconds"), [("640ms", 0.64), ("0.64s", 0.64), (" 2 S ", 2.0), (".5s", 0.5)])
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "640", "ms", "-1s", "1m", "1 2s", "1.2.3s", "٣s"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="number with its unit"):
        parse_duration(text)


@pytest.mark.parametrize(("seconds", "text"), [(0.64, "640 ms"), (0.0075, "7.5 ms"), (1.28, "1.28 s"), (90, "90 s")])
def test_durations_are_written(seconds, text):
    assert format_duration(seconds) == text


def test_timebase_and_config_are_light():
    code = "import sys, sumix_stream.config, sumix_stream.timebase; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
