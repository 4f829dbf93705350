"""What a stream may ask for: options, commits, second passes and speech events, in one worker and in several."""

import asyncio
import json

import numpy as np
import pytest
from serving import PCM, RATE, assert_is, expected, library, make_recognizer, run, serving, uri
from talkative import LetterTokenizer
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions
from sumix_stream.serve.client import ServerError, transcribe
from sumix_stream.serve.engine import Engine
from sumix_stream.serve.metrics import Metrics
from sumix_stream.serve.options import Offer, StreamOptions, Wrong
from sumix_stream.serve.session import MOST_COMMITS
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.second_pass import SecondPass

BEAM = SearchOptions(method="modified_beam", beam=4, nbest=3)


ASKED = {
    "nothing": ({}, {}),
    "chunk": ({"chunk": "640ms", "left_context": 2}, {"chunk": 16, "left": 2}),
    "second pass": ({"second_pass": True}, {"second_pass": True}),
    "endpoint": ({"endpoint": [2.4, 1.2, 0.7]}, {"rules": Endpointing.sherpa(rule3=0.7)}),
    "beam": ({"beam": 4, "nbest": 3}, {"search": BEAM}),
    "beam, second pass": ({"beam": 4, "nbest": 3, "second_pass": True}, {"search": BEAM, "second_pass": True}),
}


@pytest.mark.parametrize("workers", [1, 2])
def test_streams_of_all_kinds_get_what_the_library_gives(workers):
    commits = [0.5, 1.37, 3.0]
    kinds = ASKED if workers == 1 else ("nothing", "chunk", "beam, second pass")  # each process starts anew
    cases = [(*ASKED[kind], seconds) for kind in kinds for seconds in ((), commits)]

    async def test():
        async with serving(workers=workers) as (server, port):
            found = await asyncio.gather(
                *(transcribe(uri(port), PCM, RATE, options=asked, commits=seconds) for asked, _, seconds in cases)
            )
            assert server.metrics.value("sumix_second_pass_seconds_count") > 5
        return found

    for transcript, (asked, given, seconds) in zip(run(test), cases, strict=True):
        segments = transcript.segments
        expected_texts = library(PCM, seconds, **given)
        assert [segment["text"] for segment in segments] == [text for text, _ in expected_texts], asked
        assert [segment["segment"] for segment in segments] == list(range(len(segments)))
        assert sum(segment["reason"] == "commit" for segment in segments) == len(seconds)
        if asked.get("second_pass"):
            assert [segment["streaming_text"] for segment in segments] == [text for _, text in expected_texts]
            assert all(segment["second_pass"] for segment in segments)
            assert any(segment["streaming_text"] != segment["text"] for segment in segments)
        if asked.get("nbest"):
            assert all(segment["alternatives"][0]["text"] == segment["text"] for segment in segments)
            assert max(len(segment["alternatives"]) for segment in segments) == 3
        if asked:
            (started,) = transcript.events
            assert started["chunk_seconds"] == (0.64 if "chunk" in asked else 0.32)


def test_hotwords_of_one_stream_are_not_its_neighbours():
    async def test():
        async with serving() as (_, port):
            asked = {"beam": 4, "hotwords": {"e f": 10.0}}, {"beam": 4}
            return await asyncio.gather(*(transcribe(uri(port), PCM, RATE, options=one) for one in asked))

    class Spelling(LetterTokenizer):
        unk_id = 0

        def encode(self, text: str) -> list[int]:
            return [ord(letter) - ord("a") + 1 for letter in text if letter != " "]

    LetterTokenizer.unk_id, LetterTokenizer.encode = 0, Spelling.encode
    try:
        boosted, plain = run(test)
    finally:
        del LetterTokenizer.unk_id, LetterTokenizer.encode
    beam = SearchOptions(method="modified_beam", beam=4)
    words = Hotwords((((5, 6), 20.0),), LetterTokenizer.vocab_size)
    assert [one["text"] for one in plain.segments] == [text for text, _ in library(PCM, search=beam)]
    assert [one["text"] for one in boosted.segments] == [text for text, _ in library(PCM, search=beam, hotwords=words)]
    assert boosted.text.count("f") > plain.text.count("f")


def test_stable_words_stay():
    """In greedy search all words but the last; in a beam none that a later message or the final changes."""

    async def test():
        async with serving() as (_, port):
            return [
                await transcribe(uri(port), PCM, RATE, packet_seconds=0.3, options=asked) for asked in ({}, {"beam": 4})
            ]

    greedy, beam = run(test)
    assert all(one["stable"] == len(one["words"]) - 1 for one in greedy.partials)
    for transcript in (greedy, beam):
        finals = {one["segment"]: one for one in transcript.segments}
        for one in transcript.partials:
            stable = [word["text"] for word in one["words"][: one["stable"]]]
            assert stable == [word["text"] for word in finals[one["segment"]]["words"][: one["stable"]]]
    assert any(one["stable"] for one in beam.partials)
    assert any(one["stable"] < len(one["words"]) - 1 for one in beam.partials), "or nothing is shown"


