"""Segments heard again under full context, and commits: nothing is lost, doubled or changed by where they are cut."""

import shutil

import numpy as np
import pytest
from conftest import needs_numba
from talkative import LetterTokenizer, sound, talkative_model

from sumix_stream.context import ChunkContext
from sumix_stream.features import whole_fbank
from sumix_stream.runtime.registry import make_runtime
from sumix_stream.runtime.weights import Weights
from sumix_stream.search.beam import Scored
from sumix_stream.search.greedy import Emissions
from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.offline import transcribe_batch
from sumix_stream.streaming.recognizer import Recognizer
from sumix_stream.streaming.second_pass import Again, Heard, SecondPass, Sent, num_repeated
from sumix_stream.streaming.stream import StreamingRecognizer

RATE = 16_000
BEAM = SearchOptions(method="modified_beam", beam=3, nbest=3)
SEARCHES = {"greedy": SearchOptions(), "beam": BEAM}


def make(search: str = "greedy", second_pass: bool | SecondPass = True, endpointing: Endpointing | None = None):
    recognizer = Recognizer(talkative_model(), LetterTokenizer())
    return recognizer.streaming(8, 4, search=SEARCHES[search], second_pass=second_pass, endpointing=endpointing)


def fed(recognizer: StreamingRecognizer, samples: np.ndarray):
    stream = recognizer.create_stream()
    for packet in np.array_split(samples, max(1, len(samples) // 1_237)):
        stream.feed(RATE, packet)
    return stream


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.3, 2.0, 5.1])
def test_the_whole_heard_again_is_the_whole_transcribed(search, seconds):
    samples = sound(seconds, seed=3)
    whole = make_runtime(talkative_model(), ChunkContext.full())
    (expected,) = transcribe_batch(whole, LetterTokenizer(), [samples], SEARCHES[search])
    stream = fed(make(search), samples)
    streamed = make(search, False).create_stream()
    streamed.feed(RATE, samples)
    streamed.finish()
    found = stream.finish()
    assert found.text == expected.text and found.tokens == expected.tokens and found.timestamps == expected.timestamps
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=1e-4)
    assert stream.result() == streamed.result(), "what was streamed is as it was"
    if seconds > 1:
        assert found.tokens != stream.result().tokens, "or this test shows nothing"


def test_a_final_has_both_texts_and_alternatives():
    recognizer = make("beam")
    stream = fed(recognizer, sound(2.0, seed=3))
    stream.input_finished()
    while recognizer.decode([stream]):
        pass
    final = recognizer.final(stream)
    assert final.heard_again and final.streaming == stream.result() and final.hypothesis.text != final.streaming.text
    assert final.hypothesis.tokens == list(final.alternatives[0].tokens)
    assert len({tuple(one.tokens) for one in final.alternatives}) == len(final.alternatives) == 3
    assert recognizer.final(stream) == final, "asked twice, it says the same"


def test_a_segment_that_is_too_long_stays_as_it_was_streamed_and_the_next_is_heard_again():
    recognizer = make(second_pass=SecondPass(max_seconds=2.0, overlap_seconds=0.5))
    stream = fed(recognizer, sound(4.0, seed=1))
    assert 0 < stream.heard.num_frames <= 250
    final = recognizer.commit(stream).final()
    assert not final.heard_again and final.hypothesis == final.streaming and final.hypothesis.tokens
    stream.feed(RATE, sound(1.0, seed=2))
    assert recognizer.commit(stream).final().heard_again


def test_what_is_kept_is_bounded_and_counted():
    plain, stream = make(second_pass=False).create_stream(), make(second_pass=SecondPass(3.0, 1.0)).create_stream()
    most = 0
    for seed in range(12):
        for one in (plain, stream):
            one.feed(RATE, sound(1.0, seed=seed))
        assert stream.state_nbytes - plain.state_nbytes == stream.heard.nbytes == stream.heard.frames().nbytes
        most = max(most, stream.heard.num_frames)
    assert 250 < most <= 300


def test_frames_heard():
    heard, all_frames = Heard(40, 8, 4), np.arange(200, dtype=np.float32)[:, None] * np.ones((1, 80), np.float32)
    for start in range(0, 40, 10):
        heard.add(all_frames[start : start + 10])
    heard.cut(37)
    assert (heard.first, heard.is_whole) == (28, True)  # 29 rounded down to where an encoder frame begins
    np.testing.assert_array_equal(heard.frames(), all_frames[28:40])
    twin = heard.copy()
    heard.add(all_frames[40:90])
    assert not heard.is_whole and heard.num_frames <= 12
    heard.cut(88)
    assert heard.is_whole and heard.first == 80
    np.testing.assert_array_equal(heard.frames(), all_frames[80:90])
    np.testing.assert_array_equal(twin.frames(), all_frames[28:40])


