"""Clients that break the rules: they hear which, the others notice nothing, and nothing of them stays."""

import asyncio
import contextlib
import gc
import json
import os
import socket
import struct
import time
from itertools import pairwise

import numpy as np
import pytest
from serving import PCM, RATE, assert_is, expected, healthy, make_recognizer, run, serving, until, uri
from talkative import sound
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sumix_stream.serve.client import ServerError, transcribe
from sumix_stream.serve.engine import Session
from sumix_stream.serve.limits import Limits
from sumix_stream.serve.protocols.listener import Address
from sumix_stream.serve.protocols.sherpa import Sherpa
from sumix_stream.streaming.stream import Stream

END = '{"type": "end"}'
START_F32 = '{"type": "start", "format": "f32le"}'


async def last_words(port: int, *messages: str | bytes, wait: float = 0.0) -> tuple[str | None, int | None]:
    """Say something and hear it out: (code of the error message, close code)."""
    code = None
    async with connect(uri(port), compression=None, max_size=None) as client:
        try:
            for message in messages:
                await client.send(message)
            while True:
                received = await asyncio.wait_for(client.recv(), 20)
                assert "Traceback" not in received and ".py" not in received
                content = json.loads(received)
                code = content["code"] if content["type"] == "error" else code
        except ConnectionClosed:
            return code, client.close_code


FAULTS = {
    "text that is no JSON": (["hello"], "bad_message", 1007),
    "JSON that is no message": (["[1, 2]"], "bad_message", 1007),
    "an unknown type": (['{"type": "shutdown"}'], "bad_message", 1007),
    "deep JSON": (["[" * 4000], "bad_message", 1007),
    "long JSON": (['{"type": "end", "x": "' + "a" * 20_000 + '"}'], "bad_message", 1007),
    "a beam without end": (['{"type": "start", "beam": 100000}'], "bad_start", 1007),
    "a chunk of nothing": (['{"type": "start", "chunk": "0ms"}'], "bad_start", 1007),
    "a context without end": (['{"type": "start", "left_context": 1e9}'], "bad_start", 1007),
    "long hotwords": (['{"type": "start", "beam": 2, "hotwords": ["' + "a" * 9_000 + '"]}'], "bad_start", 1007),
    "an unknown key": (['{"type": "start", "rate": 8000}'], "bad_start", 1007),
    "rate 0": (['{"type": "start", "sample_rate": 0}'], "bad_start", 1007),
    "a rate of text": (['{"type": "start", "sample_rate": "16000"}'], "bad_start", 1007),
    "a rate of a billion": (['{"type": "start", "sample_rate": 1000000000}'], "bad_start", 1007),
    "a rate that is true": (['{"type": "start", "sample_rate": true}'], "bad_start", 1007),
    "a rate without a common factor": (['{"type": "start", "sample_rate": 8010}'], "bad_start", 1007),
    "an unknown format": (['{"type": "start", "format": "mp3"}'], "bad_start", 1007),
    "a format of another type": (['{"type": "start", "format": ["s16le"]}'], "bad_start", 1007),
    "start twice": (['{"type": "start"}', '{"type": "start"}'], "bad_start", 1007),
    "start after audio": ([PCM.tobytes(), '{"type": "start"}'], "bad_start", 1007),
    "half a sample": ([b"\0\0\0"], "bad_audio", 1007),
    "half a float": ([START_F32, b"\0" * 6], "bad_audio", 1007),
    "NaN": ([START_F32, np.array([0.0, np.nan], "<f4").tobytes()], "bad_audio", 1007),
    "infinity": ([START_F32, np.full(9000, np.inf, "<f4").tobytes()], "bad_audio", 1007),
    "garbage as floats": ([START_F32, os.urandom(40_000)], "bad_audio", 1007),
    "unscaled integers": ([START_F32, np.full(100, 12_000.0, "<f4").tobytes()], "bad_audio", 1007),
    "an oversized message": ([b"\0" * (1 << 20) + b"\0\0"], None, 1009),
    "too much audio": ([PCM.tobytes()] * 4, "too_long", 1008),
    "silence on the wire": ([PCM[:100].tobytes()], "idle", 1008),
    "nothing at all": ([], "idle", 1008),
    "empty messages": ([b""] * 50, "idle", 1008),
}


def test_every_fault_has_its_code_and_a_healthy_stream_beside_it_is_exact():
    """All faults at once, and a stream in real time that goes through them."""

    async def test():
        async with serving(idle_seconds=1.0, max_seconds=14.0) as (server, port):
            steady = asyncio.create_task(healthy(port, realtime=True))
            found = await asyncio.gather(*(last_words(port, *messages) for messages, _, _ in FAULTS.values()))
            assert dict(zip(FAULTS, found, strict=True)) == {name: (c, close) for name, (_, c, close) in FAULTS.items()}
            await steady
            assert server.metrics.value("sumix_errors_total", code="too_big") == 1
            assert server.metrics.value("sumix_errors_total", code="idle") == 3
            await healthy(port)

    run(test)


