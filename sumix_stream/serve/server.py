"""The websocket server: admission, limits, backpressure and a graceful end. What is said is in PROTOCOL.md."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
import uuid
from collections.abc import Sequence
from http import HTTPStatus

from websockets.asyncio.server import Server as WebsocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from sumix_stream.serve import http, protocol
from sumix_stream.serve.access import ANYBODY, Access, Account, Asked, Grant, Refusal, unauthorised
from sumix_stream.serve.descriptors import within_open_files
from sumix_stream.serve.engine import Engine
from sumix_stream.serve.events import Event, EventKind
from sumix_stream.serve.guard import GuardedConnection
from sumix_stream.serve.limits import Limits
from sumix_stream.serve.logs import log_event
from sumix_stream.serve.metrics import Metrics
from sumix_stream.serve.options import Offer
from sumix_stream.serve.outbox import Outbox
from sumix_stream.serve.protocol import ProtocolError
from sumix_stream.serve.protocols.listener import Connected, Listener
from sumix_stream.serve.reading import Client, Mailbox, last_words
from sumix_stream.serve.session import Session
from sumix_stream.serve.workers import RemoteSession, Spawn, Workers
from sumix_stream.streaming.stream import StreamingRecognizer

_log = logging.getLogger(__name__)
_MAX_QUEUE = 4  # messages that the library reads ahead
_AT_ONCE = 4  # connections taken before other sockets get their turn again: a crowd must not hold up who streams
_WAITING = 1024  # connections that the system keeps meanwhile
OWN = "sumix"  # name of the protocol of PROTOCOL.md, in logs and metrics


class Server:
    """Serves one recogniser.

    Args:
        recognizer: used by this server alone, from `start` to `stop`.
        limits: what is allowed.
        spawn: processes that recognise, with recognisers like this one; None = a thread does.
        token: who streams or reads metrics must show it; None = everybody may.
        access: who may stream, instead of `token`.
        base_path: below which its paths are, such as /asr; a proxy may take it away.
        log_text: put recognised text into the log.
        listeners: ports where other protocols are spoken, within the same limits.

    Raises ValueError for an empty token, and for more streams than the process may have open files.
    """

    def __init__(
        self,
        recognizer: StreamingRecognizer,
        limits: Limits | None = None,
        *,
        spawn: Spawn | None = None,
        token: str | None = None,
        access: Access | None = None,
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
        self._outboxes: set[Outbox] = set()
        self.offer = Offer(recognizer)
        self.metrics.workers.set_function(lambda: self._engine.num_responsive)
        self.metrics.connections.set_function(lambda: len(self._sockets))
        self.mailbox: Mailbox | None = None
        self._server: WebsocketServer | None = None

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
        await asyncio.to_thread(self._engine.start)
        where = {"host": host, "port": port} if sock is None else {"sock": sock}
        limits = self.limits
        self._server = await serve(
            self._stream,
            **where,
            ssl=tls,
            process_request=self._answer,
            create_connection=self.connection,
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
        return self._server.sockets[0].getsockname()[1]

    async def stop(self, drain_seconds: float | None = None) -> None:
        """Refuse new streams, let open ones finish for so long (None = as limited), end what is left, close."""
        self.draining = True
        log_event(_log, "draining", streams=len(self._admitted))
        deadline = time.monotonic() + (self.limits.drain_seconds if drain_seconds is None else drain_seconds)
        while self._admitted and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        fault = ProtocolError("going_away", "the server is shutting down", protocol.GOING_AWAY)
        for outbox in list(self._outboxes):
            outbox.put(last_words(fault))
        for listener in self.listeners:
            listener.end_all(fault)
        closing = time.monotonic() + min(1.0, self.limits.send_seconds)
        while (self._outboxes or any(listener.talks for listener in self.listeners)) and time.monotonic() < closing:
            await asyncio.sleep(0.02)
        for listening in (self._server, *self.listeners):
            listening.close()
        for connection in list(self._sockets):  # those too that never said what they want
            connection.transport.abort()
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

    def connection(self, *arguments: object, **options: object) -> GuardedConnection:
        """One of a websocket, within the server's limits."""
        return _Connection(self, *arguments, **options)

    def open_session(self, *arguments: object, **options: object) -> Session | RemoteSession:
        """A stream's session; see `Engine.open`."""
        return self._engine.open(*arguments, **options)

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

    def lost(self, connection: Connected) -> None:
        """A socket is closed."""
        self._sockets.discard(connection)
        self._waiting.pop(connection, None)
        self.leave(connection)

    def leave(self, connection: Connected) -> None:
        """Its stream is over, if it had one."""
        if connection in self._admitted:
            self._admitted.discard(connection)
            connection.grant.close()
            self.metrics.open.labels(protocol=connection.protocol_name).dec()
            self.metrics.streams.set(len(self._admitted))

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """The response to an HTTP request; None lets it stream."""
        path = http.path_below(self._base_path, request.path)
        if path == protocol.PATH and http.is_upgrade(request):
            return self._admit(connection, request)
        if path == "/":
            policy = {"Content_Security_Policy": http.page_policy()}
            return http.answer(connection, HTTPStatus.OK, http.page(), "text/html", **policy)
        if path == "/health":
            state = self.health
            status = HTTPStatus.OK if state in ("ok", "degraded") else HTTPStatus.SERVICE_UNAVAILABLE
            body = protocol.dump(
                status=state,
                streams=len(self._admitted),
                max_streams=self.limits.max_streams,
                workers=self._engine.num_workers,
                workers_ok=self._engine.num_responsive,
            )
            return http.answer(connection, status, body, "application/json")
        if path == "/live":
            state = self.health
            status = HTTPStatus.SERVICE_UNAVAILABLE if state == "failed" else HTTPStatus.OK
            return http.answer(connection, status, protocol.dump(status=state), "application/json")
        if path == "/metrics":
            if not self.access.is_open_to(http.asked(connection, request)):
                return http.refuse(connection, unauthorised())
            return http.answer(connection, HTTPStatus.OK, self.metrics.text(), self.metrics.content_type)
        if path == protocol.PATH:
            text = f"this is a websocket: connect to {protocol.PATH} with an Upgrade header\n"
            return http.answer(connection, HTTPStatus.UPGRADE_REQUIRED, text, Upgrade="websocket")
        return http.answer(connection, HTTPStatus.NOT_FOUND, "nothing is here; the page is at /\n")

    def _admit(self, connection: _Connection, request: Request) -> Response | None:
        refusal = self.admit(connection, http.asked(connection, request))
        return None if refusal is None else http.refuse(connection, refusal)

    def admit(self, connection: Connected, asked: Asked, needs_token: bool = True) -> Refusal | None:
        """Why a connection may not stream; None: it may, and counts as a stream until it leaves or is lost."""
        granted = self.access.admit(asked, needs_token)
        if isinstance(granted, Grant) and self.draining:
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
        client = Client(
            connection,
            outbox,
            self.mailbox,
            name,
            limits=self.limits,
            metrics=self.metrics,
            open_session=self._engine.open,
            offer=self.offer,
            spend=connection.grant.spend,
        )
        self._outboxes.add(outbox)
        account = connection.grant.account
        who = {} if account is None or account.name == ANYBODY else {"token": account.name}
        log_event(_log, "opened", stream=name, protocol=connection.protocol_name, **who)
        outbox.put(Event(EventKind.READY, self._greeting()))
        reader = asyncio.create_task(client.read())
        connection.opened()
        try:
            reason = await self._write(connection, outbox, name)
        finally:
            self._outboxes.discard(outbox)
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

    def _greeting(self) -> str:
        timebase, chunk_size = self.recognizer.timebase, self.recognizer.context.chunk_size
        return protocol.dump(
            type="ready",
            protocol=protocol.VERSION,
            sample_rate=timebase.sample_rate,
            chunk_seconds=timebase.encoder_frame_time(chunk_size),
            latency_seconds=round(timebase.chunk_latency_seconds(chunk_size), 4),
            max_seconds=self.limits.max_seconds,
            max_message_bytes=self.limits.max_message_bytes,
            idle_seconds=self.limits.idle_seconds,
            options=self.offer.describe(),
        )


class _Connection(GuardedConnection):
    """Tells when its socket comes and goes, whether or not a websocket came of it."""

    def __init__(self, owner: Server, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)
        self._owner, self.limits = owner, owner.limits
        self.dropped = False  # its reader was too slow
        self.grant: Grant | None = None
        self.protocol_name = OWN

    def on_slow(self) -> None:
        self._owner.drop(self)

    def on_large_request(self) -> None:
        self._owner.metrics.refused.labels(reason="request_size").inc()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._owner.made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._owner.lost(self)


def _unavailable(granted: Grant, reason: str, text: str) -> Refusal:
    granted.close()
    return Refusal(reason, HTTPStatus.SERVICE_UNAVAILABLE, text, {"Retry_After": "2"})
