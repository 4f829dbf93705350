"""Streaming is the same function: from audio samples to tokens, chunk by chunk against the masked whole utterance.

C encoder frames of a chunk, L chunks of left context, 40 ms an encoder frame.
"""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from talkative import MIXERS, LetterTokenizer, sound, talkative_model
from textbook import transcribe_masked

from sumix_stream.context import ChunkContext
from sumix_stream.encoders.conformer import ConformerEncoder
from sumix_stream.evaluate.exactness import TOLERANCE, Exactness, compare, encode_masked, exactness_grid
from sumix_stream.features import whole_fbank
from sumix_stream.runtime.base import plain
from sumix_stream.runtime.weights import Weights
from sumix_stream.streaming.stream import StreamingRecognizer
from sumix_stream.tasks.build import build_model

TOKENIZER = LetterTokenizer()
RATE = 16_000


def check(result: Exactness, num_samples: int, sample_rate: int = RATE) -> None:
    """Every frame is there, within the tolerance, with the very same tokens."""
    resampled = -(-num_samples * RATE // sample_rate)
    assert result.num_frames == -(-((resampled + 80) // 160) // 4), str(result)
    assert result.max_difference <= TOLERANCE, str(result)
    assert result.tokens_identical, str(result)


@pytest.mark.parametrize("mixer", MIXERS)
def test_grid_of_chunk_sizes_and_left_contexts(mixer):
    samples = sound(6.37)
    model = talkative_model(mixer, seed=1 if mixer in ("full", "lite") else 0)  # of seeds that stop to breathe
    grid = exactness_grid(model, TOKENIZER, samples, RATE)
    assert {(cell.context.chunk_size, cell.context.left_context) for cell in grid} == {
        (chunk, left) for chunk in (4, 8, 16, 32) for left in (0, 1, 4, None)
    }
    for cell in grid:
        check(cell, len(samples))
        assert 20 < cell.num_tokens < 4 * cell.num_frames, f"these tokens prove little: {cell}"


def test_contexts_differ_at_all():
    """Otherwise the grid would compare one function with itself sixteen times."""
    model, samples = talkative_model(), sound(6.37)
    found = {
        tuple(transcribe_masked(model, TOKENIZER, [samples], ChunkContext(chunk, left))[0].tokens)
        for chunk in (4, 8, 16, 32)
        for left in (0, 1, 4, None)
    }
    assert len(found) >= 12


@pytest.mark.parametrize("mixer", ["fast", "expdecay", "attention"])
@pytest.mark.parametrize(
    "num_samples", [1, 79, 80, 239, 240, 640, 799, 2559, 2560, 2561, 2640, 2641, 5119, 5120, 5121, 8000]
)
def test_short_utterances(mixer, num_samples):
    samples = sound(1.0)[:num_samples]
    for left in (0, 1, None):
        check(compare(talkative_model(mixer), TOKENIZER, samples, RATE, ChunkContext(4, left)), num_samples)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    mixer=st.sampled_from(list(MIXERS)),
    chunk=st.integers(1, 40),
    left=st.one_of(st.none(), st.integers(0, 6)),
    num_samples=st.integers(1, 6 * RATE),
    pushes=st.lists(st.one_of(st.integers(1, 400), st.integers(1, 10 * RATE)), min_size=1, max_size=12),
    sample_rate=st.sampled_from([8_000, RATE, RATE, 22_050, 48_000]),
)
def test_any_pushes_lengths_contexts_and_rates(mixer, chunk, left, num_samples, pushes, sample_rate):
    samples = sound(6.0)[:num_samples]
    pushes.append(max(pushes[-1], 200))  # the last is repeated to the end
    result = compare(talkative_model(mixer), TOKENIZER, samples, sample_rate, ChunkContext(chunk, left), pushes)
    check(result, num_samples, sample_rate)


def test_one_sample_at_a_time():
    samples = sound(0.9)
    result = compare(talkative_model(), TOKENIZER, samples, RATE, ChunkContext(4, 1), pushes=[1])
    check(result, len(samples))
    assert result.num_tokens > 0


@pytest.mark.parametrize("sample_rate", [8_000, 44_100])
def test_other_sample_rates(sample_rate):
    samples = sound(8.03, sample_rate)
    result = compare(talkative_model(), TOKENIZER, samples, sample_rate, ChunkContext(8, 4))
    check(result, len(samples), sample_rate)
    assert result.num_tokens > 20


def test_a_preset_at_full_size():
    model = build_model("tiny", vocab_size=40)
    with torch.no_grad():
        model.joiner.output.weight.mul_(10)
        model.joiner.output.bias.zero_()
    samples = sound(4.2)
    tokenizer = LetterTokenizer()
    result = compare(model, tokenizer, samples, RATE, ChunkContext(16, 4))
    check(result, len(samples))
    assert result.num_tokens > 20


@pytest.mark.parametrize(("mixer", "left"), [("fast", None), ("full", 4), ("expdecay", None), ("attention", 4)])
def test_a_minute(mixer, left):
    samples = sound(61.7)
    result = compare(talkative_model(mixer), TOKENIZER, samples, RATE, ChunkContext(16, left), [10 * RATE])
    check(result, len(samples))
    assert result.num_tokens > 200


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("runtime", "minutes"), [("auto", 60), ("torch", 20)])
def test_an_hour(runtime, minutes):
    """The sums of an unlimited context alone go on growing; what has a window or decays is the same after a minute."""
    samples, model = np.tile(sound(240.0), minutes // 4), deepcopy(talkative_model())
    with torch.no_grad():  # tokens at the rate of speech: of an hour's 110,000 one or two lie within rounding of a tie
        model.joiner.output.bias[model.blank_id] += 3.0
    weights = Weights.of(model)  # a model of PyTorch itself `auto` would leave to PyTorch
    result = compare(weights, TOKENIZER, samples, RATE, ChunkContext(32, None), [10 * RATE], runtime)
    check(result, len(samples))
    assert result.num_tokens > 200 * minutes


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("left", [2, None])
def test_streams_of_any_age_share_batches(mixer, left):
    """Streams open, pause, end and are replaced; each gets what it would have got alone."""
    model, context = talkative_model(mixer), ChunkContext(8, left)
    rng = np.random.default_rng(0)
    utterances = [sound(seconds, seed=n) for n, seconds in enumerate((3.1, 0.2, 1.7, 0.005, 4.4, 2.56, 0.7))]
    alone = [encode_masked(model, [samples], context)[0][0] for samples in utterances]
    expected = [transcribe_masked(model, TOKENIZER, [samples], context)[0] for samples in utterances]
    recognizer = StreamingRecognizer(model, TOKENIZER, context)
    streams = [recognizer.create_stream() for _ in utterances]
    position = [0] * len(utterances)
    encoded = {stream: [] for stream in streams}
    batch_sizes = set()
    while any(not stream.is_finished for stream in streams):
        for n, stream in enumerate(streams):
            ended = position[n] >= len(utterances[n])
            if ended or rng.random() < 0.3 + 0.1 * n:
                continue
            size = int(rng.integers(1, 9000))
            stream.accept(RATE, utterances[n][position[n] : position[n] + size])
            position[n] += size
            if position[n] >= len(utterances[n]):
                stream.input_finished()
        moved = recognizer.decode(streams)
        batch_sizes.add(len(moved))
        for stream, frames in moved:
            encoded[stream].append(frames)
    assert {1, 2, 3} <= batch_sizes, batch_sizes
    for stream, frames, hypothesis in zip(streams, alone, expected, strict=True):
        streamed = np.concatenate([frames[:0], *map(plain, encoded[stream])])
        assert streamed.shape == frames.shape
        assert not len(frames) or np.abs(streamed - frames).max() <= TOLERANCE
        assert stream.result().tokens == hypothesis.tokens
        assert stream.result().timestamps == hypothesis.timestamps
    assert sum(len(hypothesis.tokens) for hypothesis in expected) > 50


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("context", [ChunkContext(8, 1), ChunkContext(8, None), ChunkContext.full()], ids=str)
def test_batch_mates_and_padding_change_nothing(mixer, context):
    model = talkative_model(mixer)
    utterances = [sound(seconds, seed=n) for n, seconds in enumerate((2.3, 0.01, 3.9, 0.33))]
    together, lengths = encode_masked(model, utterances, context)
    hypotheses = transcribe_masked(model, TOKENIZER, utterances, context)
    for n, samples in enumerate(utterances):
        alone, length = encode_masked(model, [samples], context)
        assert lengths[n] == length[0]
        assert np.abs(together[n, : lengths[n]] - alone[0]).max(initial=0) <= 1e-5
        assert not together[n, lengths[n] :].any(), "padded frames are not zero"
        assert transcribe_masked(model, TOKENIZER, [samples], context)[0].tokens == hypotheses[n].tokens
    assert sum(len(hypothesis.tokens) for hypothesis in hypotheses) > 30


def moved_frames(encoder: ConformerEncoder, context: ChunkContext, feature_frame: int, num_frames: int) -> set[int]:
    """Encoder frames that a change of one feature frame reaches, from the definitions of context and convolutions."""
    chunk = context.chunk_size or num_frames
    left = num_frames if context.left_context is None else context.left_context
    reach = encoder.config.conv_kernel // 2
    moved = {t for t in range(num_frames) if 4 * t - 3 <= feature_frame <= 4 * t + 3}
    for _ in range(encoder.config.num_layers):
        chunks = {t // chunk for t in moved}
        moved |= {t for t in range(num_frames) if any(t // chunk - left <= n <= t // chunk for n in chunks)}
        moved |= {t for t in range(num_frames) for u in moved if abs(t - u) <= reach and u < (t // chunk + 1) * chunk}
    return moved


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(
    "context",
    [ChunkContext(4, 0), ChunkContext(4, 2), ChunkContext(16, 1), ChunkContext(8, None), ChunkContext.full()],
    ids=str,
)
@torch.inference_mode()
def test_one_feature_frame_moves_exactly_what_the_context_says(mixer, context):
    encoder = talkative_model(mixer).encoder
    feats = torch.from_numpy(whole_fbank(sound(3.19)))[None]
    lengths = torch.tensor([feats.shape[1]])
    before, _ = encoder(feats, lengths, context)
    for feature_frame in (0, 1, 31, 127, 128, 163, 200, 318):
        changed = feats.clone()
        changed[0, feature_frame] += 4.0
        after, _ = encoder(changed, lengths, context)
        moved = set((after != before)[0].any(-1).nonzero().squeeze(1).tolist())
        assert moved == moved_frames(encoder, context, feature_frame, before.shape[1]), feature_frame


@pytest.mark.parametrize(
    ("mixer", "left"),
    # Attention without a window keeps the whole past, so its state must grow: the twin's weakness, not ours.
    [(mixer, left) for mixer in MIXERS for left in (0, 4, None) if (mixer, left) != ("attention", None)],
)
def test_state_size_is_constant(mixer, left):
    model, context = talkative_model(mixer), ChunkContext(8, left)
    stream = StreamingRecognizer(model, TOKENIZER, context).create_stream()
    sizes = []
    for packet in np.array_split(sound(12.0), 75):  # 160 ms, half a chunk
        stream.feed(RATE, packet)
        sizes.append(stream.state_nbytes)
    assert set(sizes[10::2]) | set(sizes[11::2]) == set(sizes[10:12]), "grows with the stream's age"
    assert stream.result().tokens


def test_nothing_depends_on_trailing_silence():
    """finish() decodes to the last sample: all tokens of the masked whole come without a sample of silence after it."""
    model, context = talkative_model(), ChunkContext(16, 4)
    for num_samples in (10_240 + 4_000, 20_480, 20_480 + 641):  # part of a chunk, whole chunks, one frame more
        samples = sound(2.0)[:num_samples]
        stream = StreamingRecognizer(model, TOKENIZER, context).create_stream()
        before = stream.feed(RATE, samples)
        after = stream.finish()
        assert after.tokens == transcribe_masked(model, TOKENIZER, [samples], context)[0].tokens
        assert after.tokens[: len(before.tokens)] == before.tokens
        assert len(after.tokens) > len(before.tokens), "the end had nothing to say"


def test_trailing_silence_leaves_earlier_chunks_alone():
    model, context = talkative_model(), ChunkContext(8, 2)
    samples = sound(2.4)
    padded = np.concatenate([samples, np.zeros(RATE, np.float32)])
    short, long = (transcribe_masked(model, TOKENIZER, [x], context)[0] for x in (samples, padded))
    chunk_start = 0.32 * (int(2.39 / 0.32))  # of the chunk that holds the end
    kept = [time for time in short.timestamps if time < chunk_start]
    assert len(kept) > 10
    assert long.tokens[: len(kept)] == short.tokens[: len(kept)]
    assert long.timestamps[: len(kept)] == kept


def test_the_comparison_finds_a_fault(monkeypatch):
    """A step that forgets its past is exact nowhere but in the first chunk."""
    model, samples = talkative_model(), sound(3.0)
    context = ChunkContext(8, 2)
    assert compare(model, TOKENIZER, samples, RATE, context).holds
    step = ConformerEncoder.step

    def forgetful(self, feats, lengths, state, final=False):
        return step(self, feats, lengths, self.init_state(len(feats), state.context), final)

    monkeypatch.setattr(ConformerEncoder, "step", forgetful)
    result = compare(model, TOKENIZER, samples, RATE, context)
    assert not result.holds
    assert result.max_difference > 0.01