@pytest.mark.parametrize("search", SEARCHES)
def test_a_commit_says_what_finish_says_of_a_copy_and_the_stream_goes_on(search):
    samples = sound(4.0, seed=6)
    recognizer = make(search, False)
    undisturbed = fed(recognizer, samples)
    whole = undisturbed.finish()
    for cut in np.random.default_rng(0).integers(0, len(samples), 12):
        ended = fed(recognizer, samples[:cut])
        alone = ended.finish()
        stream = fed(recognizer, samples[:cut])
        before = stream.snapshot()
        committed = stream.commit()
        assert committed == alone, cut
        assert stream.commit().tokens == [], "nothing was said in between"
        assert stream.num_encoded == recognizer.restore(before).num_encoded
        stream.feed(RATE, samples[cut:])
        rest = stream.finish()
        end = ended.num_encoded * 0.04
        later = [(token, at) for token, at in zip(whole.tokens, whole.timestamps, strict=True) if at >= end]
        assert list(zip(rest.tokens, rest.timestamps, strict=True)) == later, cut
        np.testing.assert_array_equal(stream.encoder, undisturbed.encoder)


def test_endpoints_do_not_move_for_a_commit():
    rules = Endpointing.sherpa(rule3=1.0, reset_predictor=True)
    samples, ends = sound(7.0, seed=8), []
    for commits in (False, True):
        recognizer = make(second_pass=False, endpointing=rules)
        stream, found = recognizer.create_stream(), []
        for n, packet in enumerate(np.array_split(samples, 40)):
            recognizer.accept_waveform(stream, RATE, packet)
            while recognizer.decode([stream]):
                if recognizer.is_endpoint(stream):
                    recognizer.reset(stream)
                    found.append(stream.num_encoded)
            if commits and n % 7 == 3:
                stream.commit()
        ends.append(found)
    assert ends[0] == ends[1] and len(ends[0]) > 4


@pytest.mark.parametrize("second_pass", [False, True])
def test_a_snapshot_has_the_commit_and_what_was_heard(second_pass):
    recognizer, samples = make(second_pass=second_pass), sound(5.0, seed=9)
    stream = fed(recognizer, samples[:40_000])
    stream.commit()
    stream.feed(RATE, samples[40_000:50_000])
    restored = make(second_pass=second_pass).restore(stream.snapshot())
    assert restored.state_nbytes == stream.state_nbytes and restored.snapshot() == stream.snapshot()
    for one in (stream, restored):
        one.feed(RATE, samples[50_000:])
    assert restored.commit() == stream.commit() and restored.finish() == stream.finish()
    assert make(second_pass=not second_pass).restore(stream.snapshot()).state_nbytes == stream.state_nbytes


def word(text: str, at: float) -> tuple[tuple[int, ...], float]:
    return tuple(map(ord, text)), at


SEAMS = {
    "nothing was sent": ([], [("a", 1.0)], 0),
    "nothing is heard": ([("a", 1.0)], [], 0),
    "all of it": ([("a", 1.0), ("b", 1.5)], [("a", 1.04), ("b", 1.52)], 2),
    "the last was sent": ([("a", 1.0)], [("a", 0.9), ("b", 1.5)], 1),
    "said twice, sent once": ([("a", 1.0)], [("a", 1.0), ("a", 1.5)], 1),
    "said twice, sent twice": ([("a", 1.0), ("a", 1.5)], [("a", 1.0), ("a", 1.5)], 2),
    "a changed word is not sent again": ([("a", 1.0)], [("x", 1.1), ("b", 1.6)], 1),
    "a word cut by the beginning": ([("a", 0.6), ("b", 1.0)], [("z", 0.7), ("b", 1.0), ("c", 1.4)], 2),
    "a word that was not heard before the cut": ([("a", 0.3)], [("a", 0.3), ("b", 0.9)], 1),
    "far apart": ([("a", 1.0)], [("a", 2.0)], 0),
}


@pytest.mark.parametrize(("sent", "heard", "count"), SEAMS.values(), ids=SEAMS)
def test_words_that_were_sent_are_found(sent, heard, count):
    assert num_repeated([word(*one) for one in sent], [word(*one) for one in heard]) == count


