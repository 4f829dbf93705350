import kaldi_native_fbank as knf
import numpy as np
import pytest
import torch
from conftest import has_compiled_kernels, needs_numba
from hypothesis import given, settings
from hypothesis import strategies as st

from sumix_stream.data.batch_fbank import BatchFbank
from sumix_stream.features import (
    NUM_BINS,
    FbankStream,
    compiled_log_mel,
    fastest_log_mel,
    mel_filters,
    numpy_log_mel,
    whole_fbank,
)

KINDS = {"numpy": lambda: numpy_log_mel} | ({"compiled": compiled_log_mel} if has_compiled_kernels else {})
LENGTHS = (0, 1, 79, 80, 81, 119, 120, 121, 159, 160, 200, 279, 280, 281, 399, 400, 401, 559, 560, 561, 1000, 16_000)


def noise(num_samples: int, seed: int = 0, scale: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(num_samples) * scale).astype(np.float32)


def speech_like(num_samples: int) -> np.ndarray:
    """A gliding voice with pauses over the noise of 16-bit audio: loud and silent, dark and bright frames."""
    time = np.arange(num_samples) / 16_000
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(3 * time)) / 16_000
    voice = sum(np.sin(k * phase) / k**1.5 for k in range(1, 40)) * np.maximum(0, np.sin(9 * time)) * 0.2
    return np.round((voice + noise(num_samples, scale=3e-4)) * 32768).astype(np.float32) / 32768


def library_fbank(samples: np.ndarray) -> np.ndarray:
    options = knf.FbankOptions()
    frame, mel = options.frame_opts, options.mel_opts
    frame.samp_freq, frame.frame_shift_ms, frame.frame_length_ms = 16_000, 10, 25
    frame.window_type, frame.preemph_coeff, frame.dither = "hann", 0.97, 0
    frame.remove_dc_offset, frame.snip_edges = False, False
    mel.num_bins, mel.low_freq, mel.high_freq, mel.is_librosa = 80, 0, 8_000, True
    online = knf.OnlineFbank(options)
    online.accept_waveform(16_000, samples)
    online.input_finished()
    frames = [online.get_frame(i) for i in range(online.num_frames_ready)]
    return np.array(frames, dtype=np.float32).reshape(-1, NUM_BINS)


