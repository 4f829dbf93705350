"""The eight verbs, over streams that join and leave."""

import numpy as np
import pytest
import torch
from talkative import MIXERS, LetterTokenizer, sound, talkative_model

from sumix_stream.context import ChunkContext
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.recognizer import Recognizer
from sumix_stream.streaming.stream import StreamingRecognizer


def make(mixer: str = "fast", left: int | None = 4) -> StreamingRecognizer:
    return StreamingRecognizer(talkative_model(mixer), LetterTokenizer(), ChunkContext(8, left))


@pytest.mark.parametrize("mixer", ["fast", "attention"])
@pytest.mark.parametrize("left", [3, None])
def test_streams_join_leave_and_keep_their_results(mixer, left):
    """Twelve streams of three rates come and go; each gets what it would have got alone in one piece."""
    recognizer, rng = make(mixer, left), np.random.default_rng(1)
    rates = [16_000, 8_000, 44_100]
    waiting = [(rates[n % 3], sound(0.3 + 0.37 * n, rates[n % 3], seed=n)) for n in range(12)]
    expected = []
    for rate, samples in waiting:
        stream = make(mixer, left).create_stream()
        stream.feed(rate, samples)
        expected.append(stream.finish())
    live, results, batches = {}, {}, set()
    while waiting or live:
        while waiting and len(live) < 5:
            live[recognizer.create_stream()] = (12 - len(waiting), *waiting.pop(0))
        for stream, (index, rate, rest) in list(live.items()):
            if rng.random() < 0.6 and not stream.features.finished:
                size = int(rng.integers(1, rate))
                recognizer.accept_waveform(stream, rate, rest[:size])
                live[stream] = index, rate, rest[size:]
                if size >= len(rest):
                    recognizer.input_finished(stream)
        batches.add(len(recognizer.decode(list(live))))
        for stream in [stream for stream in live if stream.is_finished]:
            assert not recognizer.is_ready(stream)
            results[live.pop(stream)[0]] = recognizer.result(stream)
    assert {1, 3} <= batches
    for n, hypothesis in enumerate(expected):
        assert results[n].tokens == hypothesis.tokens and results[n].timestamps == hypothesis.timestamps
        np.testing.assert_allclose(results[n].confidence, hypothesis.confidence, atol=1e-4)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_failing_step_moves_nobody(mixer, monkeypatch):
    recognizer, samples = make(mixer), sound(1.5)
    stream = recognizer.create_stream()
    recognizer.accept_waveform(stream, 16_000, samples)
    recognizer.decode([stream])
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise RuntimeError("out of memory")

        patch.setattr(recognizer.search, "advance", fail)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="out of memory"):
                recognizer.decode([stream])
    undisturbed = make(mixer).create_stream()
    undisturbed.feed(16_000, samples)
    assert stream.finish() == undisturbed.finish()


def test_streams_of_another_recogniser_are_refused():
    one, other = make(), make()
    for verb in (one.is_ready, one.result, one.reset, one.input_finished):
        with pytest.raises(ValueError, match="another recogniser's"):
            verb(other.create_stream())


def test_recognizer_makes_streaming_recognizers():
    recognizer = Recognizer(talkative_model(), LetterTokenizer())
    rules = Endpointing.sherpa(rule3=1.0)
    streaming = recognizer.streaming("320ms", 2, endpointing=rules)
    assert (streaming.context, streaming.endpointing) == (ChunkContext(8, 2), rules)
    with pytest.raises(ValueError, match="streaming needs one chunk size"):
        recognizer.streaming("full")


@pytest.mark.gpu
def test_a_gpu_gives_the_cpu_s_tokens():
    from copy import deepcopy

    samples, context = sound(3.0), ChunkContext(8, 4)
    on_gpu = StreamingRecognizer(deepcopy(talkative_model()).cuda(), LetterTokenizer(), context)
    streams = [on_gpu.create_stream() for _ in range(3)]
    for n, stream in enumerate(streams):
        on_gpu.accept_waveform(stream, 16_000, samples[: 48_000 - 7_000 * n])
        on_gpu.input_finished(stream)
    while on_gpu.decode(streams):
        pass
    for n, stream in enumerate(streams):
        alone = make().create_stream()
        alone.feed(16_000, samples[: 48_000 - 7_000 * n])
        assert stream.result().tokens == alone.finish().tokens
    moved = on_gpu.create_stream()
    moved.feed(16_000, samples[:20_001])
    fingerprint_of_cpu = make()
    restored = fingerprint_of_cpu.restore(moved.snapshot())
    assert restored.encoder.state.device == torch.device("cpu")
