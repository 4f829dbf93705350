"""What a websocket may cost, whatever bytes it sends: of frames a second, of replies nobody reads.

Nothing here knows what the frames mean. A connection that sends more than it may is not read for a while, so that its
bytes wait with the sender.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from websockets.protocol import State

from sumix_stream.serve.departures import is_reset
from sumix_stream.serve.limits import Limits
from sumix_stream.serve.reading import DirectConnection

_WHOLE_BINARY = 0x82  # the first byte of a frame of audio, as a rule
_TINY = 64  # bytes: a frame with fewer carries 2 ms of audio or none
_OTHER_COST = 4  # in frames, of one that is tiny or of another kind: they go the library's way
_PAUSE_SECONDS = 0.1  # that a connection without budget is not read


class FrameBudget:
    """A token bucket of websocket frames; it finds where frames end without taking them apart (RFC 6455, 5.2).

    Args:
        rate: frames a second; as many may come at once. One that is no whole binary message of 64 bytes counts
            as four.
        clock: the time in seconds.
    """

    def __init__(self, rate: int, clock: Callable[[], float]) -> None:
        self._rate, self._clock = rate, clock
        self._left, self._filled = float(rate), clock()
        self._missing = 0  # bytes of the frame under way that have not come
        self._begun = b""  # of a frame whose length is not known yet

    def take(self, data: bytes) -> int:
        """How many bytes of `data`, the next that came, may be looked at now: whole frames, or all."""
        place, size = self._missing, len(data)
        if not place and size >= _TINY and data[0] == _WHOLE_BINARY and self._left > 0 and not self._begun:
            # The common kind, one whole masked frame in one read: at 20 ms a packet, all but a few.
            length = data[1] - 0x80
            if length + 6 == size or (length == 126 and (data[2] << 8 | data[3]) + 8 == size):
                self._left -= 1
                return size
        if self._begun:
            head = self._begun + data[: 14 - len(self._begun)]
            if (whole := _frame_size(head, 0)) == 0:
                self._begun = head
                return size
            place, self._begun = whole - len(self._begun), b""
        while place < size:
            if self._left <= 0 and not self._refill():
                self._missing = 0
                return place
            whole = _frame_size(data, place)
            self._left -= 1 if whole >= _TINY and data[place] == _WHOLE_BINARY else _OTHER_COST
            if not whole:
                self._begun, self._missing = data[place:], 0
                return size
            place += whole
        self._missing = place - size
        return size

    def _refill(self) -> bool:
        now = self._clock()
        self._left = min(float(self._rate), self._left + (now - self._filled) * self._rate)
        self._filled = now
        return self._left > 0


def _frame_size(data: bytes, place: int) -> int:
    """Bytes of the frame that begins at `place`, its header too; 0 while that is incomplete."""
    if place + 2 > len(data):
        return 0
    second = data[place + 1]
    length, head = second & 0x7F, 6 if second & 0x80 else 2
    if length >= 126:
        wide = 2 if length == 126 else 8
        if place + 2 + wide > len(data):
            return 0
        length, head = int.from_bytes(data[place + 2 : place + 2 + wide], "big"), head + wide
    return head + length


class PausableTransport:
    """A transport that is read while none of several parties asks for a pause."""

    def __init__(self, transport: Any) -> None:
        self._transport, self._by = transport, set()
        self.write, self.writelines = transport.write, transport.writelines

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def pause_reading(self) -> None:
        self.pause("library")

    def resume_reading(self) -> None:
        self.resume("library")

    def pause(self, by: str) -> None:
        self._by.add(by)
        self._transport.pause_reading()

    def resume(self, by: str) -> None:
        self._by.discard(by)
        if not self._by and not self._transport.is_closing():
            self._transport.resume_reading()

    def is_paused_by(self, by: str) -> bool:
        return by in self._by


class GuardedConnection(DirectConnection):
    """A websocket within `limits`: so many frames a second, replies that are read.

    What comes behind the request waits until `opened` is called; `on_slow` is called when replies stay unread.
    """

    limits: Limits
    on_slow: Callable[[], None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._budget: FrameBudget | None = None
        self._held = b""
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        super().connection_made(PausableTransport(transport))

    def begin(self, head: bytes, rest: bytes) -> None:
        """Take the whole head of the request, and what came behind it."""
        super().data_received(head)
        if rest:
            self.data_received(rest)

    def connection_lost(self, exc: Exception | None) -> None:
        self._held = b""
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        budget = self._budget
        if budget is None:
            self._held += data
            self.transport.pause("request")  # only now: otherwise nobody would notice that the client has gone
        elif self._held:
            self._held += data
        elif (end := budget.take(data)) == len(data):
            super().data_received(data)
        else:
            self._hold_back(data, end)

    def opened(self) -> None:
        """The request was granted: take frames."""
        self._budget = FrameBudget(self.limits.frames_per_second, self.loop.time)
        self._release()
        self.transport.resume("request")

    def pause_writing(self) -> None:
        """More waits for the client to read than the library asks for: whoever does not read is not read."""
        super().pause_writing()
        self.transport.pause("replies")
        self._unread = self.loop.call_later(self.limits.send_seconds, self.on_slow)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
        self.transport.resume("replies")

    def _hold_back(self, data: bytes, end: int) -> None:
        """Hand over the bytes before `end`; the rest waits."""
        if end:
            super().data_received(data[:end])
        self._held = data[end:]
        self.transport.pause("budget")
        self._timer = self.loop.call_later(_PAUSE_SECONDS, self._release)

    def _release(self) -> None:
        """Go on with what waits."""
        if self._held and is_reset(self.transport):
            self.transport.abort()
        if self.protocol.state is State.CLOSED or self.transport.is_closing():
            self._held = b""
        elif self.transport.is_paused_by("replies"):
            self._timer = self.loop.call_later(_PAUSE_SECONDS, self._release)
            return
        data, self._held = self._held, b""
        if data:
            self.data_received(data)
        if not self._held:
            self.transport.resume("budget")
