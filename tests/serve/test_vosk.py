"""Clients of vosk-server at our port for them, by the messages its documentation describes."""

import asyncio
import json
from collections.abc import Iterable

from foreign_clients import VOSK_CONFIG, VOSK_EOF, vosk_answers
from serving import PCM, RATE, expected, healthy, library, reference, run, serving, spell, until
from talkative import LetterTokenizer
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions
from sumix_stream.serve.protocols.listener import Address
from sumix_stream.serve.protocols.vosk import Vosk


def listener() -> Vosk:
    return Vosk(Address("127.0.0.1", 0))


def client_of(port: int) -> connect:
    return connect(f"ws://127.0.0.1:{port}", proxy=None, max_size=None)


def results(answers: list[dict]) -> list[dict]:
    return [answer for answer in answers if "text" in answer]


def said(answers: list[dict]) -> str:
    """All their text; several segments may be told in one answer."""
    return joined(answer["text"] for answer in answers)


def joined(texts: Iterable[str]) -> str:
    return " ".join(text for text in texts if text)


def test_one_answer_for_each_message_and_all_words_with_times():
    async def test():
        port_of = listener()
        async with serving(listeners=[port_of]) as (server, port):
            asked = [vosk_answers(port_of.address.port, PCM, packet=packet) for packet in (1600, 4000, 16_000)]
            *found, _ = await asyncio.gather(*asked, healthy(port))
            assert server.metrics.value("sumix_streams_opened_total", protocol="vosk") == 3
            return found

    pieces = reference(PCM)
    text = LetterTokenizer().decode([ord(piece[-1]) - ord("a") + 1 for piece in pieces])
    alone = expected(PCM)
    found = run(test)
    for answers, packet in zip(found, (1600, 4000, 16_000), strict=True):
        assert len(answers) == -(-len(PCM) // packet) + 1
        assert all(set(answer) in ({"partial"}, {"text"}, {"text", "result"}) for answer in answers)
        ends = results(answers)
        assert answers[-1] == ends[-1]
        assert "".join(end["text"] for end in ends).replace(" ", "") == text.replace(" ", "")
        assert said(ends) == joined(h.text for h in alone)
        words = [word for end in ends for word in end.get("result", [])]
        assert [word["word"] for word in words] == " ".join(h.text for h in alone).split()
        assert all(0 <= word["start"] <= word["end"] <= len(PCM) / RATE and 0 <= word["conf"] <= 1 for word in words)
    assert any(answer.get("partial") for answer in found[0])  # in packets of a second there may be none


def test_what_a_client_configures(monkeypatch):
    """Words left out, a rate of 8 kHz where none is named, alternatives, phrases as hotwords."""
    spell(monkeypatch)
    short, telephone = PCM[: 2 * RATE], PCM[::2].copy()

    async def test():
        port_of = listener()
        async with serving(listeners=[port_of]) as _:
            theirs = port_of.address.port
            return await asyncio.gather(
                vosk_answers(theirs, short, '{"config": {"sample_rate": 16000.0, "words": 0, "unknown": true}}'),
                vosk_answers(theirs, telephone, None),
                vosk_answers(theirs, short, '{"config": {"sample_rate": 16000, "max_alternatives": 3}}'),
                vosk_answers(theirs, short, '{"config": {"sample_rate": 16000, "phrase_list": ["ac ug", "[unk]"]}}'),
            )

    plain, narrow, alternatives, biased = run(test)
    assert all("result" not in answer for answer in plain)
    assert said(results(narrow)) == joined(hypothesis.text for hypothesis in expected(telephone, 8_000)) != ""
    offered = [answer["alternatives"] for answer in alternatives if "alternatives" in answer]
    beam = SearchOptions(method="modified_beam", beam=4)
    assert all(1 <= len(several) <= 3 for several in offered) and max(map(len, offered)) > 1
    assert said([several[0] for several in offered]) == joined(text for text, _ in library(short, search=beam))
    assert all(
        list(several) == sorted(several, key=lambda one: -one["confidence"])
        and set(several[0]) == {"confidence", "text"}
        for several in offered
    )
    hotwords = Hotwords.compile({"ac ug": None}, LetterTokenizer())
    wanted = joined(text for text, _ in library(short, search=beam, hotwords=hotwords))
    assert said(results(biased)) == wanted != said(results(plain))


def test_a_sender_that_does_not_wait_for_answers_loses_nothing():
    async def test():
        port_of = listener()
        async with serving(listeners=[port_of]), client_of(port_of.address.port) as client:
            await client.send(VOSK_CONFIG)
            for start in range(0, len(PCM), 3200):
                await client.send(PCM[start : start + 3200].tobytes())
            await client.send('{"reset" : 1}')
            await client.send(VOSK_EOF)
            return [json.loads(answer) async for answer in client]

    answers = run(test)
    assert len(answers) == -(-len(PCM) // 3200) + 2 and answers[-1] == {"text": ""}
    assert said(results(answers)) == joined(hypothesis.text for hypothesis in expected(PCM))


FAULTS = {
    "text that is no JSON": (["hello"], "bad_message", 1007),
    "half a JSON": (['{"config": {"sample_rate"'], "bad_message", 1007),
    "JSON that is no message": (["[1, 2]"], "bad_message", 1007),
    "deep JSON": (["[" * 4000], "bad_message", 1007),
    "long JSON": (['{"config": "' + "a" * 20_000 + '"}'], "bad_message", 1007),
    "a config of text": (['{"config": "16000"}'], "bad_config", 1007),
    "a rate of text": (['{"config": {"sample_rate": "16000"}}'], "bad_config", 1007),
    "half a Hertz": (['{"config": {"sample_rate": 8000.5}}'], "bad_config", 1007),
    "an endless rate": (['{"config": {"sample_rate": 1e999}}'], "bad_config", 1007),
    "rate 0": (['{"config": {"sample_rate": 0}}', b"\0\0"], "bad_start", 1007),
    "phrases of numbers": (['{"config": {"phrase_list": [1]}}'], "bad_config", 1007),
    "a phrase of another alphabet": (['{"config": {"phrase_list": ["да"]}}', b"\0\0"], "bad_start", 1007),
    "a config after audio": ([bytes(3200), VOSK_CONFIG], "bad_config", 1007),
    "half a sample": ([VOSK_CONFIG, b"\0\0\0"], "bad_audio", 1007),
    "an Ogg file": ([b"OggS\0" + bytes(100)], "bad_audio", 1007),
    "too much audio": ([VOSK_CONFIG, PCM.tobytes(), PCM.tobytes(), PCM.tobytes(), PCM.tobytes()], "too_long", 1008),
    "silence": ([VOSK_CONFIG], "idle", 1008),
    "silence amid audio": ([VOSK_CONFIG, PCM[:100].tobytes()], "idle", 1008),
    "an oversized message": ([bytes(1 << 21)], None, 1009),
}


async def last_words(port: int, messages: list) -> tuple[str | None, int]:
    """Code of the error and close code."""
    code = None
    async with client_of(port) as client:
        try:
            for message in messages:
                await client.send(message)
            while True:
                received = await asyncio.wait_for(client.recv(), 20)
                assert "Traceback" not in received and ".py" not in received
                code = json.loads(received).get("code")
        except ConnectionClosed:
            return code, client.close_code


def test_faults_are_told_as_json_and_healthy_streams_are_unharmed(monkeypatch):
    spell(monkeypatch)

    async def test():
        port_of = listener()
        async with serving(listeners=[port_of], idle_seconds=2.0, max_seconds=14.0, max_streams=30) as (server, port):
            steady = asyncio.create_task(healthy(port, realtime=True))
            theirs = port_of.address.port
            found = await asyncio.gather(*(last_words(theirs, messages) for messages, _, _ in FAULTS.values()))
            assert dict(zip(FAULTS, found, strict=True)) == {name: (c, close) for name, (_, c, close) in FAULTS.items()}
            await steady
            await until(lambda: server.num_streams == 0)
            assert server.metrics.value("sumix_protocol_streams") == 0

    run(test)


def test_who_pauses_too_long_gets_the_words_that_are_open():
    async def test():
        port_of = listener()
        async with (
            serving(listeners=[port_of], idle_seconds=1.0),
            client_of(port_of.address.port) as client,
        ):
            await client.send(VOSK_CONFIG)
            await client.send(PCM[: RATE // 2].tobytes())
            return [json.loads(await client.recv()) for _ in range(3)]

    answer, last, error = run(test)
    assert "partial" in answer and last["text"] == expected(PCM[: RATE // 2])[0].text != "" and error["code"] == "idle"
