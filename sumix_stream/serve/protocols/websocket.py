"""Other protocols over websockets: a port for each, one stream a connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from websockets.asyncio.server import Server as WebsocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from sumix_stream.serve import http, protocol
from sumix_stream.serve.events import Event
from sumix_stream.serve.front import Front
from sumix_stream.serve.guard import GuardedConnection
from sumix_stream.serve.protocol import ProtocolError
from sumix_stream.serve.protocols.intake import Intake
from sumix_stream.serve.protocols.listener import Listener

if TYPE_CHECKING:
    from sumix_stream.serve.server import Server

_MAX_QUEUE = 4  # messages that the library reads ahead
_LONGEST_REASON = 120  # bytes of a close frame's reason (RFC 6455, 5.5: 123)
_LIBRARY_FAULTS = {1007: "bad_message", 1009: "too_big"}
_log = logging.getLogger(__name__)


class WebsocketListener(Listener):
    """A port whose connections are each a stream, on any path."""

    @abstractmethod
    def talk(self, connection: ServerConnection) -> WebsocketTalk:
        """A conversation over a new connection."""

    async def listen(self, server: Server) -> None:
        self.server, limits = server, server.limits
        self._listening: WebsocketServer = await serve(
            self._handle,
            *self.address,
            process_request=self._answer,
            create_connection=self._front,
            compression=None,
            max_size=limits.max_message_bytes,
            max_queue=_MAX_QUEUE,
            open_timeout=limits.handshake_seconds,
            close_timeout=limits.send_seconds,
            ping_timeout=None,  # a pong may wait behind audio that nobody reads yet; who is gone is found idle
            server_header=None,
        )

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        return tuple(self._listening.sockets)

    def close(self) -> None:
        self._listening.close()

    async def wait_closed(self) -> None:
        await self._listening.wait_closed()

    def _front(self, protocol: ServerProtocol, *arguments: object, **options: object) -> Front:
        return self.server.front(_Door(self.name, self.server), protocol, *arguments, **options)

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        refusal = self.server.admit(connection.front, http.asked(connection, request), needs_token=False)
        return None if refusal is None else http.refuse(connection, refusal)

    async def _handle(self, connection: ServerConnection) -> None:
        connection.opened()
        talk = self.talk(connection)
        self.talks.add(talk)
        try:
            await talk.run()
        finally:
            self.talks.discard(talk)


class _Door:
    """As `front.Owner`, for a port where every request is taken for that of a websocket."""

    def __init__(self, name: str, server: Server) -> None:
        self.name, self.limits, self._server = name, server.limits, server
        self.made, self.lost, self.too_large = server.made, server.lost, server.too_large

    def is_websocket(self, head: bytes) -> bool:
        return True  # what is none is answered by the library

    def upgraded(self, front: Front, connection: GuardedConnection) -> None:
        self._server.upgraded(front, connection)

    def new_http(self, front: Front) -> asyncio.Protocol:
        raise AssertionError("no request is taken for HTTP here")


class WebsocketTalk(ABC):
    """One client of a websocket, from the handshake to the end."""

    def __init__(self, listener: WebsocketListener, connection: ServerConnection) -> None:
        self.server, self.connection = listener.server, connection
        self.intake = Intake(listener.server, connection, self.hear)

    @abstractmethod
    def hear(self, event: Event) -> None:
        """Something happened in the stream."""

    @abstractmethod
    async def take(self, message: str | bytes) -> bool:
        """A message of the client; whether it is the last. Raises ProtocolError for what is none."""

    @abstractmethod
    async def write(self) -> str:
        """Send what there is to be sent, until the stream has ended; why it ended. ConnectionClosed may pass."""

    @abstractmethod
    def hung_up(self) -> None:
        """The client is gone: `write` need not go on."""

    def end(self, fault: ProtocolError) -> None:
        self.intake.fail(fault)

    async def run(self) -> None:
        reader, reason = asyncio.create_task(self._read()), "internal"
        self.connection.when_lost(self.hung_up)
        try:
            reason = await self.write()
        except ConnectionClosed:
            reason = "slow_reader" if self.connection.dropped else "disconnected"
        finally:
            self.intake.close(reason)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def send(self, text: str) -> None:
        """A message; a reader that is too slow for it is dropped."""
        limit = self.server.limits.send_seconds
        too_slow = asyncio.get_running_loop().call_later(limit, self.server.drop, self.connection)
        try:
            await self.connection.send(text)
        finally:
            too_slow.cancel()

    async def close(self, code: int, reason: str = "") -> None:
        """Say goodbye; the reason is for people."""
        short = reason.encode()[:_LONGEST_REASON].decode(errors="ignore")
        await self.connection.close(code, short)

    async def _read(self) -> None:
        try:
            while not self.intake.is_over and not await self.take(await self.connection.recv()):
                pass
            while True:  # a close frame may lie behind what is of no use any more
                await self.connection.recv()
        except ConnectionClosed as closed:
            if closed.sent is not None and not closed.rcvd_then_sent and closed.sent.code in _LIBRARY_FAULTS:
                code = _LIBRARY_FAULTS[closed.sent.code]
                self.server.metrics.errors.labels(code=code).inc()
            self.hung_up()
        except ProtocolError as fault:
            await self._fail(fault)
        except Exception:
            _log.exception("reading failed")
            await self._fail(ProtocolError("internal", "the server failed; open a new stream", protocol.INTERNAL))

    async def _fail(self, fault: ProtocolError) -> None:
        self.intake.fail(fault)
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self.connection.recv()
        self.hung_up()
