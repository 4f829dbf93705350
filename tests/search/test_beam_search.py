"""Modified beam search in streams: equal to the masked whole, whatever the batch; segments, snapshots, hotwords."""

import numpy as np
import pytest
import torch
from talkative import VOCAB_SIZE, LetterTokenizer, runtime_of, sound, talkative_model

from sumix_stream.context import ChunkContext
from sumix_stream.evaluate.exactness import encode_masked
from sumix_stream.search import history
from sumix_stream.search.base import GreedySearch
from sumix_stream.search.beam import beam_decode
from sumix_stream.search.beam_search import BeamSearch, make_search
from sumix_stream.search.greedy import Emissions
from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.offline import Alternative, to_hypothesis, transcribe_batch
from sumix_stream.streaming.stream import StreamingRecognizer

CONTEXT = ChunkContext(8, 4)
OPTIONS = SearchOptions(method="modified_beam", nbest=3)


def make(options: SearchOptions = OPTIONS, endpointing: Endpointing | None = None) -> StreamingRecognizer:
    return StreamingRecognizer(talkative_model(), LetterTokenizer(), CONTEXT, search=options, endpointing=endpointing)


def run(recognizer: StreamingRecognizer, stream) -> None:
    while recognizer.decode([stream]):
        pass


def test_streams_of_any_age_and_packets_equal_the_masked_whole():
    runtime, tokenizer = runtime_of(), LetterTokenizer()
    sounds = [sound(seconds, seed=n) for n, seconds in enumerate((2.3, 0.3, 1.7, 3.1))]
    expected = [
        [Alternative(to_hypothesis(runtime.timebase, tokenizer, x), x.score) for x in nbest]
        for nbest in beam_decode(runtime, *encode_masked(talkative_model(), sounds, CONTEXT), options=OPTIONS)[0]
    ]
    recognizer = make()
    streams = [recognizer.create_stream() for _ in sounds]
    rng = np.random.default_rng(0)
    sent = [0] * len(sounds)
    turn = 0
    while not all(stream.is_finished for stream in streams):
        for n, (stream, samples) in enumerate(zip(streams, sounds, strict=True)):
            if turn < 3 * n or stream.features.finished:  # they do not begin together
                continue
            size = int(rng.integers(1, 9000))
            stream.accept(16_000, samples[sent[n] : sent[n] + size])
            sent[n] += size
            if sent[n] >= len(samples):
                stream.input_finished()
        recognizer.decode(streams)
        turn += 1
    for stream, alternatives in zip(streams, expected, strict=True):
        found = recognizer.search.nbest(stream.search)
        assert [x.tokens for x in found] == [a.hypothesis.tokens for a in alternatives]
        assert [x.score for x in found] == pytest.approx([a.score for a in alternatives], abs=1e-3)
        result, best = stream.result(), alternatives[0].hypothesis
        assert (result.text, result.timestamps) == (best.text, best.timestamps)
        assert result.confidence == pytest.approx(best.confidence, abs=1e-4)
    assert sum(len(a[0].hypothesis.tokens) for a in expected) > 40
    greedy = transcribe_batch(runtime_of(context=CONTEXT), tokenizer, sounds)
    assert [h.tokens for h in greedy] != [a[0].hypothesis.tokens for a in expected]
    assert [h.tokens for h in transcribe_batch(runtime_of(context=CONTEXT), tokenizer, sounds, OPTIONS)] == [
        a[0].hypothesis.tokens for a in expected
    ]


@pytest.mark.parametrize("own", [None, Hotwords((((5, 9), 4.0), ((2,), 0.5)), VOCAB_SIZE)], ids=["plain", "hotwords"])
@pytest.mark.parametrize("cut", [0, 79, 5_121, 20_480])
def test_a_restored_stream_goes_on_identically(monkeypatch, cut, own):
    monkeypatch.setattr(history, "_SETTLE", 4)
    recognizer, samples = make(), sound(2.0)
    stream = recognizer.create_stream()
    stream.search = recognizer.search.begin(own)
    stream.accept(16_000, samples[:cut])
    run(recognizer, stream)
    restored = make().restore(stream.snapshot())
    assert restored.result() == stream.result()
    stream.feed(16_000, samples[cut:])
    restored.feed(16_000, samples[cut:])
    assert restored.finish() == stream.finish()
    plain = make().create_stream()
    plain.feed(16_000, samples)
    assert (plain.finish() == stream.result()) == (own is None)


def test_a_snapshot_of_another_search_is_refused():
    data = make().create_stream().snapshot()
    for options in (SearchOptions(), SearchOptions(method="modified_beam", beam=2)):
        with pytest.raises(ValueError, match="this snapshot was taken under .*modified_beam"):
            make(options).restore(data)


@pytest.mark.parametrize("forget", [False, True])
def test_a_cut_commits_to_the_best_and_counts_on(forget):
    search, enc = BeamSearch(runtime_of(), OPTIONS), torch.randn(1, 40, 32).numpy()
    length = np.array([20])
    stream = search.begin()
    search.advance(enc[:, :20], length, [0], [stream])
    first = search.emissions(stream)
    assert len(first.tokens) > 5
    nbytes = search.nbytes(stream)
    search.cut(stream, forget)
    assert search.emissions(stream) == Emissions([], [], [])
    assert search.nbytes(stream) == nbytes
    assert stream.state.history.tokens.shape[2] == 0
    search.advance(enc[:, 20:], length, [20], [stream])
    second = search.emissions(stream)
    assert len({tuple(x.tokens) for x in search.nbest(stream)}) == 3
    fresh = search.begin()
    search.advance(enc[:, 20:], length, [0], [fresh])
    alone = search.emissions(fresh)
    if forget:
        assert (second.tokens, second.frames) == (alone.tokens, [20 + frame for frame in alone.frames])
    else:
        assert second.tokens != alone.tokens
        assert min(second.frames) >= 20
    assert second.frames == sorted(second.frames)


def test_segments_follow_each_other_in_a_recogniser():
    recognizer = make(endpointing=Endpointing())
    stream = recognizer.create_stream()
    stream.feed(16_000, sound(1.5))
    first = recognizer.result(stream)
    recognizer.reset(stream)
    assert recognizer.result(stream).tokens == []
    stream.feed(16_000, sound(1.5, seed=1))
    second = stream.finish()
    assert second.tokens and min(second.timestamps) > max(first.timestamps)


def test_make_search():
    model = runtime_of()
    assert isinstance(make_search(model, SearchOptions()), GreedySearch)
    with pytest.raises(ValueError, match="method must be modified_beam"):
        BeamSearch(model, SearchOptions())
