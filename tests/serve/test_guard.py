"""What a connection costs is bounded, whatever it sends: before it is let in, in frames, in replies nobody reads."""

import asyncio
import base64
import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import ROOT
from serving import PCM, RATE, expected, healthy, make_recognizer, run, serving, until, uri
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.frames import Frame, Opcode
from wyoming.audio import AudioStart
from wyoming.event import async_write_event

from sumix_stream.serve.client import ServerError, transcribe
from sumix_stream.serve.departures import has_ended_sending
from sumix_stream.serve.guard import FrameBudget, GuardedConnection
from sumix_stream.serve.limits import Limits
from sumix_stream.serve.protocols.listener import Address, Connected
from sumix_stream.serve.protocols.sherpa import Sherpa
from sumix_stream.serve.protocols.vosk import Vosk
from sumix_stream.serve.protocols.wyoming import Wyoming
from sumix_stream.serve.reading import Client
from sumix_stream.serve.server import Server
from sumix_stream.serve.sniffing import compressed

EMPTY = {"ping": b"\x89\x80", "pong": b"\x8a\x80", "message": b"\x82\x80", "fragment": b"\x00\x80"}
REQUEST = (
    "GET /stream HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("seed", range(4))
def test_frames_are_counted_whatever_the_pieces(seed):
    """Cut at frames' borders only, all bytes in order, no more frames than were paid for."""
    rng, clock = random.Random(seed), Clock()
    sizes = rng.choices((0, 1, 63, 64, 125, 126, 127, 65_535, 65_536, 70_000), k=300)
    kinds = (Opcode.BINARY, Opcode.TEXT)
    frames = [Frame(rng.choice(kinds), bytes(size)).serialize(mask=rng.random() < 0.9) for size in sizes]
    cost = sum(1 if len(frame) >= 64 and frame[0] == 0x82 else 4 for frame in frames)
    data, ends = b"".join(frames), {0}
    for frame in frames:
        ends.add(max(ends) + len(frame))
    budget = FrameBudget(50, clock)
    place, waits = 0, 0
    while place < len(data):
        piece = data[place : place + rng.choice((1, 2, 3, 7, 90, 5_000, 300_000))]
        taken = budget.take(piece)
        assert taken == len(piece) or place + taken in ends, "a frame was cut"
        place += taken
        if taken < len(piece):
            waits += 1
            clock.now += 0.5
    assert waits * 25 + 50 + 4 >= cost > 0 and abs(waits - (cost - 50) / 25) <= 0.2 * waits + 2


def test_a_budget_that_is_spent_fills_again():
    clock = Clock()
    budget = FrameBudget(100, clock)
    tiny, large = b"\x89\x80" + bytes(4), Frame(Opcode.BINARY, bytes(640)).serialize(mask=True)
    assert budget.take(tiny * 1000) == 25 * len(tiny) and budget.take(tiny * 1000) == 0
    clock.now = 0.5
    assert budget.take(large * 1000) == 50 * len(large)
    clock.now = 1000.0
    assert budget.take(large * 1000) == 100 * len(large), "no more than a second's"


async def attacker(
    port: int, behind: bytes = b"", path: str = "/stream"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST.format(port).replace("/stream", path).encode() + behind)
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


def test_empty_frames_are_read_no_faster_than_a_few_hundred_a_second(monkeypatch):
    """Of every kind, on a connection each: what waits does so with the sender, and a stream beside them is exact."""
    seen = []
    parse = Frame.parse.__func__

    def counted(cls, *arguments, **options):
        frame = yield from parse(cls, *arguments, **options)
        seen.append(frame)
        return frame

    monkeypatch.setattr(Frame, "parse", classmethod(counted))

    async def test():
        async with serving(frames_per_second=100, drain_seconds=0.1) as (server, port):
            writers = [(await attacker(port))[1] for _ in EMPTY]
            for (kind, head), writer in zip(EMPTY.items(), writers, strict=True):
                begin = b"\x02\x80" + bytes(4) if kind == "fragment" else b""
                writer.write(begin + (head + bytes(4)) * 400_000)  # 2.4 MB
            hostile = [front.transport.get_protocol() for front in server._sockets]
            await healthy(port)
            assert all(0 < len(connection._held) <= 512 * 1024 for connection in hostile)
            for writer in writers:
                leave(writer, "RST")  # it is noticed though nobody reads
            await until(lambda: server.num_streams == 0)

    began = time.monotonic()
    run(test)
    seconds = time.monotonic() - began
    others = 60  # of the healthy client, whose messages may take the same way
    assert 4 * 25 <= len(seen) <= 4 * (25 + 1 + 25 * seconds) + others


def test_who_pings_and_does_not_read_is_dropped_and_gets_few_pongs():
    async def test():
        async with serving(send_buffer=4096, send_seconds=0.5) as (server, port):
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                sock.connect(("127.0.0.1", port))
                sock.setblocking(False)
                reader, writer = await asyncio.open_connection(sock=sock)
                writer.write(REQUEST.format(port).encode())
                assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
                writer.transport.pause_reading()
                (connection,) = server._sockets
                sizes = []
                ping = b"\x89\xfd" + bytes(4 + 125)
                for _ in range(200):
                    writer.write(ping * 200)
                    await asyncio.sleep(0.02)
                    sizes.append(connection.transport.get_write_buffer_size())
                    if not server._sockets:
                        break
                assert server.metrics.value("sumix_errors_total", code="slow_reader") == 1
                assert 30_000 < max(sizes) < 300_000
                writer.transport.abort()
            await healthy(port)

    run(test)


def test_a_request_has_only_so_many_bytes():
    """Whole or not, at once or in pieces; before that nobody is asked for a token."""

    async def ask(port: int, *pieces: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        with_answer = b""
        try:
            with_answer = await asyncio.wait_for(reader.read(), 5)
        except ConnectionResetError:
            pass
        writer.close()
        return with_answer

    async def test():
        async with serving(token="s3cret", max_request_bytes=4096) as (server, port):
            line = b"X-Y: " + b"a" * 1000 + b"\r\n"
            many = b"GET /health HTTP/1.1\r\nHost: x\r\n" + line * 5
            for pieces in ([many + b"\r\n"], [many], [bytes([byte]) for byte in many]):
                answer = await ask(port, *pieces)
                assert answer.startswith(b"HTTP/1.1 431 ") or not answer
            few = b"GET /health HTTP/1.1\r\nHost: x\r\n" + line * 2 + b"\r\n"
            assert (await ask(port, *(bytes([byte]) for byte in few))).startswith(b"HTTP/1.1 200 ")
            assert (await ask(port, few + bytes(100_000))).startswith(b"HTTP/1.1 200 "), "what follows is not looked at"
            assert server.metrics.value("sumix_refused_total", reason="request_size") == 3

    run(test)


def test_what_comes_with_the_request_waits_for_the_grant():
    """Audio, and the end, in one packet with the request."""

    async def test():
        async with serving(send_seconds=0.3) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            audio, end = Frame(Opcode.BINARY, PCM.tobytes()), Frame(Opcode.TEXT, b'{"type":"end"}')
            frames = b"".join(frame.serialize(mask=True) for frame in (audio, end))
            writer.write(REQUEST.format(port).encode() + frames)
            answer = await asyncio.wait_for(reader.read(), 20)
            assert b'"done"' in answer and expected(PCM)[-1].text.encode() in answer
            writer.close()

    run(test)


def test_of_too_many_connections_that_say_nothing_the_oldest_goes():
    async def test():
        async with serving(max_waiting=8, handshake_seconds=1000.0) as (server, port):
            async with connect(uri(port)) as streaming:
                mute = [await asyncio.open_connection("127.0.0.1", port) for _ in range(30)]
                await until(lambda: server.metrics.value("sumix_refused_total", reason="crowd") == 22)
                assert len(server._sockets) == 9
                await healthy(port)
                await streaming.send('{"type": "end"}')
                assert json.loads([message async for message in streaming][-1])["type"] == "done"
                for reader, writer in mute[:22]:
                    with pytest.raises(ConnectionResetError):
                        if not await reader.read():
                            raise ConnectionResetError
                    writer.close()
                for _, writer in mute[22:]:
                    writer.close()

    run(test)


LIMITED = """
import resource, sys
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from sumix_stream.serve.descriptors import within_open_files
from sumix_stream.serve.limits import Limits
try:
    print(within_open_files(Limits(max_streams=64)).max_waiting, *resource.getrlimit(resource.RLIMIT_NOFILE))
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
@pytest.mark.parametrize(
    ("soft", "hard", "said"),
    [
        (1024, 1024, "512 1024 1024"),
        (64, 4096, "512 640 4096"),
        (256, 256, "128 256 256"),
        (100, 100, "64 streams need 144 open files and this process may have 100: raise the limit (ulimit -n"),
    ],
)
def test_open_files_are_enough_for_all_streams(soft, hard, said):
    command = [sys.executable, "-c", LIMITED, str(soft), str(hard)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.startswith(said), done.stderr


def test_a_whisper_does_not_hold_a_slot():
    """A sample now and then is not audio; a little audio now and then is."""

    async def test():
        async with serving(idle_seconds=0.6, least_rate=0.1) as (_, port):
            async with connect(uri(port)) as client:
                with pytest.raises(Exception, match="1008") as closed:
                    for _ in range(100):
                        await client.send(b"\0\0")
                        await asyncio.sleep(0.05)
                assert closed.value.rcvd.code == 1008
            async with connect(uri(port)) as client:
                for _ in range(30):
                    await client.send(PCM[:320].tobytes())  # 20 ms of 50
                    await asyncio.sleep(0.05)
                await client.send('{"type": "end"}')
                assert json.loads([message async for message in client][-1])["type"] == "done"

    run(test)


def test_keepalives_hold_for_no_less_than_silence_may_last():
    """Where a client may be silent for longer than keepalives bridge, they take nothing away."""
    assert Limits(idle_seconds=1200.0).bridged_seconds == 1200.0
    assert Limits(idle_seconds=30.0, keepalive_seconds=90.0).bridged_seconds == 90.0


def test_keepalives_alone_do_not_hold_a_slot():
    """Neither with a sample now and then; with audio between them, as much as is asked of anybody, they do."""
    limits = {"idle_seconds": 1.0, "keepalive_seconds": 2.0, "least_rate": 0.1}

    async def test():
        async with serving(**limits) as (server, port):
            async with connect(uri(port)) as client:
                with pytest.raises(ConnectionClosedError):
                    for _ in range(200):
                        await client.send('{"type": "keepalive"}')
                        await client.send(b"\0\0")
                        await asyncio.sleep(0.05)
                messages = []
                with contextlib.suppress(ConnectionClosed):
                    while True:
                        messages.append(json.loads(await client.recv()))
                assert (messages[-1]["code"], client.close_code) == ("idle", 1008)
                assert "nothing but keepalives for 2 seconds" in messages[-1]["message"]
            async with connect(uri(port)) as client:
                for _ in range(4):
                    await client.send(PCM[:6_400].tobytes())  # 0.4 s earn 4
                    for _ in range(6):
                        await asyncio.sleep(0.2)
                        await client.send('{"type": "keepalive"}')
                await client.send('{"type": "end"}')
                assert json.loads([message async for message in client][-1])["type"] == "done"
            assert server.metrics.value("sumix_errors_total", code="idle") == 1

    run(test)


FILES = {
    "WAV": b"RIFF\x24\x08\0\0WAVEfmt ",
    "Ogg": b"OggS\0\2" + bytes(20),
    "FLAC": b"fLaC\0\0\0\x22" + bytes(20),
    "MP3": b"ID3\4" + bytes(20),
    "WebM": b"\x1a\x45\xdf\xa3" + bytes(20),
    "M4A": b"\0\0\0\x20ftypM4A " + bytes(20),
}


@pytest.mark.parametrize(("name", "data"), FILES.items(), ids=FILES)
def test_files_that_are_sent_as_samples_are_named(name, data):
    assert name in compressed(data) and "ffmpeg" in compressed(data)


def test_a_file_ends_the_stream_and_samples_do_not():
    assert not any(compressed(PCM[start : start + 8].tobytes()) for start in range(0, len(PCM), 50))
    assert compressed(b"") is None and compressed(b"RIFF" + bytes(40)) is None

    async def test():
        async with serving() as (_, port), connect(uri(port)) as client:
            await client.send(FILES["Ogg"] + b"\0")  # an odd number of bytes: that is not what is said
            messages = [json.loads(await client.recv()) for _ in range(2)]
            assert messages[1]["code"] == "bad_audio" and "Ogg" in messages[1]["message"]
            with pytest.raises(ServerError, match="WAV"):
                await transcribe(uri(port), np.frombuffer(FILES["WAV"], np.int16))

    run(test)


SECOND = np.zeros(RATE, np.int16).tobytes()


async def begin(port: int, kind: str) -> tuple[asyncio.StreamWriter, bytes]:
    """A new stream, and a second of audio as it takes it."""
    if kind == "wyoming":
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await async_write_event(AudioStart(RATE, 2, 1).event(), writer)
        return writer, wyoming_chunk(SECOND)
    _, writer = await attacker(port, path="/v1/realtime" if kind == "openai" else "/stream")
    if kind == "vosk":
        writer.write(Frame(Opcode.TEXT, b'{"config": {"sample_rate": 16000}}').serialize(mask=True))
    append = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(SECOND).decode()}).encode()
    frame = Frame(Opcode.TEXT, append) if kind == "openai" else Frame(Opcode.BINARY, SECOND)
    return writer, frame.serialize(mask=True)


def wyoming_chunk(pcm: bytes) -> bytes:
    head = {"type": "audio-chunk", "data": {"rate": RATE, "width": 2, "channels": 1}, "payload_length": len(pcm)}
    return json.dumps(head).encode() + b"\n" + pcm


async def flood(server: Server, port: int, kind: str) -> tuple[Connected, asyncio.StreamWriter]:
    """A stream that sends audio until the server reads no more of it: the server's end of it, and the client's."""
    before = set(server._admitted)
    writer, second = await begin(port, kind)
    writer.transport.set_write_buffer_limits(0)
    await until(lambda: len(server._admitted) > len(before))
    (connection,) = server._admitted - before
    for _ in range(60):
        writer.write(second)
        await writer.drain()
        await asyncio.sleep(0.02)
        if not connection.transport.is_reading():
            return connection, writer
    raise AssertionError("all of it was read")


def leave(writer: asyncio.StreamWriter, how: str) -> None:
    if how == "FIN":
        writer.write_eof()
        return
    linger = struct.pack("ii", 1, 0)  # a close is a reset then
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


@pytest.mark.parametrize("how", ["RST", "FIN"])
def test_who_is_gone_while_the_server_does_not_read_loses_the_place(how):
    """Of every protocol: seconds of audio wait for a recogniser that stands still, so that no read finds the end."""
    if how == "FIN" and sys.platform != "linux":
        pytest.skip("only Linux tells of a FIN behind bytes that nobody has read")
    recognizer, may_go_on = make_recognizer(), threading.Event()
    decode = recognizer.decode

    def stuck(streams):
        may_go_on.wait(30)
        return decode(streams)

    async def test():
        listeners = [kind(Address("127.0.0.1", 0)) for kind in (Vosk, Sherpa)]
        listeners.append(Wyoming(Address("127.0.0.1", 0), "talkative", ["en"]))
        limits = {"pending_seconds": 1.0, "idle_seconds": 2.0}
        async with serving(recognizer, listeners=listeners, **limits) as (server, port):
            recognizer.decode = stuck
            ports = {"sumix": port, "openai": port}
            ports |= {listening.name: listening.address.port for listening in listeners}
            try:
                streams = [await flood(server, to, kind) for kind, to in ports.items()]
                assert server.num_streams == len(ports)
                for connection, writer in streams:
                    leave(writer, how)
                    if how == "FIN":
                        assert has_ended_sending(connection.transport) and not connection.transport.is_reading()
                # Nor does what had sent it go on: recognition would begin for nobody.
                await until(lambda: server.num_streams == 0 and server.num_sessions == 0)
            finally:
                may_go_on.set()
            for _, writer in streams:
                writer.transport.abort()
            recognizer.decode = decode
            await healthy(port)

    run(test)


@pytest.mark.parametrize("step", ["greet", "opened"])
def test_a_stream_that_fails_before_its_first_word_leaves_its_place(step, monkeypatch, caplog):
    """At once, though what came behind the request keeps the socket from being read, so that the closing takes long."""
    owner = {"greet": Client, "opened": GuardedConnection}[step]

    def fail(self: object) -> None:
        raise RuntimeError("no first word")

    async def test():
        async with serving(max_streams=1, send_seconds=1000.0) as (server, port):
            with monkeypatch.context() as patched:
                patched.setattr(owner, step, fail)
                audio = Frame(Opcode.BINARY, PCM.tobytes()).serialize(mask=True)
                _, writer = await attacker(port, audio)
                await until(lambda: (server.num_streams, len(server._clients)) == (0, 0))
            await healthy(port)
            writer.transport.abort()

    run(test)
    assert "no first word" in caplog.text
