"""The client of PyPI's wyoming at our port for it, unmodified, and clients that break the rules."""

import asyncio
import contextlib
import json

import numpy as np
from foreign_clients import wyoming_events, wyoming_transcript
from serving import PCM, RATE, expected, healthy, library, make_recognizer, reference, run, serving, spell, until
from talkative import LetterTokenizer, sound, talkative_model
from wyoming.asr import Transcribe
from wyoming.audio import AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions
from sumix_stream.serve.protocols.listener import Address
from sumix_stream.serve.protocols.wyoming import Wyoming
from sumix_stream.streaming.recognizer import Recognizer


def listener() -> Wyoming:
    return Wyoming(Address("127.0.0.1", 0), "talkative", ["en", "de-CH"])


def client_of(listening: Wyoming) -> AsyncTcpClient:
    return AsyncTcpClient("127.0.0.1", listening.address.port, read_timeout=30)


def joined(texts: list[str]) -> str:
    return " ".join(text for text in texts if text)


ALONE = joined([hypothesis.text for hypothesis in expected(PCM)])


def test_home_assistants_way():
    """Describe, ping and several utterances on one connection, in every form of audio, beside a stream of our own."""
    telephone, stereo = PCM[::2].copy(), np.stack([PCM, PCM], 1)

    async def test():
        listening = listener()
        async with serving(listeners=[listening]) as (server, port), client_of(listening) as client:
            await client.write_event(Describe().event())
            info = Info.from_event(await client.read_event())
            await client.write_event(Ping("here?").event())
            assert Pong.from_event(await client.read_event()).text == "here?"
            assert server.num_streams == 0, "only an utterance has a place"
            await client.write_event(Transcribe(name="talkative", language="de").event())
            first, _ = await asyncio.gather(wyoming_events(client, PCM), healthy(port))
            await until(lambda: server.num_streams == 0)
            wide = await wyoming_events(client, PCM.astype(np.int32) << 16, packet=333)
            await client.write_event(Event("something-new", {"x": 1}, b"123"))
            both, narrow = (
                await wyoming_events(client, stereo, packet=2047),
                await wyoming_events(client, telephone, 8_000),
            )
            silent = await wyoming_events(client, np.zeros(0, np.int16))
            assert server.metrics.value("sumix_streams_opened_total", protocol="wyoming") == 5
            return info, first, [wide, both, narrow, silent]

    info, first, others = run(test)
    (program,) = info.asr
    assert program.supports_transcript_streaming and program.installed
    assert [(model.name, model.languages) for model in program.models] == [("talkative", ["en", "de-CH"])]
    assert len(first) > 5, "text came in chunks"
    narrow = joined([hypothesis.text for hypothesis in expected(telephone, 8_000)])
    assert [wyoming_transcript(events) for events in (first, *others)] == [ALONE, ALONE, ALONE, narrow, ""]
    assert ALONE.replace(" ", "") == "".join(reference(PCM)).replace("▁", "") != ""


def test_channels_are_averaged():
    left, right = ((8000 * sound(2.0, seed=seed)).astype(np.int16) for seed in (1, 2))

    async def test():
        listening = listener()
        async with serving(listeners=[listening]), client_of(listening) as client:
            return await wyoming_events(client, np.stack([left, right], 1))

    mean = ((left.astype(np.float64) + right) / 65536).astype(np.float32)
    assert wyoming_transcript(run(test)) == joined([hypothesis.text for hypothesis in expected(mean)]) != ""


def test_names_and_terms_are_hotwords_of_one_utterance(monkeypatch):
    spell(monkeypatch)
    short = PCM[: 2 * RATE]

    async def test():
        listening = listener()
        async with serving(listeners=[listening]), client_of(listening) as client:
            wishes = Transcribe(transcript_names=["ac ug", "Жук"], transcript_terms=["kkk"])
            await client.write_event(wishes.event())
            return await wyoming_events(client, short), await wyoming_events(client, short)

    biased, plain = run(test)
    hotwords = Hotwords.compile({"ac ug": None, "kkk": None}, LetterTokenizer())
    beam = SearchOptions(method="modified_beam", beam=4)
    assert wyoming_transcript(biased) == joined([text for text, _ in library(short, search=beam, hotwords=hotwords)])
    assert wyoming_transcript(plain) == joined([hypothesis.text for hypothesis in expected(short)])


