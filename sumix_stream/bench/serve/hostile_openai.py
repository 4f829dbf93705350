"""Clients that break the rules of OpenAI's protocol on the server's own port: uploads, and events of a session."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import struct
from collections.abc import Awaitable, Callable

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

PATHS = "/v1/audio/transcriptions", "/v1/realtime?intent=transcription"
FASTEST = 10_000_000  # bytes a second
_RATE = 24_000
_SILENCE = bytes(2 * _RATE)
_FMT = struct.pack("<IHHIIHH", 16, 1, 1, _RATE, 2 * _RATE, 2, 16)
_DATA = b"data" + struct.pack("<I", len(_SILENCE)) + _SILENCE
_WAV = b"RIFF" + struct.pack("<I", 36 + len(_SILENCE)) + b"WAVEfmt " + _FMT + _DATA
_APPEND = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(_SILENCE).decode()})
_EVENTS: tuple[list[str], ...] = (
    ["{"],
    ['{"type": '],
    ["[" * 4000],
    ['{"type": "session.delete"}'] * 50,
    ['{"type": "input_audio_buffer.commit"}'] * 50,
    ['{"type": "input_audio_buffer.append", "audio": "="}'] * 50,
    ['{"type": "input_audio_buffer.append", "audio": "' + "A" * (1 << 21) + '"}'],
    [_APPEND, '{"type": "session.update", "session": {"audio": {"input": {"format": {"type": "mp3"}}}}}'],
)


def _part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


_FORM = (
    _part("model", b"whisper-1") + _part("stream", b"true") + _part("file", _WAV, '; filename="a.wav"') + b"--b--\r\n"
)


class HostileToOpenAI:
    """Every kind at the server's port.

    Args:
        crowd: uploads at a time, more than the server takes.
        count: is told each kind and what became of it.
    """

    def __init__(self, port: int, crowd: int, count: Callable[[str, str], None], seed: int = 0) -> None:
        self._port, self._crowd, self._count, self._random = port, crowd, count, random.Random(seed)

    @property
    def acts(self) -> list[Callable[[], Awaitable[None]]]:
        """Each to be done again and again."""
        return [self.garbled, self.endless, self.half, self.unread, self.uploads, self.events, self.appends]

    async def garbled(self) -> None:
        """A form that is none, or whose file is none."""
        bodies = (b"", b"--b", _FORM[:60], _FORM.replace(b"RIFF", b"JUNK"), self._random.randbytes(5000))
        await self._told("upload of garbage", self._post(self._random.choice(bodies)))

    async def endless(self) -> None:
        """A file without an end, in chunks."""
        await self._told("endless upload", self._post(None, [_FORM[:-40], *[bytes(1 << 16)] * 100_000]))

    async def half(self) -> None:
        """Gone amid the file."""
        _, writer = await self._asked(len(_FORM))
        with _closing(writer):
            self._count("half an upload", "gone")
            writer.write(_FORM[: self._random.randrange(len(_FORM))])
            await writer.drain()
            await asyncio.sleep(self._random.uniform(0, 0.2))

    async def unread(self) -> None:
        """Ask for a stream of events, and read none."""
        _, writer = await self._asked(len(_FORM))
        with _closing(writer):
            writer.transport.pause_reading()
            self._count("unread events", "gone")
            writer.write(_FORM)
            await writer.drain()
            await asyncio.sleep(1.0)

    async def uploads(self) -> None:
        """Far more at a time than the server takes."""
        told = (self._told("crowd of uploads", self._post(_FORM)) for _ in range(self._crowd))
        await asyncio.gather(*told, return_exceptions=True)

    async def events(self) -> None:
        """Half JSON, and events that are wrong or in the wrong order."""
        await self._session("wrong events", self._random.choice(_EVENTS))

    async def appends(self) -> None:
        """Audio in base64, without an end, far faster than one can speak."""
        await self._session("endless appends", [_APPEND] * 10_000)

    async def _session(self, kind: str, messages: list[str]) -> None:
        outcome = "refused"
        try:
            async with connect(f"ws://127.0.0.1:{self._port}{PATHS[1]}", proxy=None, ping_interval=None) as client:
                outcome = "cut off"
                reading = asyncio.create_task(_read_to_the_end(client))
                try:
                    for message in messages:
                        await client.send(message)
                        await asyncio.sleep(len(message) / FASTEST)
                    await asyncio.wait([reading], timeout=1.0)
                    outcome = "heard out"
                finally:
                    reading.cancel()
                    client.transport.abort()
        except WebSocketException:
            pass
        finally:
            self._count(kind, outcome)

    async def _told(self, kind: str, posted: Awaitable[str]) -> None:
        """Count what an upload came to."""
        outcome = "still there at the end"
        try:
            outcome = await posted
        except OSError:
            outcome = "connection lost"
        finally:
            self._count(kind, outcome)

    async def _asked(self, length: int | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection behind the head of an upload; None: of unknown length."""
        size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"POST {PATHS[0]} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n{size}\r\n"
        writer.write(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode())
        return reader, writer

    async def _post(self, body: bytes | None, chunks: list[bytes] | None = None) -> str:
        """The answer's status."""
        reader, writer = await self._asked(None if body is None else len(body))
        with _closing(writer):
            with contextlib.suppress(ConnectionError):
                for piece in chunks or [body]:
                    writer.write(piece if body is not None else b"%x\r\n%b\r\n" % (len(piece), piece))
                    await writer.drain()
                    if writer.transport.is_closing():
                        break
                    await asyncio.sleep(len(piece) / FASTEST)
            with contextlib.suppress(ConnectionError):
                if answer := await reader.readline():
                    return f"HTTP {answer.split()[1].decode()}"
            return "closed"


@contextlib.contextmanager
def _closing(writer: asyncio.StreamWriter):
    try:
        yield
    finally:
        writer.transport.abort()


async def _read_to_the_end(client) -> None:
    with contextlib.suppress(WebSocketException):
        async for _ in client:
            pass