def test_commits_without_end_hold_nobody_up():
    """Each asks for a second pass; those of others are served meanwhile."""

    async def test():
        async with serving() as (_, port):
            async with connect(uri(port)) as client:
                await client.send('{"type": "start", "second_pass": true}')
                await client.send(PCM[:RATE].tobytes())
                for _ in range(400):
                    await client.send(b"\0\0")
                    await client.send('{"type": "commit"}')
                await healthy(port, options={"second_pass": False})
                last = [json.loads(message) async for message in Patient(client)][-1]
                assert (last["type"], last["code"]) == ("error", "bad_message")

    run(test)


def test_a_stream_may_only_last_so_long():
    async def test():
        async with serving(max_seconds=0.8) as (_, port), connect(uri(port)) as client:

            async def whisper() -> None:
                while True:
                    await client.send(b"\0\0")
                    await asyncio.sleep(0.05)

            whispering = asyncio.create_task(whisper())
            messages = [json.loads(message) async for message in Patient(client)]
            whispering.cancel()
            assert (messages[-1]["code"], client.close_code) == ("too_long", 1008)

    run(test)


class Patient:
    """Messages of a connection until it is closed with any code."""

    def __init__(self, client) -> None:
        self.client = client

    def __aiter__(self):
        return self

    async def __anext__(self) -> str:
        try:
            return await self.client.recv()
        except ConnectionClosed:
            raise StopAsyncIteration from None


def test_ten_times_too_many_connections():
    """Those that are let in get their results; the others get 503 and the reason; then there is room again."""

    async def test():
        async with serving(max_streams=4) as (server, port):
            clients = [transcribe(uri(port), PCM, realtime=True) for _ in range(40)]
            results = await asyncio.gather(*clients, return_exceptions=True)
            served = [result for result in results if not isinstance(result, Exception)]
            refused = [result for result in results if isinstance(result, InvalidStatus)]
            assert (len(served), len(refused)) == (4, 36)
            for transcript in served:
                assert_is(transcript, expected(PCM))
            for refusal in refused:
                response = refusal.response
                assert (response.status_code, response.headers["Retry-After"]) == (503, "2")
                assert response.body.startswith(b"full: all 4 streams are taken")
            assert server.metrics.value("sumix_refused_total", reason="full") == 36
            await until(lambda: server.num_streams == 0)
            await healthy(port)

    run(test)


def test_a_crowd_waits_and_is_taken_a_few_at_a_time():
    async def test():
        async with serving() as (server, port):
            crowd = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(100)]  # the loop stands
            assert not server._sockets
            numbers = [0]
            while numbers[-1] < len(crowd):
                await asyncio.sleep(0)
                numbers.append(len(server._sockets))
            assert max(after - before for before, after in pairwise(numbers)) <= 4
            for one in crowd:
                one.close()

    run(test)


def test_half_open_connections_take_no_stream_and_are_closed():
    async def test():
        async with serving(max_streams=2, handshake_seconds=0.5) as (server, port):
            opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
            for n, (_, writer) in enumerate(opened):
                writer.write(
                    (b"", b"GET /stream HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01" * 20, b"POST / HTTP/1.1\r\n\r\n")[
                        n % 4
                    ]
                )
            assert server.num_streams == 0
            await healthy(port)
            answers = await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in opened)), 10)
            assert not any(b"Traceback" in answer or b".py" in answer for answer in answers)
            for _, writer in opened:
                writer.close()

    run(test)


def test_half_open_connections_do_not_hold_up_the_end():
    async def test():
        async with serving(handshake_seconds=1000.0) as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await healthy(port)
            await server.stop()
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            server.stop = lambda: asyncio.sleep(0)  # it has stopped

    run(test)


def test_disconnects_at_any_moment():
    """In the handshake, amid a message, amid a frame's header, after the end, before the results: all are forgotten."""

    def request(port: int) -> bytes:
        lines = ("GET /stream HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade",
                 "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "", "")  # fmt: skip
        return "\r\n".join(lines).encode()

    def frame(payload: bytes) -> bytes:
        return b"\x82" + bytes([0x80 | 127]) + struct.pack(">Q", len(payload)) + b"\0\0\0\0" + payload

    async def leave(port: int, data: bytes, abruptly: bool) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0.05)
        if abruptly:  # RST instead of FIN
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    async def test():
        async with serving() as (server, port):
            steady = asyncio.create_task(healthy(port, realtime=True))
            audio = frame(PCM.tobytes())
            end = b"\x81" + bytes([0x80 | len(END)]) + b"\0\0\0\0" + END.encode()
            everything = request(port) + audio * 3 + end
            cuts = [10, len(request(port)), len(request(port)) + 1, len(request(port)) + 9_999,
                    len(request(port) + audio) + 3, len(everything) - 5, len(everything)]  # fmt: skip
            garbage = [request(port) + os.urandom(500), request(port) + b"\xff" * 50, request(port) + b"\x82\x05hello"]
            departures = [everything[:cut] for cut in cuts] + garbage
            await asyncio.gather(*(leave(port, data, bool(n % 2)) for n, data in enumerate(departures * 2)))
            await steady
            await until(lambda: server.num_streams == server.num_sessions == 0)

    run(test)