def test_chunks_never_tell_what_a_second_pass_may_replace():
    async def test():
        model, listening = Recognizer(talkative_model(), LetterTokenizer()), listener()
        recognizer = model.streaming(8, 4, endpointing=make_recognizer().endpointing, second_pass=True)
        async with serving(recognizer, listeners=[listening]), client_of(listening) as client:
            return await wyoming_events(client, PCM)

    assert wyoming_transcript(run(test)) == joined([text for text, _ in library(PCM, second_pass=True)]) != ALONE


def line(kind: str, data: dict | None = None, payload: bytes = b"", **more: object) -> bytes:
    head = {"type": kind, "data": data or {}, **({"payload_length": len(payload)} if payload else {}), **more}
    return json.dumps(head).encode() + b"\n" + payload


FORM = {"rate": RATE, "width": 2, "channels": 1}
START = line("audio-start", FORM)
FAULTS = {
    "bytes": (b"\xff\xfe\x00garbage\n", "bad_message"),
    "half JSON": (b'{"type": "describe"\n', "bad_message"),
    "a list": (b"[1]\n", "bad_message"),
    "deep JSON": (b"[" * 9000 + b"\n", "bad_message"),
    "no type": (b"{}\n", "bad_message"),
    "a type of numbers": (b'{"type": 3}\n', "bad_message"),
    "data of text": (b'{"type": "ping", "data": "x"}\n', "bad_message"),
    "a line without end": (b"a" * 200_000, "bad_message"),
    "endless data": (b'{"type": "ping", "data_length": 10000000000}\n', "bad_message"),
    "an endless payload": (b'{"type": "audio-chunk", "payload_length": 10000000000}\n', "bad_message"),
    "less than no payload": (b'{"type": "audio-chunk", "payload_length": -1}\n', "bad_message"),
    "a payload of half a byte": (b'{"type": "audio-chunk", "payload_length": 0.5}\n', "bad_message"),
    "data that is no JSON": (b'{"type": "ping", "data_length": 3}\nabc', "bad_message"),
    "a chunk first": (line("audio-chunk", FORM, bytes(64)), "bad_order"),
    "a stop first": (line("audio-stop"), "bad_order"),
    "two starts": (START + START, "bad_order"),
    "no form": (line("audio-start"), "bad_audio"),
    "8-bit samples": (line("audio-start", FORM | {"width": 1}), "bad_audio"),
    "six channels": (line("audio-start", FORM | {"channels": 6}), "bad_audio"),
    "a rate of text": (line("audio-start", FORM | {"rate": "16000"}), "bad_start"),
    "another rate amid it": (START + line("audio-chunk", FORM | {"rate": 8000}, bytes(64)), "bad_audio"),
    "half a sample": (START + line("audio-chunk", FORM, bytes(65)), "bad_audio"),
    "a FLAC file": (START + line("audio-chunk", FORM, b"fLaC" + bytes(60)), "bad_audio"),
    "too much audio": (START + 4 * line("audio-chunk", FORM, PCM.tobytes()), "too_long"),
    "another model": (line("transcribe", {"name": "large"}), "bad_model"),
    "another language": (line("transcribe", {"language": "fr"}), "bad_language"),
    "nothing": (b"", "idle"),
    "half an event": (b'{"type": "desc', "idle"),
    "silence": (START + line("audio-chunk", FORM, PCM[:100].tobytes()), "idle"),
    "half a payload": (START + line("audio-chunk", FORM, payload_length=1000) + bytes(10), "idle"),
}


async def last_words(port: int, sent: bytes) -> str | None:
    """Code of the error, as the client of PyPI reads it; then there is nothing more."""
    client = AsyncTcpClient("127.0.0.1", port, read_timeout=20)
    async with client:
        client._writer.write(sent)
        code = None
        while (event := await client.read_event()) is not None:
            assert code is None and "Traceback" not in str(event)
            if Error.is_type(event.type):
                code = Error.from_event(event).code
        return code


