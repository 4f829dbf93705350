"""Streams in slots are streams: places come back, tables grow, and nobody moves when a step fails."""

import gc

import numpy as np
import pytest
import torch
from talkative import LetterTokenizer, sound, talkative_model

from sumix_stream.context import ChunkContext
from sumix_stream.runtime.stream_encoders import RowEncoder, SlotEncoder, as_context, make_encoder
from sumix_stream.streaming.stream import StreamingRecognizer

CONTEXT = ChunkContext(8, 4)


def make(mixer: str = "fast", slots: bool = True) -> StreamingRecognizer:
    return StreamingRecognizer(talkative_model(mixer), LetterTokenizer(), CONTEXT, slots=slots)


@pytest.mark.parametrize("mixer", ["fast", "expdecay", "attention"])
def test_streams_in_slots_come_and_go_and_keep_their_results(mixer):
    """Twenty streams, so that slots grow; at most twelve at a time."""
    slots, rows, rng = make(mixer), make(mixer, slots=False), np.random.default_rng(1)
    assert isinstance(slots.encoder, SlotEncoder) and isinstance(rows.encoder, RowEncoder)
    waiting = [sound(0.2 + 0.1 * n, seed=n) for n in range(20)]
    expected = []
    for samples in waiting:
        stream = rows.create_stream()
        stream.feed(16_000, samples)
        expected.append(stream.finish())
    live, results, batches = {}, {}, set()
    while waiting or live:
        while waiting and len(live) < 12:
            live[slots.create_stream()] = (20 - len(waiting), waiting.pop(0))
        for stream, (index, rest) in list(live.items()):
            if rng.random() < 0.7 and not stream.features.finished:
                size = int(rng.integers(1, 16_000))
                slots.accept_waveform(stream, 16_000, rest[:size])
                live[stream] = index, rest[size:]
                if size >= len(rest):
                    slots.input_finished(stream)
        batches.add(len(slots.decode(list(live))))
        for stream in [stream for stream in live if stream.is_finished]:
            results[live.pop(stream)[0]] = slots.result(stream)
    assert len(batches) > 2
    assert slots.encoder._slots.num_slots == 16
    assert sorted(slots.encoder._places.free) == list(range(16)), "finished streams keep their slots"
    for n, hypothesis in enumerate(expected):
        assert results[n].tokens == hypothesis.tokens and results[n].timestamps == hypothesis.timestamps


def test_a_dropped_stream_gives_its_slot_back_to_a_fresh_one():
    recognizer, samples = make(), sound(1.2)
    alone = make().create_stream()
    alone.feed(16_000, samples)
    expected = alone.finish()
    streams = [recognizer.create_stream() for _ in range(8)]
    for stream in streams:
        stream.feed(16_000, samples)
    streams.clear()
    del stream
    gc.collect()
    assert len(recognizer.encoder._places.free) == 8
    again = recognizer.create_stream()
    again.feed(16_000, samples)
    assert again.finish() == expected
    assert recognizer.encoder._slots.num_slots == 8


@pytest.mark.parametrize("slots", [True, False])
def test_a_failing_search_moves_nobody(slots, monkeypatch):
    recognizer, samples = make(slots=slots), sound(1.5)
    stream, waiting = recognizer.create_stream(), recognizer.create_stream()
    for one in (stream, waiting):
        recognizer.accept_waveform(one, 16_000, samples)
        recognizer.decode([one])
    before = [recognizer.encoder.save(one.encoder) for one in (stream, waiting)]
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise RuntimeError("out of memory")

        patch.setattr(recognizer.search, "advance", fail)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"):
                recognizer.decode([stream])
    for one, parts in zip((stream, waiting), before, strict=True):
        after = recognizer.encoder.save(one.encoder)
        assert all(torch.equal(part, after[name]) for name, part in parts.items())
    undisturbed = make(slots=slots).create_stream()
    undisturbed.feed(16_000, samples)
    expected = undisturbed.finish()
    assert stream.finish().tokens == waiting.finish().tokens == expected.tokens


@pytest.mark.parametrize("to_slots", [True, False])
def test_snapshots_move_between_slots_and_rows(to_slots):
    samples = sound(2.0)
    source, target = make(slots=not to_slots), make(slots=to_slots)
    stream = source.create_stream()
    stream.feed(16_000, samples[:17_003])
    restored = target.restore(stream.snapshot())
    for one in (stream, restored):
        one.feed(16_000, samples[17_003:])
    assert stream.state_nbytes == restored.state_nbytes
    final = stream.finish()
    assert restored.finish().tokens == final.tokens
    assert target.restore(restored.snapshot()).result().tokens == final.tokens


def test_states_that_grow_are_kept_by_rows():
    assert isinstance(make_encoder(talkative_model("attention"), ChunkContext(8, None), slots=True), RowEncoder)
    assert isinstance(make_encoder(talkative_model("fast"), ChunkContext(8, None), slots=True), SlotEncoder)


def test_default_contexts():
    model = talkative_model()
    assert as_context(model) == ChunkContext(16, 4)
    assert as_context(model, "320ms") == ChunkContext(8, 4)
    assert as_context(model, left_context=None) == ChunkContext(16, None)
    assert as_context(model, otherwise=("full", None)) == ChunkContext(None, None)
    assert as_context(model, "320ms", otherwise=("full", None)) == ChunkContext(8, None)


@pytest.mark.gpu
def test_a_cuda_graph_gives_the_cpu_s_tokens():
    from copy import deepcopy

    samples = sound(3.0)
    recognizer = StreamingRecognizer(deepcopy(talkative_model()).cuda(), LetterTokenizer(), CONTEXT, slots=True)
    streams = [recognizer.create_stream() for _ in range(10)]
    for n, stream in enumerate(streams):
        recognizer.accept_waveform(stream, 16_000, samples[: 48_000 - 3_700 * n])
        recognizer.input_finished(stream)
    assert recognizer.encoder._slots._graph is not None
    while recognizer.decode(streams[1:]) or recognizer.decode(streams[:1]):
        pass
    for n, stream in enumerate(streams):
        alone = make(slots=False).create_stream()
        alone.feed(16_000, samples[: 48_000 - 3_700 * n])
        assert stream.result().tokens == alone.finish().tokens
    assert torch.tensor(sorted(recognizer.encoder._places.free)).tolist() == list(range(16))
