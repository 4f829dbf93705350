"""The beginning of a connection: the head of its request, within limits, says whether a websocket or HTTP goes on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Protocol

from websockets.server import ServerProtocol

from sumix_stream.serve.access import Grant
from sumix_stream.serve.guard import GuardedConnection
from sumix_stream.serve.limits import Limits

_END_OF_HEAD = b"\r\n\r\n"
_BODY = re.compile(rb"\r\n(?:content-length|transfer-encoding)[ \t]*:", re.IGNORECASE)
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Connection: close\r\nContent-Length: 0\r\n\r\n"
)


class Owner(Protocol):
    """Who keeps count of connections and knows what they may ask for."""

    name: str  # of the protocol, in logs and metrics
    limits: Limits

    def made(self, front: Front) -> None: ...

    def lost(self, front: Front) -> None: ...

    def too_large(self) -> None:
        """The head of a request was longer than it may be."""

    def is_websocket(self, head: bytes) -> bool: ...

    def upgraded(self, front: Front, connection: GuardedConnection) -> None:
        """`connection` has the socket from now on."""

    def new_http(self, front: Front) -> asyncio.Protocol: ...


class Front(asyncio.Protocol):
    """One connection, from its first byte to its last; after the request's head all goes to the protocol it asked for.

    Args:
        protocol: the library's state of the websocket that this may become.
        websocket: makes its connection.
    """

    may_half_close = False  # neither a websocket's client nor HTTP's: who closes its side has gone

    def __init__(self, owner: Owner, protocol: ServerProtocol, websocket: Callable[[], GuardedConnection]) -> None:
        self.protocol = protocol
        self.grant: Grant | None = None
        self.protocol_name = owner.name
        self.dropped = False
        self.transport: asyncio.Transport | None = None
        self._owner, self._websocket = owner, websocket
        self._loop = asyncio.get_running_loop()
        self._head = b""
        self._http: asyncio.Protocol | None = None
        self._has_body = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.within(self._owner.limits.handshake_seconds)
        self._owner.made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.at_leisure()
        if self._http is not None:
            self._http.connection_lost(exc)
        self._owner.lost(self)

    def within(self, seconds: float) -> None:
        """End the connection after so long."""
        self.at_leisure()
        self._timer = self._loop.call_later(seconds, self.abort)

    def at_leisure(self) -> None:
        """As long as it likes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._http is not None:
            if self._has_body:
                self._http.data_received(data)
            return
        if self.transport.is_closing():
            return
        searched = max(0, len(self._head) - len(_END_OF_HEAD) + 1)
        self._head += data
        end = self._head.find(_END_OF_HEAD, searched)
        size = len(self._head) if end < 0 else end + len(_END_OF_HEAD)
        if size > self._owner.limits.max_request_bytes:
            self._head = b""
            self._owner.too_large()
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        elif end >= 0:
            received, self._head = self._head, b""
            self._hand_over(received[:size], received[size:])

    def _hand_over(self, head: bytes, rest: bytes) -> None:
        self.at_leisure()
        if self._owner.is_websocket(head):
            connection = self._websocket()
            self.transport.set_protocol(connection)
            self._owner.upgraded(self, connection)
            connection.connection_made(self.transport)
            connection.begin(head, rest)
            return
        self._http = self._owner.new_http(self)
        self._http.connection_made(self.transport)
        self._has_body = _BODY.search(head) is not None
        self._http.data_received(head + rest if self._has_body else head)  # one request: what follows is not looked at

    def eof_received(self) -> bool | None:
        return None if self._http is None else self._http.eof_received()

    def pause_writing(self) -> None:
        if self._http is not None:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        if self._http is not None:
            self._http.resume_writing()
