"""Clients that break the rules, for a while, in a process of their own.

python -m sumix_stream.bench.serve.hostile_clients PORT MAX_STREAMS SECONDS PORTS NICENESS begins when its standard
input ends, and prints as JSON what became of them. PORTS is a JSON object, other protocol -> its port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.uri import parse_uri

from sumix_stream.bench.serve.hostile_openai import HostileToOpenAI
from sumix_stream.bench.serve.hostile_protocols import HostileToPorts
from sumix_stream.serve import protocol

GIGABYTE = 1 << 30
HALF_OPEN, SLOW_READERS, LONG_REQUESTS = 40, 4, 100
FLOOD_RATE = 1_000_000  # bytes a second of frames that carry nothing, or next to nothing
_ROOM = 1 << 16  # bytes that are written at a time
_AUDIO = bytes(range(256)) * 125  # a second of s16le at 16 kHz: a sawtooth
_NAN = struct.pack("<4f", 0.0, float("nan"), 0.0, 0.0)
_GARBAGE = (
    [(Opcode.TEXT, b"hello")],
    [(Opcode.TEXT, b"[" * 4000)],
    [(Opcode.TEXT, b'{"type": "start", "sample_rate": 0}')],
    [(Opcode.TEXT, b'{"type": "start", "format": "f32le"}'), (Opcode.BINARY, _NAN)],
    [(Opcode.BINARY, b"\0\0\0")],
    [(Opcode.BINARY, _AUDIO), (Opcode.TEXT, b'{"type": "start"}')],
    [(Opcode.BINARY, b"OggS\0" + bytes(995))],
    None,  # bytes that are no frames
)
_FLOODS = {
    "empty pings": (Opcode.PING, b""),
    "empty pongs": (Opcode.PONG, b""),
    "empty messages": (Opcode.BINARY, b""),
    "messages of one sample": (Opcode.BINARY, b"\1\0"),
}
_LONG_REQUEST = b"GET /stream HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 8000) for n in range(126))
_HALVES = (b"", b"GET /stream HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01" * 20, b"POST / HTTP/1.1\r\n\r\n")


class HostileClients:
    """Every kind at once on one server, until `deadline` (time.monotonic).

    Args:
        max_streams: of the server; the crowd is ten times that.
        ports: where it speaks other protocols, by their names.
    """

    def __init__(
        self, port: int, max_streams: int, deadline: float, seed: int = 0, ports: Mapping[str, int] | None = None
    ) -> None:
        self.port, self.max_streams, self.deadline = port, max_streams, deadline
        self.random = random.Random(seed)
        self.outcomes: Counter = Counter()  # "kind: what became of it"
        self._others = HostileToOpenAI(port, 10 * max_streams, self._count, seed).acts
        self._others += HostileToPorts(ports or {}, self._count, seed).acts

    async def run(self) -> dict[str, int]:
        """What became of them, once all are gone."""
        kinds = [self._again(self.half_open) for _ in range(HALF_OPEN)]
        kinds += [self._again(self.slow_reader) for _ in range(SLOW_READERS)]
        kinds += [self._again(self.garbage, 0.2), self._again(self.vanish, 0.1)]
        kinds += [self._again(self.gigabyte), self._again(self.fragments), self._again(self.crowd, 2.0)]
        kinds += [self._again(partial(self.flood, name)) for name in _FLOODS]
        kinds += [self._again(self.long_request, 0.5) for _ in range(LONG_REQUESTS)]
        kinds += [self._again(self.unread_pongs), self._again(self.whisper)]
        kinds += [self._again(self.reset, 0.02)]
        kinds += [self._again(act, 0.1) for act in self._others]
        tasks = [asyncio.create_task(kind) for kind in kinds]
        await asyncio.wait(tasks, timeout=max(0.0, self.deadline - time.monotonic()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return dict(sorted(self.outcomes.items()))

    async def _again(self, act: Callable[[], Awaitable[None]], pause: float = 0.05) -> None:
        while True:
            with contextlib.suppress(OSError):
                await act()
            await asyncio.sleep(pause)

    async def half_open(self) -> None:
        """Connect and say nothing, or half of something."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with _aborting(writer):
            writer.write(self.random.choice(_HALVES))
            self._count("half-open", "answered" if await reader.read() else "closed")

    async def garbage(self) -> None:
        async with self._stream("garbage") as (stream, writer):
            messages = self.random.choice(_GARBAGE)
            frames = [Frame(*message).serialize(mask=True) for message in messages or []]
            writer.write(b"".join(frames) or self.random.randbytes(2000))
            self._count("garbage", await stream.last_words())

    async def vanish(self) -> None:
        """Gone amid a message, without a goodbye."""
        async with self._stream("disconnect") as (_, writer):
            whole = Frame(Opcode.BINARY, _AUDIO).serialize(mask=True)
            writer.write(whole[: self.random.randrange(1, len(whole))])
            await writer.drain()
            await asyncio.sleep(self.random.uniform(0, 0.2))
            self._count("disconnect", "amid a message")

    async def reset(self) -> None:
        """Gone behind the request, before there is an answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with _aborting(writer):
            writer.write(_Stream(reader, self.port).request)
            await asyncio.sleep(self.random.uniform(0, 0.001))
            self._count("reset", "behind the request")

    async def gigabyte(self) -> None:
        """One message that says it will be 1 GB long."""
        async with self._stream("1 GB message") as (stream, writer):
            writer.write(b"\x82\xff" + struct.pack(">Q", GIGABYTE) + bytes(4))
            self._count("1 GB message", await self._pour(stream, writer, b""))

    async def fragments(self) -> None:
        """One message of 1 GB in pieces that are small enough."""
        async with self._stream("1 GB in fragments") as (stream, writer):
            writer.write(b"\x02\x80" + bytes(4))
            header = b"\x00\xff" + struct.pack(">Q", _ROOM) + bytes(4)
            self._count("1 GB in fragments", await self._pour(stream, writer, header))

    async def _pour(self, stream: _Stream, writer: asyncio.StreamWriter, header: bytes) -> str:
        block, told = header + bytes(_ROOM), asyncio.create_task(stream.last_words())
        try:
            for _ in range(GIGABYTE // _ROOM):
                writer.write(block)
                await writer.drain()
                if told.done():
                    break
        except ConnectionError:
            pass
        return await told

    async def slow_reader(self) -> None:
        """Speak as fast as one is let, and never read a result."""
        await self._never_read("slow reader", Frame(Opcode.BINARY, _AUDIO).serialize(mask=True))

    async def unread_pongs(self) -> None:
        """Ping as fast as one is let, and read no answer."""
        await self._never_read("unread pongs", Frame(Opcode.PING, bytes(125)).serialize(mask=True) * 400)

    async def _never_read(self, kind: str, block: bytes) -> None:
        """Send the same again and again until the server hangs up."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        async with self._stream(kind, sock) as (_, writer):
            writer.transport.pause_reading()
            outcome = "still there at the end"
            try:
                while True:
                    writer.write(block)
                    await writer.drain()
            except ConnectionError:
                outcome = "cut off"
            finally:
                self._count(kind, outcome)

    async def flood(self, name: str) -> None:
        """Frames that carry nothing, a megabyte of them a second."""
        block = Frame(*_FLOODS[name]).serialize(mask=True)
        block *= FLOOD_RATE // 20 // len(block)
        async with self._stream(name) as (stream, writer):
            told = asyncio.create_task(stream.last_words())
            with contextlib.suppress(ConnectionError):
                while not told.done():
                    writer.write(block)
                    await writer.drain()
                    await asyncio.sleep(0.05)
            self._count(name, await told)

    async def whisper(self) -> None:
        """A sample every two seconds, to keep a place."""
        async with self._stream("whisper") as (stream, writer):
            told = asyncio.create_task(stream.last_words())
            with contextlib.suppress(ConnectionError):
                while not told.done():
                    writer.write(Frame(Opcode.BINARY, b"\1\0").serialize(mask=True))
                    await writer.drain()
                    await asyncio.wait([told], timeout=2.0)
            self._count("whisper", await told)

    async def long_request(self) -> None:
        """A megabyte of headers, and no end of them."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with _aborting(writer):
            answer = b""
            with contextlib.suppress(ConnectionError):
                writer.write(_LONG_REQUEST)
                answer = await reader.read(20)
            self._count("long request", answer[9:12].decode() or "closed")

    async def crowd(self) -> None:
        """Ten times too many, at once; who is let in speaks for a second and is gone."""

        async def one() -> None:
            with contextlib.suppress(OSError):
                async with self._stream("crowd") as (_, writer):
                    writer.write(Frame(Opcode.BINARY, _AUDIO).serialize(mask=True))
                    await asyncio.sleep(1.0)
                    self._count("crowd", "let in")

        await asyncio.gather(*(one() for _ in range(10 * self.max_streams)))

    @contextlib.asynccontextmanager
    async def _stream(self, kind: str, sock: socket.socket | None = None):
        """(stream, writer) after the handshake; whoever is not let in is counted. It ends abruptly."""
        where = {"sock": sock} if sock is not None else {"host": "127.0.0.1", "port": self.port}
        reader, writer = await asyncio.open_connection(**where)
        stream = _Stream(reader, self.port)
        with _aborting(writer):
            writer.write(stream.request)
            if (status := await stream.handshake()) != 101:
                self._count(kind, f"HTTP {status}")
                raise ConnectionRefusedError(status)
            yield stream, writer

    def _count(self, kind: str, outcome: str) -> None:
        self.outcomes[f"{kind}: {outcome}"] += 1


class _Stream:
    """The reading side of a websocket."""

    def __init__(self, reader: asyncio.StreamReader, port: int) -> None:
        self._reader = reader
        self._websocket = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}{protocol.PATH}"), max_size=None)
        self._websocket.send_request(self._websocket.connect())
        self.request = b"".join(self._websocket.data_to_send())
        self._events: list = []

    async def _event(self):
        while not self._events:
            data = await self._reader.read(_ROOM)
            if not data:
                return None
            self._websocket.receive_data(data)
            self._events += self._websocket.events_received()
        return self._events.pop(0)

    async def handshake(self) -> int:
        """The status of the answer; 0 for none."""
        answer = await self._event()
        return 0 if answer is None else answer.status_code

    async def last_words(self) -> str:
        """Read to the end: the close code."""
        with contextlib.suppress(ConnectionError):
            while (event := await self._event()) is not None:
                if event.opcode is Opcode.CLOSE:
                    return f"closed with {Close.parse(event.data).code}"
        return "connection lost"


@contextlib.contextmanager
def _aborting(writer: asyncio.StreamWriter):
    """At the end a reset, not a goodbye."""
    try:
        yield
    finally:
        sock = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


def main(port: int, max_streams: int, seconds: float, ports: Mapping[str, int], niceness: int) -> None:
    os.nice(niceness)
    sys.stdin.read()
    clients = HostileClients(port, max_streams, time.monotonic() + seconds, ports=ports)
    outcomes = asyncio.run(clients.run())
    times = os.times()
    print(json.dumps({"outcomes": outcomes, "cpu_seconds": times.user + times.system}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), json.loads(sys.argv[4]), int(sys.argv[5]))