def test_a_slow_reader_is_dropped():
    """It asks for results and never reads: when its buffers are full the server waits so long and no longer."""

    async def test():
        recognizer = make_recognizer(endpoint=0.3)
        async with serving(recognizer, send_buffer=4096, send_seconds=0.5) as (server, port):
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                sock.connect(("127.0.0.1", port))
                sock.setblocking(False)
                options = {"max_queue": 1, "ping_interval": None, "close_timeout": 0.1, "max_size": None}
                async with connect(uri(port), sock=sock, compression=None, **options) as client:
                    client.transport.pause_reading()
                    steady = asyncio.create_task(healthy_segments(port))
                    for _ in range(60):
                        try:
                            await client.send(sound(10.0).tobytes()[: 1 << 20])
                        except ConnectionClosed:
                            break
                        if server.metrics.value("sumix_errors_total", code="slow_reader"):
                            break
                        await asyncio.sleep(0.05)
                    await until(lambda: server.metrics.value("sumix_errors_total", code="slow_reader") == 1)
                    await steady
                    client.transport.abort()
            await until(lambda: server.num_streams == server.num_sessions == 0)

    async def healthy_segments(port: int) -> None:
        assert_is(await transcribe(uri(port), PCM), expected(PCM, endpoint=0.3))

    run(test)


def test_a_stream_that_makes_the_model_fail_ends_alone():
    """The batch with it is tried again stream by stream; its client hears of no detail."""

    async def test():
        recognizer = make_recognizer()
        decode = recognizer.decode

        def sometimes(streams):
            if any(stream.features.sample_rate == 8_000 for stream in streams):
                raise RuntimeError("secret detail: device lost")
            return decode(streams)

        recognizer.decode = sometimes
        async with serving(recognizer) as (server, port):
            others = [asyncio.create_task(healthy(port, realtime=True)) for _ in range(3)]
            await until(lambda: server.num_sessions == 3)
            async with connect(uri(port)) as client:
                await client.send('{"type": "start", "sample_rate": 8000}')
                await client.send(PCM.tobytes())
                messages = [json.loads(message) async for message in Patient(client)]
            await asyncio.gather(*others)
            assert server.metrics.value("sumix_errors_total", code="internal") == 1
            return messages

    messages = run(test)
    assert (messages[-1]["type"], messages[-1]["code"]) == ("error", "internal")
    assert "secret" not in json.dumps(messages)


@pytest.mark.parametrize("limits", [{"max_streams": 0}, {"max_streams": 1.5}, {"idle_seconds": float("inf")}])
def test_impossible_limits_are_refused(limits):
    with pytest.raises(ValueError, match=next(iter(limits))):
        Limits(**limits)


def test_memory_returns():
    """After a hundred clients, honest and not, the server keeps nothing of them."""

    async def test():
        async with serving() as (server, port):
            for _ in range(4):
                good = [transcribe(uri(port), PCM[:RATE]) for _ in range(13)]
                bad = [last_words(port, "hello"), last_words(port, PCM.tobytes(), b"\0")]
                gone = [vanish(port) for _ in range(10)]
                await asyncio.gather(*good, *bad, *gone)
            await until(lambda: server.num_streams == server.num_sessions == 0)
            await until(lambda: not kept())

    async def vanish(port: int) -> None:
        client = await connect(uri(port))
        await client.send(PCM.tobytes())
        client.transport.abort()

    def kept() -> list:
        gc.collect()
        return [one for one in gc.get_objects() if type(one) in (Stream, Session)]

    assert not kept(), "left over from other tests"
    run(test)


def test_server_error_names_the_code():
    assert str(ServerError("idle", "no audio", 1008)) == "idle: no audio"


def test_a_connection_reset_right_behind_its_request_keeps_no_place():
    """The request is answered by a task: when that comes to it, the connection may be over already."""
    request = b"".join(
        [
            b"GET /stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        ]
    )

    def ask_and_reset(port: int) -> None:
        for n in range(200):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(request)
                time.sleep(n % 20 * 3e-5)

    async def test():
        listening = Sherpa(Address("127.0.0.1", 0))
        async with serving(max_streams=8, listeners=[listening]) as (server, port):
            await asyncio.gather(*(asyncio.to_thread(ask_and_reset, to) for to in (port, listening.address.port)))
            await until(lambda: server.metrics.value("sumix_connections") == 0)
            await until(lambda: server.num_streams == server.num_sessions == 0)
            await healthy(port)

    run(test)