def test_a_commit_is_answered_at_once_and_the_stream_goes_on():
    async def test():
        async with serving() as (_, port), connect(uri(port)) as client:
            assert json.loads(await client.recv())["protocol"] == 2
            await client.send(PCM[:9_000].tobytes())
            await client.send('{"type": "keepalive"}')
            await client.send('{"type": "commit"}')
            await client.send('{"type": "commit"}')
            finals = []
            while len(finals) < 2:
                message = json.loads(await client.recv())
                finals += [message] if message["type"] == "final" else []
            await client.send(PCM[9_000:].tobytes())
            await client.send('{"type": "end"}')
            messages = [json.loads(message) async for message in client]
            assert messages[-1]["type"] == "done"
            return finals + [message for message in messages if message["type"] == "final"]

    first, nothing, *others = run(test)
    assert first["text"] == library(PCM, [9_000 / RATE])[0][0] and first["words"]
    assert nothing["text"] == "" and nothing["reason"] == "commit"
    assert [one["text"] for one in others] == [text for text, _ in library(PCM, [9_000 / RATE])[1:]]


def test_who_pauses_too_long_gets_the_words_first():
    async def test():
        async with serving(idle_seconds=0.6) as (server, port), connect(uri(port)) as client:
            await client.send(PCM[:14_000].tobytes())
            for _ in range(4):
                await asyncio.sleep(0.3)
                await client.send('{"type": "keepalive"}')
            messages = []
            with pytest.raises(ConnectionClosedError):
                while True:
                    messages.append(json.loads(await client.recv()))
            assert client.close_code == 1008
            assert server.metrics.value("sumix_errors_total", code="idle") == 1
            return messages

    *_, final, error = run(test)
    assert (final["type"], final["reason"], error["code"]) == ("final", "idle", "idle")
    assert_final_is(final, PCM[:14_000])


def assert_final_is(final: dict, samples: np.ndarray) -> None:
    (hypothesis,) = expected(samples)
    assert final["text"] == hypothesis.text and final["words"]


def test_speech_begins_and_stops():
    pause = np.concatenate([PCM[: 2 * RATE], np.zeros(4 * RATE, np.int16), PCM[2 * RATE :]])
    options = {"speech_events": True, "endpoint": [0.4, 0.4, 20]}

    async def test():
        async with serving() as (_, port):
            silent = await transcribe(uri(port), pause, RATE)
            return await transcribe(uri(port), pause, RATE, options=options), silent

    transcript, silent = run(test)
    assert silent.events == []
    _, *events = transcript.events
    kinds = [event["type"] for event in events]
    assert kinds and kinds == ["speech_started", "speech_stopped"] * (len(kinds) // 2)
    times = [event["at"] for event in events]
    assert times == sorted(times)
    assert times[0] == transcript.segments[0]["timestamps"][0]


WRONG = {
    "chunk": ["full", "64", 16, "10ms", "41ms", "1h", "9s", None, [], "2600ms"],
    "left_context": [-1, 65, 1.5, "two", True],
    "beam": [0, 9, "4", True, 2.0, None],
    "nbest": [2, 0],
    "lm_scale": [0.5],
    "hotwords": [["a"], "a", 3],
    "endpoint": [True, [1, 2], [1, 2, 3, 4], [0, 1, 2], [1, 1, 61], ["a", 1, 2], [1, 1, float("nan")], None],
    "second_pass": [1, "yes", None],
    "speech_events": [0, "no"],
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_option_names_its_key_and_what_is_allowed(key):
    offer = Offer(make_recognizer())
    for value in WRONG[key]:
        with pytest.raises(Wrong, match=f"^{key}\\b") as fault:
            offer.read({key: value})
        assert len(str(fault.value)) > len(key) + 12
    assert key in offer.keys


@pytest.mark.parametrize("value", [["x" * 101], ["  "], {"a": 11}, {"a": "b"}, [f"w{n}" for n in range(101)], [1]])
def test_hotwords_are_bounded(value):
    with pytest.raises(Wrong, match=r"^hotwords must be a list of at most 100 phrases of at most 100 characters"):
        Offer(make_recognizer()).read({"beam": 2, "hotwords": value})


def test_options_that_are_the_servers_own_change_nothing():
    offer = Offer(make_recognizer())
    assert offer.read({"chunk": "320ms", "left_context": 4}) == StreamOptions()
    assert offer.read({"second_pass": False}).kind == StreamOptions().kind
    assert offer.read({"second_pass": True}).second_pass == SecondPass()


def test_a_wrong_start_ends_the_stream():
    async def test():
        async with serving() as (_, port):
            with pytest.raises(ServerError, match="bad_start: beam must be an integer, 1 to 8") as fault:
                await transcribe(uri(port), PCM, options={"beam": 99})
            assert fault.value.close_code == 1007
            with pytest.raises(ServerError, match="unknown key 'chnk'; known: beam, chunk, endpoint"):
                await transcribe(uri(port), PCM, options={"chnk": "640ms"})
            assert_is(await transcribe(uri(port), PCM), expected(PCM))

    run(test)


def test_commits_that_wait_are_bounded():
    engine = Engine(make_recognizer(), Metrics())
    session = engine.open(RATE, lambda events: None)
    assert all(session.commit() for _ in range(MOST_COMMITS)) and not session.commit()
    session.close()