@pytest.mark.parametrize("seed", range(20))
def test_no_word_is_lost_or_doubled_over_random_cuts(seed):
    """A recogniser that knows every word it hears whole, some of those that it hears in part, and each word's time but
    for an error of its own in each hearing. Words are few, so that the same one often comes twice in a row."""
    rng = np.random.default_rng(seed)
    starts = np.cumsum(rng.uniform(0.4, 1.2, 200))
    spoken = [(int(rng.integers(1, 4)), start, start + rng.uniform(0.15, 0.35)) for start in starts]
    again = Again(make_runtime(talkative_model(), ChunkContext.full()), SearchOptions(), lambda token: f"▁{token}")
    cuts, overlap = [*np.cumsum(rng.uniform(0.3, 5.0, 100)), starts[-1] + 10], SecondPass().overlap_seconds
    sent, found, last = Sent(), [], 0.0
    for number, cut in enumerate(cuts):
        heard = [
            (token, start + rng.uniform(-0.1, 0.1))
            for token, start, end in spoken
            if end > last - overlap and start < cut
            if (end <= cut and start >= last - overlap) or rng.random() < 0.5
        ]
        frames = [round(at / 0.04) for _, at in heard]
        new = again.unsent(Scored([token for token, _ in heard], frames, [1.0] * len(heard), 0.0), sent.until(number))
        sent.newest = Emissions(*new[:3])
        found += new.tokens
        last = cut
    assert found == [token for token, _, _ in spoken]


@needs_numba
def test_in_pieces_it_is_the_same_bit_by_bit():
    from sumix_stream.runtime.compiled import CompiledRuntime

    weights, calls = Weights.of(talkative_model()), []
    runtimes = [CompiledRuntime(weights, ChunkContext.full()) for _ in range(2)]
    runtimes[1].pause = lambda: calls.append(1)
    feats, final = whole_fbank(sound(5.03, seed=2))[None], np.array([True])
    given = feats, np.array([feats.shape[1]])
    whole, pieces = (runtime.encode(*given, [runtime.fresh_state()], final)[0] for runtime in runtimes)
    np.testing.assert_array_equal(whole, pieces)
    assert len(calls) == weights.config.encoder.num_layers


def test_settings_are_checked():
    for wrong in ({"max_seconds": 0}, {"max_seconds": 1e4}, {"overlap_seconds": -1}, {"overlap_seconds": 11}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SecondPass(**wrong)


def test_hotwords_of_a_stream_are_heard_in_the_second_pass_too():
    recognizer, samples = make("beam"), sound(3.0, seed=4)
    plain = fed(recognizer, samples).finish()
    boosted = Hotwords((((5, 6), 30.0),), LetterTokenizer.vocab_size)
    stream = recognizer.create_stream()
    stream.search = recognizer.search.begin(boosted)
    stream.feed(RATE, samples)
    assert stream.finish().tokens.count(6) > plain.tokens.count(6)


@pytest.mark.slow
def test_a_bundle_hears_again_where_it_has_the_graph(bundle, tmp_path):
    from sumix_stream.export.parity import check_whole
    from sumix_stream.export.plain import save_whole
    from sumix_stream.streaming.recognizer import load

    folder = shutil.copytree(bundle("onnx", "fast", ChunkContext(8, 4)), tmp_path / "bundle")
    with pytest.raises(ValueError, match="no graph for whole segments: export the checkpoint with --second-pass"):
        load(folder).stream(second_pass=True)
    save_whole(folder, talkative_model())
    model, samples = load(folder), sound(2.03, seed=3)
    assert check_whole(model.source, talkative_model(), [samples, sound(0.07), sound(0.02)]) < 1e-5
    whole = make_runtime(talkative_model(), ChunkContext.full())
    (expected,) = transcribe_batch(whole, LetterTokenizer(), [samples])
    stream = model.stream(second_pass=True)
    stream.feed(RATE, samples)
    assert stream.finish().tokens == expected.tokens != stream.result().tokens


@pytest.mark.parametrize("mixer", ["attention", "expdecay"])
def test_a_mixer_without_such_a_graph_says_so(mixer):
    from sumix_stream.export.steps import WholeEncoder

    with pytest.raises(ValueError, match="has no graph for a second pass, only SummaryMixing"):
        WholeEncoder(talkative_model(mixer).encoder)
