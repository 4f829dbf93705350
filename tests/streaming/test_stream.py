"""The life of one stream: what it takes, what it refuses and survives, what it tells."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from talkative import LetterTokenizer, sound, talkative_model
from textbook import transcribe_masked

from sumix_stream.context import ChunkContext
from sumix_stream.runtime.registry import as_context
from sumix_stream.search.base import GreedySearch
from sumix_stream.search.greedy import Emissions
from sumix_stream.streaming.stream import Stream, StreamingRecognizer
from sumix_stream.tasks.build import build_model

RATE = 16_000


@cache
def recognizer(chunk: int, left: int | None) -> StreamingRecognizer:
    return StreamingRecognizer(talkative_model(), LetterTokenizer(), ChunkContext(chunk, left))


def open_stream(chunk: int = 8, left: int | None = 4) -> Stream:
    return recognizer(chunk, left).create_stream()


def test_feed_returns_a_hypothesis_only_for_new_tokens():
    stream, samples = open_stream(), sound(3.0)
    assert stream.feed(RATE, samples[:100]) is None
    assert stream.feed(RATE, samples[:0]) is None
    found = [stream.feed(RATE, packet) for packet in np.array_split(samples[100:], 40)]
    partial = [hypothesis for hypothesis in found if hypothesis is not None]
    assert 2 <= len(partial) < len(found)
    for earlier, later in pairwise(partial):
        assert later.tokens[: len(earlier.tokens)] == earlier.tokens
        assert len(later.tokens) > len(earlier.tokens)


def test_hypothesis_is_consistent():
    stream = open_stream()
    stream.feed(RATE, sound(3.0))
    hypothesis = stream.finish()
    assert hypothesis == stream.result()
    assert hypothesis.text == LetterTokenizer().decode(hypothesis.tokens)
    assert len(hypothesis.tokens) == len(hypothesis.timestamps) == len(hypothesis.confidence) > 20
    assert hypothesis.timestamps == sorted(hypothesis.timestamps)
    assert all(0 <= time < 3.0 and round(time / 0.04) == pytest.approx(time / 0.04) for time in hypothesis.timestamps)
    assert hypothesis.timestamps[-1] > 1.0
    assert all(0 < confidence <= 1 for confidence in hypothesis.confidence)
    assert stream.timestamps(5) == hypothesis.timestamps[5:]
    assert stream.num_tokens == len(hypothesis.tokens)


def test_results_are_copies():
    stream = open_stream()
    hypothesis = stream.feed(RATE, sound(2.0))
    hypothesis.tokens.clear()
    assert stream.result().tokens


def test_int16_is_scaled():
    pcm = (sound(2.0) * 32767).astype(np.int16)
    whole, scaled = open_stream(), open_stream()
    whole.feed(RATE, pcm)
    scaled.feed(RATE, pcm.astype(np.float64) / 32768)
    assert whole.finish().tokens == scaled.finish().tokens != []


BAD = {
    "nan": (RATE, np.array([0.0, np.nan], np.float32), "finite"),
    "infinite": (RATE, np.array([np.inf], np.float32), "finite"),
    "stereo": (RATE, np.zeros((2, 100), np.float32), "one-dimensional"),
    "type": (RATE, np.zeros(100, np.int64), "int64"),
    "text": (RATE, np.array(["a"]), "float"),
    "unscaled": (RATE, np.full(100, 12_000.0, np.float32), r"\[-1, 1\]"),
    "rate": (8_000, np.zeros(100, np.float32), "changed from 16000 to 8000 Hz"),
}


@pytest.mark.parametrize(("sample_rate", "samples", "message"), BAD.values(), ids=BAD)
def test_bad_samples_are_refused_and_the_stream_goes_on(sample_rate, samples, message):
    stream, good = open_stream(), sound(2.0)
    stream.feed(RATE, good[:9000])
    with pytest.raises(ValueError, match=message):
        stream.feed(sample_rate, samples)
    stream.feed(RATE, good[9000:])
    expected = transcribe_masked(talkative_model(), LetterTokenizer(), [good], stream.context)[0]
    assert stream.finish().tokens == expected.tokens


@pytest.mark.parametrize("rate", [0, -16_000, 16_000.5, 10**6])
def test_bad_rate_is_refused_and_the_stream_goes_on(rate):
    stream = open_stream()
    with pytest.raises(ValueError, match="sample rate must be an integer"):
        stream.feed(rate, np.zeros(10, np.float32))
    stream.feed(8_000, sound(1.0, 8_000))
    assert stream.finish().tokens


def test_feed_and_finish_after_finish():
    stream = open_stream()
    stream.feed(RATE, sound(1.0))
    final = stream.finish()
    with pytest.raises(ValueError, match=r"samples after finish.*open a new one"):
        stream.feed(RATE, sound(0.1))
    with pytest.raises(ValueError, match="finish was called twice"):
        stream.finish()
    assert stream.is_finished
    assert stream.result() == final


@pytest.mark.parametrize("num_samples", [None, 0, 1, 79])
def test_less_than_a_frame_is_an_empty_result(num_samples):
    stream = open_stream()
    if num_samples is not None:
        assert stream.feed(RATE, sound(1.0)[:num_samples]) is None
    assert stream.finish() == ("", [], [], [])
    assert stream.is_finished


def test_full_context_cannot_stream():
    with pytest.raises(ValueError, match=r"streaming needs one chunk size .*, got full"):
        StreamingRecognizer(talkative_model(), LetterTokenizer(), ChunkContext.full())


def test_streams_of_different_contexts_do_not_share_a_step_and_lose_nothing():
    model, samples = talkative_model(), sound(2.0)
    streams = [open_stream(8, 4), open_stream(8, None)]
    for stream in streams:
        stream.accept(RATE, samples)
    with pytest.raises(ValueError, match="share one recogniser"):
        recognizer(8, 4).decode(streams)
    for stream in streams:
        expected = transcribe_masked(model, LetterTokenizer(), [samples], stream.context)[0]
        assert stream.finish().tokens == expected.tokens


def test_decode_takes_only_those_that_are_ready():
    ready, waiting = open_stream(), open_stream()
    ready.accept(RATE, sound(0.7))
    waiting.accept(RATE, sound(0.1))
    assert (ready.is_ready, waiting.is_ready) == (True, False)
    moved = recognizer(8, 4).decode([ready, waiting])
    assert [(stream, tuple(frames.shape)) for stream, frames in moved] == [(ready, (8, 32))]
    assert recognizer(8, 4).decode([]) == []


def test_a_model_made_in_inference_mode_streams_outside_it():
    with torch.inference_mode():
        model = build_model("tiny", vocab_size=LetterTokenizer.vocab_size)
    stream = StreamingRecognizer(model, LetterTokenizer(), ChunkContext(8, 2)).create_stream()
    stream.feed(RATE, sound(1.0))
    assert stream.finish() == transcribe_masked(model, LetterTokenizer(), [sound(1.0)], stream.context)[0]


def test_feed_tells_of_changed_tokens_too():
    """A beam may change what it said without saying more."""

    class Fickle(GreedySearch):
        said = iter([[3], [3], [4], [4, 5]])

        def advance(self, enc, lengths, first_frames, streams):
            super().advance(enc, lengths, first_frames, streams)
            tokens = next(self.said)
            streams[0].found = Emissions(tokens, list(range(len(tokens))), [0.5] * len(tokens))

    recognizer = StreamingRecognizer(talkative_model(), LetterTokenizer(), ChunkContext(8, 2))
    recognizer.search = Fickle(recognizer.runtime)
    stream = recognizer.create_stream()
    told = [stream.feed(RATE, packet) for packet in np.split(sound(4 * 0.32, seed=5), 4)]
    told.append(stream.finish())
    assert [hypothesis.tokens for hypothesis in told if hypothesis is not None] == [[3], [4], [4, 5]]


def test_as_context():
    model = talkative_model()
    assert as_context(model, "640ms", 4) == ChunkContext(16, 4)
    assert as_context(model, 16, None) == ChunkContext(16, None)
    assert as_context(model, ChunkContext(7, 1), None) == ChunkContext(7, 1)
    with pytest.raises(ValueError, match="640 ms and 680 ms"):
        as_context(model, "650ms", 4)
