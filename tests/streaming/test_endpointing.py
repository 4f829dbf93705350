"""Endpoints cut the text and leave the tokens alone."""

import numpy as np
import pytest
from talkative import LetterTokenizer, sound, talkative_model

from sumix_stream.context import ChunkContext
from sumix_stream.search.options import GREEDY, SearchOptions
from sumix_stream.streaming import open_words
from sumix_stream.streaming.endpointing import Endpointing, EndpointRule
from sumix_stream.streaming.stream import StreamingRecognizer

RATE = 16_000


def recognizer(
    endpointing: Endpointing | None, chunk: int = 4, seed: int = 0, runtime: str = "torch", search=GREEDY
) -> StreamingRecognizer:
    given = talkative_model(seed=seed), LetterTokenizer(), ChunkContext(chunk, 4)
    return StreamingRecognizer(*given, search=search, endpointing=endpointing, runtime=runtime)


def segments(recognizer: StreamingRecognizer, samples: np.ndarray, packet: int) -> list:
    """Results of all segments of one stream, cut wherever the recogniser says so."""
    stream, found = recognizer.create_stream(), []

    def drain() -> None:
        while recognizer.decode([stream]):
            if recognizer.is_endpoint(stream):
                found.append(recognizer.result(stream))
                recognizer.reset(stream)

    for start in range(0, len(samples), packet):
        recognizer.accept_waveform(stream, RATE, samples[start : start + packet])
        drain()
    recognizer.input_finished(stream)
    drain()
    return [*found, recognizer.result(stream)]


def joined(results: list) -> tuple[list, list, list]:
    return tuple([value for result in results for value in getattr(result, name)] for name in ("tokens", "timestamps"))


@pytest.mark.parametrize("packet", [777, 16_000, 10**6])
def test_tokens_are_the_same_with_and_without_endpoints(packet):
    samples = sound(9.0)
    (plain,) = segments(recognizer(None), samples, 5000)
    cut = segments(recognizer(Endpointing.sherpa(rule1=0.3, rule2=0.2, rule3=2.0)), samples, packet)
    assert len(cut) > 4
    assert joined(cut) == (plain.tokens, plain.timestamps)
    assert max(len(result.tokens) for result in cut) < len(plain.tokens)


def test_endpoints_do_not_depend_on_packets():
    samples, rules = sound(9.0), Endpointing.sherpa(rule1=0.3, rule2=0.2, rule3=2.0)
    found = [segments(recognizer(rules), samples, packet) for packet in (100, 3_333, 10**6)]
    texts = [[(result.tokens, result.timestamps) for result in results] for results in found]
    assert texts[0] == texts[1] == texts[2]


def test_a_reset_predictor_changes_tokens_and_only_after_the_first_endpoint():
    samples = sound(9.0)
    kept = segments(recognizer(Endpointing.sherpa(rule2=0.2)), samples, 4000)
    reset = segments(recognizer(Endpointing.sherpa(rule2=0.2, reset_predictor=True)), samples, 4000)
    assert kept[0] == reset[0]
    assert joined(kept) != joined(reset)


def test_a_reset_predictor_is_a_fresh_one():
    """After a reset tokens depend on the encoder alone: other text before the endpoint does not matter."""
    one = recognizer(Endpointing.sherpa(reset_predictor=True))
    used, fresh = one.create_stream(), one.create_stream()
    used.feed(RATE, sound(2.0))
    one.reset(used)
    arrays, _ = one.search.save(used.search)
    expected, _ = one.search.save(fresh.search)
    assert arrays.keys() == expected.keys()
    assert all((arrays[name] == expected[name]).all() for name in arrays)


RULES = Endpointing.sherpa(rule1=2.4, rule2=1.2, rule3=20.0)
CASES = {
    "rule 1 waits for silence": ((False, 2.36, 2.36), False),
    "rule 1": ((False, 2.4, 2.4), True),
    "rule 2 needs tokens": ((False, 1.2, 1.2), False),
    "rule 2": ((True, 1.2, 3.0), True),
    "rule 2 waits for silence": ((True, 1.16, 3.0), False),
    "rule 3": ((True, 0.0, 20.0), True),
    "rule 3 waits": ((True, 0.0, 19.96), False),
}


@pytest.mark.parametrize(("given", "expected"), CASES.values(), ids=CASES)
def test_rules(given, expected):
    assert RULES.is_endpoint(*given) is expected


def test_silence_is_time_without_tokens():
    """Rule 1 fires at the first chunk that completes its silence, and counts anew from there."""
    quiet = recognizer(Endpointing((EndpointRule(False, 0.4),)))
    stream, ends = quiet.create_stream(), []
    quiet.accept_waveform(stream, RATE, np.zeros(3 * RATE, np.float32))
    while quiet.decode([stream]):
        frames = quiet.search.emissions(stream.search).frames
        last = frames[-1] + 1 if frames else stream.segment_start
        assert quiet.is_endpoint(stream) == ((stream.num_encoded - last) * 0.04 >= 0.4 - 1e-9)
        if quiet.is_endpoint(stream):
            ends.append(stream.num_encoded)
            quiet.reset(stream)
    assert len(ends) >= 3


