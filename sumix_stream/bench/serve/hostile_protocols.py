"""Clients that break the rules of other protocols at their ports: Wyoming's, vosk-server's, sherpa-onnx's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

_FORM = {"rate": 16_000, "width": 2, "channels": 1}
_AUDIO = bytes(range(256)) * 125  # a second of 16-bit samples at 16 kHz
_NAN = struct.pack("<4f", 0.0, float("nan"), 0.0, 0.0)
FLOOD_RATE, FASTEST = 1_000_000, 10_000_000  # bytes a second


def _event(kind: str, payload: bytes = b"", **data: object) -> bytes:
    head = {"type": kind, "data": data, "payload_length": len(payload)}
    return json.dumps(head).encode() + b"\n" + payload


_WYOMING = (  # what a client says once
    b"",
    b'{"type": "desc',
    b"\xff\xfe\n",
    b"[" * 10_000 + b"\n",
    b"a" * 100_000,
    b'{"type": "ping", "data_length": 1000000000}\n',
    b'{"type": "audio-chunk", "payload_length": 1000000000}\n',
    _event("audio-chunk", _AUDIO, **_FORM),
    _event("audio-start", **_FORM) * 2,
    _event("audio-start", **_FORM) + _event("audio-chunk", b"\0\0\0", **_FORM),
    _event("audio-start", rate=1e9, width=2, channels=1),
)
_WEBSOCKETS: Mapping[str, tuple[list[str | bytes], ...]] = {
    "vosk": (
        [],
        ['{"config": '],
        ["[" * 4000],
        ['{"config": {"sample_rate": 1e999}}'],
        ['{"config": {"phrase_list": ["' + "x" * 9000 + '"]}}', _AUDIO],
        [b"\0\0\0"],
        ['{"reset": 1}'] * 200,
        [bytes(1 << 21)],
    ),
    "sherpa": ([], ["Stop"], [_NAN], [b"\0\0\0"], [b"OggS\0" + bytes(99)], [bytes(1 << 21)], ["Done", _AUDIO]),
}


class HostileToPorts:
    """Clients of the ports of a server, by protocol.

    Args:
        count: is told each kind and what became of it.
    """

    def __init__(self, ports: Mapping[str, int], count: Callable[[str, str], None], seed: int = 0) -> None:
        self._ports, self._count, self._random = ports, count, random.Random(seed)

    @property
    def acts(self) -> list[Callable[[], Awaitable[None]]]:
        """Each to be done again and again."""
        found = []
        if port := self._ports.get("wyoming"):
            ping, chunk = _event("ping", text="x" * 500), _event("audio-chunk", _AUDIO, **_FORM)
            found += [partial(self._wyoming, port), partial(self._pour, "wyoming pings", port, ping * 40)]
            slow = _event("audio-start", **_FORM), chunk
            found += [partial(self._never_read, "wyoming slow reader", port, *slow)]
            found += [partial(self._never_read, "wyoming unread pongs", port, b"", ping * 40)]
        for name in _WEBSOCKETS:
            if port := self._ports.get(name):
                found += [partial(self._websocket, name, port), partial(self._unanswered, name, port)]
        return found

    async def _wyoming(self, port: int) -> None:
        """Say something wrong, and read what is said to it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(self._random.choice(_WYOMING))
            answer = await reader.read()
            self._count("wyoming", "told" if b'"error"' in answer else "closed")
        finally:
            writer.transport.abort()

    async def _pour(self, kind: str, port: int, block: bytes) -> None:
        """A megabyte a second of the same."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(block)
                    await writer.drain()
                    if not await reader.read(1 << 16):
                        break
                    await asyncio.sleep(len(block) / FLOOD_RATE)
            self._count(kind, "cut off")
        finally:
            writer.transport.abort()

    async def _never_read(self, kind: str, port: int, first: bytes, block: bytes) -> None:
        """Send far faster than one can speak, and read no answer."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        _, writer = await asyncio.open_connection(sock=sock)
        writer.transport.pause_reading()
        outcome = "still there at the end"
        try:
            writer.write(first)
            while True:
                writer.write(block)
                await writer.drain()
                await asyncio.sleep(len(block) / FASTEST)  # `drain` alone lets nobody else have a turn
        except ConnectionError:
            outcome = "cut off"
        finally:
            self._count(kind, outcome)
            writer.transport.abort()

    async def _websocket(self, name: str, port: int) -> None:
        """Say something wrong, and read to the end."""
        with contextlib.suppress(WebSocketException):
            async with connect(f"ws://127.0.0.1:{port}", proxy=None, ping_interval=None) as client:
                for message in self._random.choice(_WEBSOCKETS[name]):
                    await client.send(message)
                async for _ in client:
                    pass
        self._count(name, "told")

    async def _unanswered(self, name: str, port: int) -> None:
        """Speak far faster than one can, and read no answer."""
        with contextlib.suppress(WebSocketException):
            connection = connect(f"ws://127.0.0.1:{port}", proxy=None, ping_interval=None, max_queue=1)
            async with connection as client:
                client.transport.pause_reading()
                try:
                    while True:
                        await client.send(_AUDIO if name == "vosk" else bytes(64_000))
                        await asyncio.sleep(len(_AUDIO) / FASTEST)
                finally:
                    self._count(f"{name} slow reader", "gone")
                    client.transport.abort()
