"""Clients that break the rules of OpenAI's API: they hear which, others notice nothing, and nothing of them stays."""

import asyncio
import base64
import contextlib
import gc
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from openai_client import file_of, streamed, transcribed, whole
from serving import PCM, healthy, make_recognizer, run, serving, until
from talkative import sound
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from sumix_stream.serve import http, uploads

BOUNDARY = "xyz"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
PATH = "/v1/audio/transcriptions"


def head(length: int | None, kind: str = FORM, *more: str) -> bytes:
    """Of a request with a body of so many bytes; None = in chunks."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = (f"POST {PATH} HTTP/1.1", "Host: x", f"Content-Type: {kind}", framing, *more, "", "")
    return "\r\n".join(lines).encode()


def field(name: str, value: bytes, *more: str) -> bytes:
    lines = (f"--{BOUNDARY}", f'Content-Disposition: form-data; name="{name}"', *more, "", "")
    return "\r\n".join(lines).encode() + value + b"\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


MODEL = field("model", b"whisper-1")
FILE = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="../a.wav"\r\n\r\n'.encode()
END = f"\r\n--{BOUNDARY}--\r\n".encode()
MANY = field("prompt", b"a") * 300 + END
GOOD = MODEL + FILE + file_of()[1] + END


async def post(port: int, *pieces: bytes, close: bool = False) -> tuple[int, dict]:
    """Status and body of the answer to these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if close:
            writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    assert b"Traceback" not in answer and b".py" not in answer
    if not answer:
        return 0, {}
    lines, _, body = answer.partition(b"\r\n\r\n")
    return int(lines.split()[1]), json.loads(body).get("error", {})


BODIES = {
    "a length that is too great": ([head(1 << 40), b"x" * 1000], 413, "file_too_large"),
    "a file without end, in chunks": (
        [head(None), chunk(MODEL + FILE), *[chunk(bytes(1 << 18))] * 8],
        413,
        "file_too_large",
    ),
    "no form": ([head(5, "application/json"), b"{...}"], 415, None),
    "no boundary": ([head(5, "multipart/form-data"), b"hello"], 400, "bad_form"),
    "a compressed body": ([head(5, FORM, "Content-Encoding: gzip"), b"hello"], 415, None),
    "garbage": ([head(60_000), os.urandom(60_000)], 400, "bad_form"),
    "half a form": ([head(len(GOOD)), GOOD[:3_000]], 408, "upload_timeout"),
    "a header without end": ([head(400_000), f"--{BOUNDARY}\r\nX: ".encode() + b"a" * 399_000], 400, "bad_form"),
    "no file": ([head(len(MODEL + END)), MODEL + END], 400, "missing_file"),
    "a large field": ([head(len(GOOD) + 50_000), field("prompt", b"a" * 49_900)], 400, "bad_form"),
    "many fields": ([head(len(MANY)), MANY], 400, "bad_form"),
    "a field of bytes": ([head(len(GOOD) + 200), field("prompt", b"\xff\xfe") + GOOD], 400, "bad_form"),
    "a form in a form": (
        [head(600), field("x", b"", "Content-Type: multipart/mixed; boundary=abc") + MODEL + END + b" " * 400],
        400,
        "bad_form",
    ),
    "two files": ([head(len(GOOD) * 2), FILE + b"RIFF\r\n" + GOOD], 400, None),
}  # fmt: skip


def test_every_upload_that_is_wrong_has_its_answer_and_leaves_nothing():
    async def test():
        async with serving(idle_seconds=4.0, max_upload_bytes=500_000, max_uploads=64) as (server, port):
            assert (await transcribed(port)).text == whole().text
            await until(lambda: server.num_streams == 0)
            before = len(os.listdir("/proc/self/fd"))
            steady = asyncio.create_task(healthy(port, realtime=True))
            asked = [post(port, *pieces) for pieces, _, _ in BODIES.values()]
            for (name, (_, status, code)), found in zip(BODIES.items(), await asyncio.gather(*asked), strict=True):
                assert (found[0], found[1].get("code")) == (status, code), (name, found)
            await steady
            await until(lambda: server.num_streams == 0 and not server._sockets)
            assert len(os.listdir("/proc/self/fd")) <= before
            assert (await transcribed(port)).text == whole().text

    run(test)


