"""The server: admission, limits, backpressure and a graceful end. What is said is in PROTOCOL.md."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus

from websockets.asyncio.server import Server as WebsocketServer
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from sumix_stream.serve import http, pages, protocol
from sumix_stream.serve.access import ANYBODY, Access, Account, Asked, Grant, Refusal
from sumix_stream.serve.departures import Departures
from sumix_stream.serve.descriptors import within_open_files
from sumix_stream.serve.engine import Engine
from sumix_stream.serve.events import EventKind
from sumix_stream.serve.front import Front, Owner
from sumix_stream.serve.guard import GuardedConnection
from sumix_stream.serve.limits import Limits
from sumix_stream.serve.logs import log_event
from sumix_stream.serve.metrics import Metrics
from sumix_stream.serve.options import Offer
from sumix_stream.serve.outbox import Outbox
from sumix_stream.serve.protocol import ProtocolError
from sumix_stream.serve.protocols import openai, openai_realtime
from sumix_stream.serve.protocols.listener import Connected, Listener
from sumix_stream.serve.reading import Client, Mailbox
from sumix_stream.serve.session import Session
from sumix_stream.serve.workers import RemoteSession, Spawn, Workers
from sumix_stream.streaming.stream import StreamingRecognizer

_log = logging.getLogger(__name__)
_MAX_QUEUE = 4  # messages that the library reads ahead
_AT_ONCE = 4  # connections taken before other sockets get their turn again: a crowd must not hold up who streams
_WAITING = 1024  # connections that the system keeps meanwhile
_LOOK_SECONDS = 1.0  # between looks at who is gone


class Server:
    """Serves one recogniser.

    Args:
        recognizer: used by this server alone, from `start` to `stop`.
        limits: what is allowed.
        spawn: processes that recognise, with recognisers like this one; None = a thread does.
        token: who streams or reads metrics must show it; None = everybody may.
        access: who may stream, instead of `token`.
        model: the name that its model has for clients of OpenAI's API.
        base_path: below which its paths are, such as /asr; a proxy may take it away.
        log_text: put recognised text into the log.
        listeners: ports where other protocols are spoken, within the same limits.

    Raises ValueError for an empty token, and for more streams than the process may have open files.
    """

    name = "sumix"  # of the protocol of PROTOCOL.md, in logs and metrics

    def __init__(
        self,
        recognizer: StreamingRecognizer,
        limits: Limits | None = None,
        *,
        spawn: Spawn | None = None,
        token: str | None = None,
        access: Access | None = None,
        model: str = "sumix",
        base_path: str = "",
        log_text: bool = False,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.recognizer, self.limits = recognizer, within_open_files(limits or Limits())
        if token is not None:
            access = Access([Account(ANYBODY, token)], streams_per_client=self.limits.streams_per_client)
        self.access = access or Access(streams_per_client=self.limits.streams_per_client)
        self._base_path = "/" + base_path.strip("/") if base_path.strip("/") else ""
        self.metrics = Metrics()
        self.offer = Offer(recognizer)
        self.metrics.max_streams.set(self.limits.max_streams)
        self.draining = False
        self.log_text, self.listeners = log_text, listeners
        self._engine: Engine | Workers = (
            Engine(recognizer, self.metrics)
            if spawn is None
            else Workers(recognizer, spawn, self.metrics, self.limits.unresponsive_seconds)
        )
        self._admitted: set[Connected] = set()  # from before the upgrade until the socket is closed
        self._sockets: set[Connected] = set()
        self._waiting: dict[Connected, None] = {}  # that do not stream, oldest first
        self._departures = Departures(self.limits.idle_seconds)
        self._clients: set[Client] = set()
        self.metrics.workers.set_function(lambda: self._engine.num_responsive)
        self.metrics.connections.set_function(lambda: len(self._sockets))
        self._websockets: Mapping[str, type[Client]] = {
            protocol.PATH: Client,
            openai_realtime.PATH: openai_realtime.RealtimeClient,
        }
        self._api = openai.Api(self, model)
        self.mailbox: Mailbox | None = None
        self._site: http.Site | None = None
        self._server: WebsocketServer | None = None
        self._look: asyncio.TimerHandle | None = None

    async def start(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        sock: socket.socket | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> int:
        """Listen on an address, or on a bound socket; the port. Raises OSError where that cannot be."""
        self.mailbox = Mailbox()
        self._site = http.Site(self._base_path, self.limits, {**pages.routes(self), **self._api.routes()})
        await asyncio.to_thread(self._engine.start)
        where = {"host": host, "port": port} if sock is None else {"sock": sock}
        limits = self.limits
        self._server = await serve(
            self._stream,
            **where,
            ssl=tls,
            process_request=self._handshake,
            create_connection=partial(self.front, self),
            select_subprotocol=openai_realtime.select_subprotocol,
            compression=None,  # audio does not shrink, and a small message could unpack into a large one
            max_size=limits.max_message_bytes,
            max_queue=_MAX_QUEUE,
            open_timeout=limits.handshake_seconds,
            close_timeout=limits.send_seconds,
            ping_timeout=None,  # a pong may wait behind audio that nobody reads yet; who is gone is found idle
            server_header=None,
            backlog=_AT_ONCE,  # for asyncio both: how many to take at a time, and how many may wait
        )
        for listening in self._server.sockets:
            with listening.dup() as same:
                same.listen(_WAITING)
        for listener in self.listeners:
            await listener.start(self)
        self._drop_the_gone()
        return self._server.sockets[0].getsockname()[1]

    async def stop(self, drain_seconds: float | None = None) -> None:
        """Refuse new streams, let open ones finish for so long (None = as limited), end what is left, close."""
        self.draining = True
        log_event(_log, "draining", streams=len(self._admitted))
        deadline = time.monotonic() + (self.limits.drain_seconds if drain_seconds is None else drain_seconds)
        while self._admitted and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        fault = ProtocolError("going_away", "the server is shutting down", protocol.GOING_AWAY)
        for client in list(self._clients):
            client.say_last(fault)
        for listener in self.listeners:
            listener.end_all(fault)
        closing = time.monotonic() + min(1.0, self.limits.send_seconds)
        while (self._clients or any(listener.talks for listener in self.listeners)) and time.monotonic() < closing:
            await asyncio.sleep(0.02)
        for listening in (self._server, *self.listeners):
            listening.close()
        for connection in list(self._sockets):  # those too that never said what they want
            connection.transport.abort()
        self._look.cancel()
        await self._site.close()
        for listening in (self._server, *self.listeners):
            await listening.wait_closed()
        await asyncio.to_thread(self._engine.stop)
        log_event(_log, "stopped")

    @property
    def health(self) -> str:
        """ok; degraded while some worker processes do not answer; failed when none does; or draining."""
        if self.draining:
            return "draining"
        answering = self._engine.num_responsive
        return "failed" if not answering else "ok" if answering == self._engine.num_workers else "degraded"

    @property
    def num_workers(self) -> int:
        """Processes that recognise; 1 where a thread does."""
        return self._engine.num_workers

    @property
    def num_responsive(self) -> int:
        """Of these, that answer."""
        return self._engine.num_responsive

    @property
    def has_failed(self) -> bool:
        """Whether nothing recognises any more, and nothing will."""
        return self._engine.has_failed

    @property
    def num_streams(self) -> int:
        """Streams open now, those included that are still shaking hands."""
        return len(self._admitted)

    @property
    def num_sessions(self) -> int:
        """Streams that the recogniser keeps."""
        return self._engine.num_sessions

    def open_session(self, *arguments: object, **options: object) -> Session | RemoteSession:
        """A stream's session; see `Engine.open`."""
        return self._engine.open(*arguments, **options)

    def front(self, owner: Owner, protocol: ServerProtocol, *arguments: object, **options: object) -> Front:
        """The beginning of a connection that may become a websocket, within the server's limits."""
        return Front(owner, protocol, partial(_Connection, self, protocol, *arguments, **options))

    def made(self, connection: Connected) -> None:
        """There is a new socket. It does not stream."""
        self._sockets.add(connection)
        self.wait(connection)

    def wait(self, connection: Connected) -> None:
        """A connection does not stream (any more); beyond so many of these the oldest is closed."""
        self._waiting[connection] = None
        if len(self._waiting) > self.limits.max_waiting:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            self.metrics.refused.labels(reason="crowd").inc()
            oldest.transport.abort()

    def upgraded(self, front: Front, connection: _Connection) -> None:
        """It became a websocket."""
        connection.front = front

    def lost(self, connection: Connected) -> None:
        """A connection is over."""
        self._sockets.discard(connection)
        self._waiting.pop(connection, None)
        self._site.left(connection)
        self.leave(connection)

    def _drop_the_gone(self) -> None:
        """Nobody reads from a client whose audio waits: that it has gone must be looked for, or it keeps its place."""
        self._look = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._drop_the_gone)
        self._departures.look(self._admitted)

    def leave(self, connection: Connected) -> None:
        """Its stream is over, if it had one."""
        if connection in self._admitted:
            self._admitted.discard(connection)
            connection.grant.close()
            self.metrics.open.labels(protocol=connection.protocol_name).dec()
            self.metrics.streams.set(len(self._admitted))

    def too_large(self) -> None:
        """The head of a request was longer than it may be."""
        self.metrics.refused.labels(reason="request_size").inc()

    def is_websocket(self, head: bytes) -> bool:
        """Whether a request asks for one of the websockets that are here."""
        return http.upgrade_path(self._base_path, head) in self._websockets

    def new_http(self, front: Front) -> asyncio.Protocol:
        """The protocol of HTTP requests."""
        return self._site.connection(front)

    def _handshake(self, connection: _Connection, request: Request) -> Response | None:
        """The refusal of a websocket; None lets it stream."""
        is_openai = http.path_below(self._base_path, request.path) == openai_realtime.PATH
        if is_openai:
            connection.front.protocol_name = openai.NAME
        refusal = self.admit(connection.front, http.asked(connection, request))
        if refusal is None:
            return None
        return (openai_realtime.refuse if is_openai else http.refuse)(connection, refusal)

    def admit(self, connection: Connected, asked: Asked, needs_token: bool = True) -> Refusal | None:
        """Why a connection may not stream; None: it may, and counts as a stream until it leaves or is lost.

        One that is lost already, before what it asked for was looked at, would keep a place for ever: it gets none.
        """
        granted = self.access.admit(asked, needs_token)
        if isinstance(granted, Grant) and connection not in self._sockets:
            granted = _unavailable(granted, "gone", "gone: the connection was closed\n")
        elif isinstance(granted, Grant) and self.draining:
            text = "draining: this server is shutting down and takes no new streams\n"
            granted = _unavailable(granted, "draining", text)
        elif isinstance(granted, Grant) and len(self._admitted) >= self.limits.max_streams:
            text = f"full: all {self.limits.max_streams} streams are taken; try again in a few seconds\n"
            granted = _unavailable(granted, "full", text)
        if isinstance(granted, Refusal):
            self.metrics.refused.labels(reason=granted.reason).inc()
            log_event(_log, "refused", reason=granted.reason, protocol=connection.protocol_name)
            return granted
        connection.grant = granted
        self._admitted.add(connection)
        self._waiting.pop(connection, None)
        self.metrics.opened.labels(protocol=connection.protocol_name).inc()
        self.metrics.open.labels(protocol=connection.protocol_name).inc()
        self.metrics.streams.set(len(self._admitted))
        return None

    async def _stream(self, connection: _Connection) -> None:
        """One client, from the handshake to the end."""
        name, began = uuid.uuid4().hex[:12], time.monotonic()
        outbox = Outbox(self.limits.max_unsent)
        connection.when_lost(outbox.end)
        kind = self._websockets[http.path_below(self._base_path, connection.request.path)]
        client = kind(
            connection,
            outbox,
            self.mailbox,
            name,
            limits=self.limits,
            metrics=self.metrics,
            open_session=self.open_session,
            offer=self.offer,
            spend=connection.grant.spend,
            model=self._api.model,
        )
        self._clients.add(client)
        reader: asyncio.Task | None = None
        account = connection.grant.account
        who = {} if account is None or account.name == ANYBODY else {"token": account.name}
        try:
            log_event(_log, "opened", stream=name, protocol=connection.protocol_name, **who)
            client.greet()
            reader = asyncio.create_task(client.read())
            connection.opened()
            reason = await self._write(connection, outbox, name)
        except Exception:
            self.leave(connection.front)  # the library closes it, which may take a while: it may not be read yet
            raise
        finally:
            self._clients.discard(client)
            if reader is not None:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
            if client.session is not None:
                client.session.close()
        seconds = round(time.monotonic() - began, 3)
        log_event(_log, "closed", stream=name, reason=reason, seconds=seconds, bytes=client.num_bytes)

    async def _write(self, connection: _Connection, outbox: Outbox, name: str) -> str:
        """Send what the outbox holds until it ends; why it ended."""
        loop = asyncio.get_running_loop()
        while (event := await outbox.get()) is not None:
            too_slow = loop.call_later(self.limits.send_seconds, self.drop, connection)
            try:
                await connection.send(event.text)
            except ConnectionClosed:
                return "slow_reader" if connection.dropped else "disconnected"
            finally:
                too_slow.cancel()
            if self.log_text and event.kind is EventKind.FINAL:
                log_event(_log, "final", stream=name, result=event.text)
            if event.close_code is not None and not connection.dropped:
                await connection.close(event.close_code)
                return event.kind.value
        if outbox.overflowed and not connection.dropped:
            self.drop(connection)
        return "slow_reader" if connection.dropped else "disconnected"

    def drop(self, connection: Connected) -> None:
        """End a connection whose reader is too slow: no message would reach it, a close frame neither."""
        if connection.dropped:
            return
        connection.dropped = True
        self.metrics.errors.labels(code="slow_reader").inc()
        connection.transport.abort()


class _Connection(GuardedConnection):
    """A websocket, whose server hears when it is slow or over."""

    front: Front

    def __init__(self, owner: Server, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)
        self._owner, self.limits = owner, owner.limits
        self.dropped = False  # its reader was too slow
        self._lost = False
        self._on_lost: Callable[[], None] | None = None

    def on_slow(self) -> None:
        self._owner.drop(self)

    @property
    def grant(self) -> Grant | None:
        """Its place among the streams."""
        return self.front.grant

    @property
    def protocol_name(self) -> str:
        return self.front.protocol_name

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.front.connection_lost(exc)
        self._lost = True
        self._tell_of_loss()

    def when_lost(self, call: Callable[[], None]) -> None:
        """Call this a second after the connection is lost: who reads from it may be waiting for the engine and not
        hear of it; where it does hear, it knows best why."""
        self._on_lost = call
        self._tell_of_loss()

    def _tell_of_loss(self) -> None:
        if self._lost and self._on_lost is not None:
            asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._on_lost)


def _unavailable(granted: Grant, reason: str, text: str) -> Refusal:
    granted.close()
    return Refusal(reason, HTTPStatus.SERVICE_UNAVAILABLE, text, {"Retry_After": "2"})