def test_each_fault_is_one_error_event_and_healthy_streams_are_unharmed():
    async def test():
        listening = listener()
        limits = {"idle_seconds": 2.0, "max_seconds": 14.0, "max_streams": 40}
        async with serving(listeners=[listening], **limits) as (server, port):
            steady = asyncio.create_task(healthy(port, realtime=True))
            found = await asyncio.gather(*(last_words(listening.address.port, sent) for sent, _ in FAULTS.values()))
            assert dict(zip(FAULTS, found, strict=True)) == {name: code for name, (_, code) in FAULTS.items()}
            await steady
            await until(lambda: server.num_streams == 0 and server.metrics.value("sumix_connections") == 0)

    run(test)


def test_who_finds_no_place_hears_why_and_places_come_back():
    async def test():
        listening = listener()
        async with serving(listeners=[listening], max_streams=1) as (server, port):
            async with client_of(listening) as first, client_of(listening) as second:
                await first.write_event(AudioStart(**FORM).event())
                await until(lambda: server.num_streams == 1)
                (error,) = await wyoming_events(second, PCM[:1000])
                assert Error.from_event(error).code == "full"
                await first.write_event(AudioStop().event())
                await until(lambda: server.num_streams == 0)
                first._writer.transport.abort()
            async with client_of(listening) as third:
                await third.write_event(AudioStart(**FORM).event())
                await until(lambda: server.num_streams == 1)
                third._writer.transport.abort()  # gone amid an utterance
            await until(lambda: server.num_streams == 0)
            assert server.metrics.value("sumix_protocol_streams") == 0
            await healthy(port)

    run(test)


def test_who_ends_sending_after_the_last_event_gets_the_transcript():
    """Amid an utterance it is a hang-up."""

    async def test():
        listening = listener()
        async with serving(listeners=[listening]) as (server, _):
            chunk = line("audio-chunk", FORM, PCM.tobytes())
            async with client_of(listening) as client:
                client._writer.write(START + chunk + line("audio-stop"))
                client._writer.write_eof()
                events = []
                while (event := await client.read_event()) is not None:
                    events.append(event)
            async with client_of(listening) as client:
                client._writer.write(START + chunk)
                client._writer.write_eof()
                while (event := await client.read_event()) is not None:
                    assert event.type != "transcript"
            await until(lambda: server.num_streams == 0)
            return events

    assert wyoming_transcript(run(test)) == ALONE


def test_floods_and_slow_readers_stay_bounded():
    """Pings without end, some of whose senders never read an answer, and a crowd that says nothing."""

    async def flood(port: int, reads: bool) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2048)
        if not reads:
            writer.transport.pause_reading()
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(line("ping", {"text": "x" * 400}) * 100)
                await writer.drain()
                if reads:
                    await reader.read(1 << 16)
                await asyncio.sleep(0)

    async def test():
        listening = listener()
        limits = {"send_seconds": 0.5, "max_waiting": 20, "frames_per_second": 400}
        async with serving(listeners=[listening], **limits) as (server, port):
            floods = [asyncio.create_task(flood(listening.address.port, reads)) for reads in (True, False)]
            crowd = [await asyncio.open_connection("127.0.0.1", listening.address.port) for _ in range(40)]
            await healthy(port, realtime=True)
            assert server.metrics.value("sumix_connections") <= 21
            assert server.metrics.value("sumix_refused_total", reason="crowd") >= 20
            for task in floods:
                task.cancel()
            await asyncio.gather(*floods, return_exceptions=True)
            for _, writer in crowd:
                writer.transport.abort()

    run(test)


def test_a_server_that_is_shut_down_says_so():
    async def test():
        listening = listener()
        async with serving(listeners=[listening], drain_seconds=0.3) as (server, _):
            async with client_of(listening) as client, client_of(listening):
                await client.write_event(AudioStart(**FORM).event())
                await until(lambda: server.num_streams == 1)
                stopping = asyncio.create_task(server.stop())
                await until(lambda: server.draining)
                async with client_of(listening) as late:
                    (error,) = await wyoming_events(late, PCM[:100])
                    assert Error.from_event(error).code == "draining"
                assert Error.from_event(await client.read_event()).code == "going_away"
                await stopping
            server.stop = lambda: asyncio.sleep(0)  # it has been

    run(test)