def test_clients_that_go_away_leave_nothing():
    """Amid the form, while it is decoded, while it is recognised, while it is streamed; an end of sending counts."""
    long = file_of((sound(60.0) * 32767).astype(np.int16))[1]
    body, others = MODEL + field("stream", b"true") + FILE + long + END, children()
    request = head(len(body)) + body

    async def leave(port: int, data: bytes, seconds: float | None) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        await writer.drain()
        if seconds is None:
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                assert b"transcript.text.done" not in await asyncio.wait_for(reader.read(), 20)
        else:
            await asyncio.sleep(seconds)
        writer.transport.abort()

    async def test():
        async with serving() as (server, port):
            size = len(request)
            cuts = [
                (100, 0.0),
                (size // 2, 0.1),
                (size, 0.0),
                (size, 0.4),
                (size, 1.0),
                (size // 2, None),
                (size, None),
            ]
            await asyncio.gather(*(leave(port, request[:size], seconds) for size, seconds in cuts))
            await until(lambda: server.num_streams == server.num_sessions == 0)
            await until(lambda: not children() - others)
            await healthy(port)

    run(test)
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is uploads.Spool and not one.closed]


def children() -> set[str]:
    """Processes that this one has, by any of its threads."""
    found: set[str] = set()
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # a thread that has ended
            found |= set(Path(f"/proc/self/task/{thread}/children").read_text().split())
    return found


def test_a_decoder_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(uploads, "_DECODER", ("-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(uploads, "_STALLED_SECONDS", 0.3)
    others = children()

    async def test():
        async with serving() as (server, port):
            status, error = await post(port, head(len(GOOD)), GOOD)
            assert (status, error["code"]) == (400, "invalid_file") and "too long to decode" in error["message"]
            await until(lambda: server.num_streams == 0 and not children() - others)

    run(test)


def test_ten_times_too_many_uploads():
    """Those that are let in get their text, the others are told to come again; live streams go on."""

    async def test():
        async with serving(max_streams=4, max_uploads=2) as (server, port):
            steady = asyncio.create_task(healthy(port, realtime=True))
            await until(lambda: server.num_sessions == 1)
            found = await asyncio.gather(*(post(port, head(len(GOOD)), GOOD) for _ in range(40)))
            statuses = [status for status, _ in found]
            assert statuses.count(200) >= 2 and statuses.count(429) >= 30 and set(statuses) == {200, 429}
            assert {error.get("code") for _, error in found} == {None, "rate_limit_exceeded"}
            await steady
            assert (await transcribed(port)).text == whole().text

    run(test)


def test_who_does_not_read_a_streamed_answer_is_dropped(monkeypatch):
    """Before its buffers are full, and when all of the answer fits into them."""
    monkeypatch.setattr(http, "_LINGER_SECONDS", 0.2)
    body = MODEL + field("stream", b"true") + FILE + file_of()[1] + END

    async def test():
        async with serving(send_buffer=4096, send_seconds=0.5) as (server, port):
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                sock.connect(("127.0.0.1", port))
                sock.setblocking(False)
                _, writer = await asyncio.open_connection(sock=sock)
                writer.transport.pause_reading()
                writer.write(head(len(body)) + body)
                await until(lambda: server.num_sessions == 1)
                await until(lambda: server.num_streams == 0 and not server._sockets)
                writer.transport.abort()
            assert (await streamed(port))[-1].text == whole().text

    run(test)


def test_one_request_a_connection():
    """What follows a request is not looked at, however much it is."""

    async def test():
        async with serving() as (server, port):
            get = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(get * 2_000)
            answer = await reader.read()
            assert answer.count(b"HTTP/1.1 200") == 1 and b"Connection: close" in answer
            writer.close()
            status, _ = await post(port, head(len(GOOD)), GOOD, get * 50)
            assert status == 200
            await until(lambda: not server._sockets)

    run(test)


EVENTS = {
    "half JSON": '{"type": "input_audio_buffer.append", "audio": "AAAA',
    "no object": "[1, 2]",
    "deep JSON": "[" * 10_000,
    "no type": '{"audio": "AAAA"}',
    "another type": '{"type": "response.create"}',
    "a type of another kind": '{"type": ["session.update"]}',
    "bytes": b"\0\0",
    "a commit of nothing": '{"type": "input_audio_buffer.commit"}',
    "no base64": '{"type": "input_audio_buffer.append", "audio": "%%%%"}',
    "base64 that ends early": '{"type": "input_audio_buffer.append", "audio": "AAA"}',
    "audio of another kind": '{"type": "input_audio_buffer.append", "audio": [0, 1]}',
    "more than audio": '{"type": "input_audio_buffer.append", "audio": "AAAA", "x": [0]}',
    "a long event without audio": json.dumps({"type": "session.update", "session": {"x": "a" * 80_000}}),
    "a long event with hardly any": '{"type": "input_audio_buffer.append", "audio": ""' + " " * 99_000 + "}",
    "no session": '{"type": "session.update"}',
    "a session of another kind": '{"type": "session.update", "session": "x"}',
}  # fmt: skip


def test_wrong_events_are_told_and_end_nothing_until_there_are_too_many():
    audio = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(PCM.tobytes()).decode()})

    async def test():
        async with serving(idle_seconds=5.0) as (server, port):
            steady = asyncio.create_task(healthy(port, realtime=True))
            async with connect(f"ws://127.0.0.1:{port}/v1/realtime", max_size=None) as client:
                await client.recv()
                for name, message in EVENTS.items():
                    await client.send(message)
                    told = json.loads(await asyncio.wait_for(client.recv(), 10))
                    assert told["type"] == "error" and told["error"]["type"] == "invalid_request_error", (name, told)
                    assert ".py" not in told["error"]["message"]
                await client.send(audio)
                await client.send('{"type": "input_audio_buffer.commit"}')
                while not json.loads(await asyncio.wait_for(client.recv(), 10))["type"].endswith(".completed"):
                    pass
                with pytest.raises(ConnectionClosed) as closed:
                    for _ in range(40):
                        await client.send("{")
                    while True:
                        await asyncio.wait_for(client.recv(), 10)
                assert closed.value.rcvd.code == 1008
            async with connect(f"ws://127.0.0.1:{port}/v1/realtime", max_size=None) as client:
                with pytest.raises(ConnectionClosed) as closed:
                    await client.send('{"type": "input_audio_buffer.append", "audio": "' + "A" * (2 << 20))
                    while True:
                        await asyncio.wait_for(client.recv(), 10)
                assert closed.value.rcvd.code == 1009
            await steady
            await until(lambda: server.num_streams == server.num_sessions == 0)

    run(test)


def test_a_session_without_audio_or_that_lasts_too_long_is_told_why():
    async def last(port: int, *messages: str) -> tuple[str, int]:
        async with connect(f"ws://127.0.0.1:{port}/v1/realtime") as client:
            for message in messages:
                await client.send(message)
            events = []
            with contextlib.suppress(ConnectionClosed):
                while True:
                    events.append(json.loads(await asyncio.wait_for(client.recv(), 10)))
            return events, client.close_code

    def audio(samples: np.ndarray) -> str:
        data = base64.b64encode(samples.tobytes()).decode()
        return json.dumps({"type": "input_audio_buffer.append", "audio": data})

    async def test():
        async with serving(idle_seconds=0.5, max_seconds=6.0) as (server, port):
            events, code = await last(port)
            assert (events[-1]["error"]["code"], code) == ("idle", 1008)
            events, code = await last(port, audio(PCM[:40_000]))
            kinds = [event["type"].rpartition(".")[2] for event in events]
            assert "completed" in kinds and (events[-1]["error"]["code"], code) == ("idle", 1008)
            events, code = await last(port, *[audio(PCM)] * 4)
            assert (events[-1]["error"]["code"], code) == ("too_long", 1008)
            await until(lambda: server.num_streams == server.num_sessions == 0)

    run(test)


def test_a_session_that_fails_is_told_in_openais_form():
    recognizer = make_recognizer()

    def fails(streams):
        raise RuntimeError("secret detail")

    async def test():
        async with serving(recognizer) as (_, port):
            recognizer.decode = fails
            status, error = await post(port, head(len(GOOD)), GOOD)
            assert (status, error["type"], error["code"]) == (500, "server_error", "internal")
            assert "secret" not in error["message"]
            async with connect(f"ws://127.0.0.1:{port}/v1/realtime") as client:
                data = base64.b64encode(PCM.tobytes()).decode()
                await client.send(json.dumps({"type": "input_audio_buffer.append", "audio": data}))
                events = []
                with contextlib.suppress(ConnectionClosed):
                    while True:
                        events.append(json.loads(await asyncio.wait_for(client.recv(), 10)))
                assert (events[-1]["error"]["type"], client.close_code) == ("server_error", 1011)

    run(test)