def textbook_fbank(samples: np.ndarray) -> np.ndarray:
    """The definition, frame by frame in float64."""
    samples, frames = samples.astype(np.float64), []
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    for frame in range((len(samples) + 80) // 160):
        index = np.arange(400) + 160 * frame - 120
        while ((index < 0) | (index >= len(samples))).any():
            index = np.where(index < 0, -index - 1, index)
            index = np.where(index >= len(samples), 2 * len(samples) - 1 - index, index)
        piece = samples[index]
        piece = np.concatenate([piece[:1] * 0.03, piece[1:] - 0.97 * piece[:-1]])
        power = np.abs(np.fft.rfft(piece * window, 512)) ** 2
        frames.append(np.log(np.maximum(power @ mel_filters().astype(np.float64), 2.0**-23)))
    return np.array(frames).reshape(-1, NUM_BINS)


def stream_fbank(samples: np.ndarray, pushes: list[int], log_mel=None) -> np.ndarray:
    stream, out, begin = FbankStream(log_mel), [], 0
    for push in pushes:
        out.append(stream.accept(samples[begin : begin + push]))
        begin += push
        assert stream.nbytes == 400 * 4
    out.append(stream.accept(samples[begin:]))
    out.append(stream.finish())
    return np.concatenate(out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_samples", LENGTHS)
def test_equal_to_the_definition(num_samples, kind):
    samples = noise(num_samples)
    feats = whole_fbank(samples, KINDS[kind]())
    assert feats.shape == ((num_samples + 80) // 160, NUM_BINS)
    assert feats.dtype == np.float32
    np.testing.assert_allclose(feats, textbook_fbank(samples), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_samples", LENGTHS)
def test_equal_to_kaldi_native_fbank_at_any_length(num_samples):
    samples = noise(num_samples)
    np.testing.assert_allclose(whole_fbank(samples), library_fbank(samples), rtol=0, atol=1e-4)


def test_equal_to_kaldi_native_fbank_on_speech():
    samples = speech_like(160_000)
    feats, expected = whole_fbank(samples), library_fbank(samples)
    error = np.abs(feats - expected)
    # The library's float32 spectrum has an error in proportion to the frame's loudest bin: bins 40 dB below it (and
    # those are few) carry more of it than 1e-4; ours are the true ones, as the textbook test says.
    quiet = feats < feats.max(axis=1, keepdims=True) - np.log(1e4)
    assert error[~quiet].max() <= 1e-4
    assert error.max() <= 1e-3
    assert np.quantile(error, 0.999) <= 1e-4
    np.testing.assert_allclose(feats, textbook_fbank(samples), rtol=0, atol=1e-5)


@pytest.mark.parametrize("samples", [np.zeros(2_000), np.full(2_000, 0.5), np.full(2_000, -1.0)], ids=["0", "dc", "-1"])
def test_constant_input_is_finite_and_floored(samples):
    feats = whole_fbank(samples)
    assert np.isfinite(feats).all()
    assert feats.min() >= np.float32(np.log(2.0**-23))


def test_a_full_scale_tone_streams_exactly():
    """In float32 the bins beside a tone would depend on how many frames are transformed at once."""
    samples = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    whole = whole_fbank(samples)
    for push in (160, 1_000, 7_777):
        np.testing.assert_array_equal(stream_fbank(samples, [push] * (len(samples) // push)), whole)


@pytest.mark.parametrize("num_samples", LENGTHS)
@pytest.mark.parametrize("push", [1, 159, 160, 161, 5_000])
def test_streaming_at_every_length(num_samples, push):
    samples = noise(min(num_samples, 2_000))
    streamed = stream_fbank(samples, [push] * (len(samples) // push))
    np.testing.assert_array_equal(streamed, whole_fbank(samples))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 4_000),
    st.lists(st.integers(0, 1_500), max_size=12),
    st.integers(0, 9),
    st.sampled_from(sorted(KINDS)),
)
def test_streaming_with_any_pushes(num_samples, pushes, seed, kind):
    samples, kind = noise(num_samples, seed), KINDS[kind]()
    np.testing.assert_array_equal(stream_fbank(samples, pushes, kind), whole_fbank(samples, kind))


def test_frames_come_as_soon_as_their_window_is_complete():
    stream, num_frames = FbankStream(), 0
    for num_samples in range(1, 1_001):
        num_frames += len(stream.accept(noise(1)))
        assert num_frames == max(0, (num_samples - 280) // 160 + 1)


def test_a_stream_keeps_no_reference_to_what_is_pushed():
    samples, stream = noise(3_000), FbankStream()
    buffer = np.empty(100, dtype=np.float32)
    out = []
    for begin in range(0, 3_000, 100):
        buffer[:] = samples[begin : begin + 100]
        out.append(stream.accept(buffer))
        buffer[:] = np.nan
    out.append(stream.finish())
    np.testing.assert_array_equal(np.concatenate(out), whole_fbank(samples))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2_000), min_size=1, max_size=5), st.integers(0, 700))
def test_batches_do_not_mix_nor_read_their_padding(lengths, extra):
    waveforms = torch.full((len(lengths), max(lengths) + extra), torch.nan)
    for i, length in enumerate(lengths):
        waveforms[i, :length] = torch.from_numpy(noise(length, i))
    feats, feat_lengths = BatchFbank()(waveforms, torch.tensor(lengths))
    assert feats.shape == (len(lengths), (waveforms.shape[1] + 80) // 160, NUM_BINS)
    for i, length in enumerate(lengths):
        alone = whole_fbank(noise(length, i))
        assert feat_lengths[i] == len(alone)
        np.testing.assert_allclose(feats[i, : len(alone)], alone, rtol=0, atol=1e-5)
        assert (feats[i, len(alone) :] == 0).all()


@needs_numba
def test_the_compiled_one_is_taken_where_it_can_be():
    assert fastest_log_mel() is compiled_log_mel()


@pytest.mark.parametrize("kind", KINDS)
def test_speech_with_silence_in_any_packets(kind):
    samples = np.concatenate([speech_like(30_000), np.zeros(4_000, np.float32), speech_like(7_001)])
    whole = whole_fbank(samples, KINDS[kind]())
    np.testing.assert_allclose(whole, textbook_fbank(samples), rtol=0, atol=1e-5)
    for push in (7, 777, 5_000):
        np.testing.assert_array_equal(stream_fbank(samples, [push] * (len(samples) // push), KINDS[kind]()), whole)


def test_long_input_is_computed_in_blocks_that_do_not_show():
    samples = noise(16_000 * 40)
    whole, late = whole_fbank(samples), whole_fbank(samples[16_000 * 30 :])
    np.testing.assert_array_equal(whole[3_001:], late[1:])
    batched, _ = BatchFbank()(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    np.testing.assert_allclose(batched[0], whole, rtol=0, atol=1e-5)


def test_batches_under_autocast_and_without_state():
    module, waveforms = BatchFbank(), torch.from_numpy(noise(4_000))[None]
    assert not module.state_dict()
    expected, _ = module(waveforms, torch.tensor([4_000]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feats, _ = module(waveforms, torch.tensor([4_000]))
    assert torch.equal(feats, expected)
    assert module(torch.zeros(0, 400), torch.zeros(0, dtype=torch.long))[0].shape == (0, 3, NUM_BINS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_a_gpu():
    lengths = torch.tensor([16_000, 300, 9_999])
    waveforms = torch.from_numpy(noise(48_000)).view(3, -1)
    expected, _ = BatchFbank()(waveforms, lengths)
    feats, feat_lengths = BatchFbank()(waveforms.cuda(), lengths.cuda())
    assert feats.is_cuda and feat_lengths.is_cuda
    torch.testing.assert_close(feats.cpu(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("samples", [np.zeros((2, 100), np.float32), np.zeros(100, np.int16)], ids=["stereo", "int16"])
def test_bad_samples_are_refused(samples):
    for function in (whole_fbank, FbankStream().accept):
        with pytest.raises(ValueError, match=r"1-D float array in \[-1, 1\]"):
            function(samples)


def test_a_finished_stream_is_refused():
    stream = FbankStream()
    stream.finish()
    with pytest.raises(ValueError, match="finished"):
        stream.accept(noise(1))
    with pytest.raises(ValueError, match="finished"):
        stream.finish()


def test_bad_batches_are_refused():
    with pytest.raises(ValueError, match=r"\(B, S\).*got \(3,\)"):
        BatchFbank()(torch.zeros(3), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"torch.int16"):
        BatchFbank()(torch.zeros(1, 3, dtype=torch.int16), torch.tensor([3]))