def test_without_endpointing_there_is_none():
    plain = recognizer(None)
    stream = plain.create_stream()
    stream.feed(RATE, np.zeros(30 * RATE, np.float32))
    assert not plain.is_endpoint(stream)
    plain.reset(stream)
    assert stream.result() == ("", [], [], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((True, -1.0), "min_trailing_silence must be finite and at least 0 seconds, got -1"),
        ((True, float("nan")), "min_trailing_silence must be finite"),
        ((False, 0.0, float("inf")), "min_utterance must be finite"),
        ((False, 0.0), "always fires"),
    ],
)
def test_impossible_rules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EndpointRule(*arguments)


@pytest.mark.parametrize("search", [GREEDY, SearchOptions(method="modified_beam")], ids=lambda x: x.method)
@pytest.mark.parametrize("reset_predictor", [False, True])
@pytest.mark.parametrize("rule3", [0.7, 2.0])
def test_no_word_is_cut_in_two_by_length(rule3, reset_predictor, search):
    """Segments joined are the words and tokens without endpoints, each segment begins with a word, whatever happens in
    between: partial results, packets, snapshots."""
    samples, tokenizer = sound(9.0), LetterTokenizer()
    never = Endpointing.sherpa(rule1=99.0, rule2=99.0, rule3=rule3, reset_predictor=reset_predictor)
    plain, cutting = recognizer(None, search=search), recognizer(never, search=search)
    (whole,) = segments(plain, samples, 5000)
    found = segments(cutting, samples, 777)
    assert len(found) >= 4
    assert all(tokenizer.piece(result.tokens[0]).startswith("▁") for result in found[1:] if result.tokens)
    assert all(result.text for result in found[:-1])
    if search is GREEDY:  # a beam commits itself at each endpoint
        assert joined(found) == (whole.tokens, whole.timestamps)
        assert [word for result in found for word in result.text.split()] == whole.text.split()

    stream, again = cutting.create_stream(), []
    cutting.accept_waveform(stream, RATE, samples)
    cutting.input_finished(stream)
    while cutting.decode([stream]):
        if cutting.is_endpoint(stream):
            again.append(cutting.result(stream))
            assert stream.emissions.tokens == again[-1].tokens  # what a server shows
            cutting.reset(stream)
            stream = cutting.restore(stream.snapshot())
    assert [result.tokens for result in [*again, cutting.result(stream)]] == [result.tokens for result in found]


def test_who_ignores_an_endpoint_loses_nothing():
    never = Endpointing.sherpa(rule1=99.0, rule2=99.0, rule3=1.0)
    cutting, samples = recognizer(never), sound(4.0)
    (whole,) = segments(recognizer(None), samples, 5000)
    stream, shown = cutting.create_stream(), 0
    cutting.accept_waveform(stream, RATE, samples)
    cutting.input_finished(stream)
    while cutting.decode([stream]):
        shown += cutting.is_endpoint(stream)
    assert shown > 3
    assert stream.all_emissions.tokens == whole.tokens == cutting.result(stream).tokens


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["▁HEL", "LO", "▁WOR"], 2),
        (["▁HEL", "LO", "▁WOR", "LD"], 2),
        (["▁HEL", "LO"], 0),
        (["LO"], 1),
        (["\u4eca", "\u5929", "\u6c14"], 2),
        (["▁\u4eca", "\u5929", "A", "B"], 2),
        (["\u0e2a", "\u0e27\u0e31"], 1),
        (["▁A", "▁"], 1),
        ([], 0),
    ],
)
def test_where_the_last_word_begins(pieces, expected):
    seconds = [0.2 * n for n in range(len(pieces))]
    assert open_words.last_boundary(pieces, seconds, 2.0) == expected


def test_what_goes_on_for_too_long_is_no_word():
    assert open_words.last_boundary(["▁A", "B"], [1.0, 5.9], 6.0) == 0
    assert open_words.last_boundary(["▁A", "B"], [1.0, 5.9], 6.2) == 2


@pytest.mark.slow
def test_an_hour_in_one_stream():
    """State and queue stay small, times count on, and the tokens are those of a stream without endpoints."""
    cutting = recognizer(Endpointing.sherpa(rule1=0.3, rule2=0.2, rule3=5.0), chunk=16, runtime="compiled")
    plain = recognizer(None, chunk=16, runtime="compiled")  # as served: compiled kernels where Numba is
    minutes, minute = 60, [sound(60.0, seed=seed) for seed in range(3)]
    stream, other = cutting.create_stream(), plain.create_stream()
    found, sizes = [], set()
    for n in range(minutes):
        cutting.accept_waveform(stream, RATE, minute[n % 3])
        plain.accept_waveform(other, RATE, minute[n % 3])
        while cutting.decode([stream]):
            if cutting.is_endpoint(stream):
                found.append(cutting.result(stream))
                cutting.reset(stream)
        while plain.decode([other]):
            pass
        sizes.add(cutting.runtime.nbytes(stream.encoder))
        assert stream.features.num_frames < cutting.window
    found.append(stream.finish())
    whole = other.finish()
    assert joined(found) == (whole.tokens, whole.timestamps)
    assert len(found) > 600 and len(sizes) == 1
    assert whole.timestamps[-1] > 3590
