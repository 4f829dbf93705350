"""Events of the Wyoming protocol on the wire: a line of JSON, then data as JSON, then a payload.

The format is described at https://github.com/OHF-Voice/wyoming.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from sumix_stream.serve.protocol import BAD_MESSAGE, ProtocolError

LONGEST_LINE = 16_384  # bytes of an event's first line
MOST_DATA = 65_536  # bytes of its data
_SMALL = 64  # bytes: an event with less payload carries 2 ms of audio or none
_SMALL_COST = 4  # in events, of a small one
_PAUSE_SECONDS = 0.1  # that a connection without budget is not read


class WireEvent(NamedTuple):
    """One event: its type, its data, and its payload."""

    type: str
    data: Mapping[str, Any]
    payload: bytes = b""


class EventReader:
    """Reads events within limits.

    Args:
        reader: with LONGEST_LINE as its limit.
        most_payload: bytes of one event.
        rate: events a second; as many may come at once. One with less than 64 bytes of payload counts as four.
    """

    def __init__(self, reader: asyncio.StreamReader, most_payload: int, rate: int) -> None:
        self._reader, self._most_payload, self._rate = reader, most_payload, rate
        self._loop = asyncio.get_running_loop()
        self._left, self._filled = float(rate), self._loop.time()

    async def read(self) -> WireEvent | None:
        """The next event, None at the end, also amid an event. Raises ProtocolError for what is none."""
        while self._left <= 0 and not self._refill():
            await asyncio.sleep(_PAUSE_SECONDS)
        try:
            line = await self._reader.readline()
        except ValueError:
            raise _bad(f"the first line of an event may have at most {LONGEST_LINE} bytes") from None
        if not line.endswith(b"\n"):
            return None
        head = _read_object(line, "the first line of an event")
        kind = head.get("type")
        if not isinstance(kind, str):
            raise _bad("type must be a text")
        data = head.get("data") or {}
        if not isinstance(data, dict):
            raise _bad("data must be an object")
        sizes = [_size(head, "data_length", MOST_DATA), _size(head, "payload_length", self._most_payload)]
        self._left -= 1 if sizes[1] >= _SMALL else _SMALL_COST
        try:
            more, payload = [await self._reader.readexactly(size) for size in sizes]
        except asyncio.IncompleteReadError:
            return None
        if more:
            data = data | _read_object(more, "data")
        return WireEvent(kind, data, payload)

    async def discard(self) -> None:
        """Take no notice of what comes, until the end."""
        while await self._reader.read(1 << 16):
            await asyncio.sleep(_PAUSE_SECONDS)

    def _refill(self) -> bool:
        now = self._loop.time()
        self._left = min(float(self._rate), self._left + (now - self._filled) * self._rate)
        self._filled = now
        return self._left > 0


def write_event(kind: str, data: Mapping[str, Any]) -> bytes:
    """An event without payload."""
    body = json.dumps(data, ensure_ascii=False).encode() if data else b""
    head = {"type": kind} | ({"data_length": len(body)} if body else {})
    return json.dumps(head).encode() + b"\n" + body


def _read_object(text: bytes, name: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise _bad(f"{name} must be a JSON object")
    return content


def _size(head: Mapping[str, Any], key: str, most: int) -> int:
    size = head.get(key)
    size = 0 if size is None else size
    if type(size) is not int or not 0 <= size <= most:
        raise _bad(f"{key} must be a whole number, 0 to {most}")
    return size


def _bad(text: str) -> ProtocolError:
    return ProtocolError("bad_message", text, BAD_MESSAGE)
