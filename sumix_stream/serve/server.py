"""The websocket server: admission, limits, backpressure and a graceful end. What is said is in PROTOCOL.md."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
import uuid
from http import HTTPStatus

from websockets.asyncio.server import Server as WebsocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from sumix_stream.decode.streaming import StreamingRecognizer
from sumix_stream.serve import http, protocol
from sumix_stream.serve.engine import Event, Session
from sumix_stream.serve.engines import Engines
from sumix_stream.serve.limits import Limits
from sumix_stream.serve.logs import log_event
from sumix_stream.serve.metrics import Metrics
from sumix_stream.serve.outbox import Outbox
from sumix_stream.serve.protocol import AudioFormat, ProtocolError

_log = logging.getLogger(__name__)
_MAX_QUEUE = 4  # messages that the library reads ahead
_LIBRARY_FAULTS = {1007: "bad_message", 1009: "too_big"}


class Server:
    """Serves one recogniser.

    Args:
        recognizer: used by this server alone, from `start` to `stop`.
        limits: what is allowed.
        workers: threads that recognise, each with its own streams.
        token: who streams or reads metrics must show it; None = everybody may.
        log_text: put recognised text into the log.
    """

    def __init__(
        self,
        recognizer: StreamingRecognizer,
        limits: Limits | None = None,
        *,
        workers: int = 1,
        token: str | None = None,
        log_text: bool = False,
    ) -> None:
        self.recognizer, self.limits = recognizer, limits or Limits()
        self.metrics = Metrics()
        self.metrics.max_streams.set(self.limits.max_streams)
        self.draining = False
        self._token, self._log_text = token, log_text
        self._engines = Engines(recognizer, self.metrics, workers)
        self._admitted: set[ServerConnection] = set()  # from before the upgrade until the socket is closed
        self._sockets: set[ServerConnection] = set()
        self._outboxes: set[Outbox] = set()
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
        await asyncio.to_thread(self._engines.start)
        where = {"host": host, "port": port} if sock is None else {"sock": sock}
        limits = self.limits
        self._server = await serve(
            self._stream,
            **where,
            ssl=tls,
            process_request=self._answer,
            create_connection=self._connection,
            compression=None,  # audio does not shrink, and a small message could unpack into a large one
            max_size=limits.max_message_bytes,
            max_queue=_MAX_QUEUE,
            open_timeout=limits.handshake_seconds,
            close_timeout=limits.send_seconds,
            ping_timeout=None,  # a pong may wait behind audio that nobody reads yet; who is gone is found idle
            server_header=None,
        )
        return self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse new streams, let open ones finish for `drain_seconds`, end what is left, close."""
        self.draining = True
        log_event(_log, "draining", streams=len(self._admitted))
        deadline = time.monotonic() + self.limits.drain_seconds
        while self._admitted and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        fault = ProtocolError("going_away", "the server is shutting down", protocol.GOING_AWAY)
        for outbox in list(self._outboxes):
            outbox.put(_last_words(fault))
        closing = time.monotonic() + min(1.0, self.limits.send_seconds)
        while self._outboxes and time.monotonic() < closing:
            await asyncio.sleep(0.02)
        self._server.close()
        for connection in list(self._sockets):  # those too that never said what they want
            connection.transport.abort()
        await self._server.wait_closed()
        await asyncio.to_thread(self._engines.stop)
        log_event(_log, "stopped")

    @property
    def num_streams(self) -> int:
        """Streams open now, those included that are still shaking hands."""
        return len(self._admitted)

    @property
    def num_sessions(self) -> int:
        """Streams that the recogniser keeps."""
        return self._engines.num_sessions

    def _connection(self, *arguments: object, **options: object) -> ServerConnection:
        return _Connection(self, *arguments, **options)

    def _made(self, connection: ServerConnection) -> None:
        self._sockets.add(connection)

    def _lost(self, connection: ServerConnection) -> None:
        self._sockets.discard(connection)
        self._admitted.discard(connection)
        self.metrics.streams.set(len(self._admitted))

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """The response to an HTTP request; None lets it stream."""
        path = request.path.partition("?")[0]
        if path == protocol.PATH and http.is_upgrade(request):
            return self._admit(connection, request)
        if path == "/":
            policy = {"Content_Security_Policy": http.page_policy()}
            return http.answer(connection, HTTPStatus.OK, http.page(), "text/html", **policy)
        if path == "/health":
            status = HTTPStatus.SERVICE_UNAVAILABLE if self.draining else HTTPStatus.OK
            body = protocol.dump(
                status="draining" if self.draining else "ok",
                streams=len(self._admitted),
                max_streams=self.limits.max_streams,
            )
            return http.answer(connection, status, body, "application/json")
        if path == "/metrics":
            if self._token is not None and not http.has_token(request, self._token):
                return _unauthorised(connection)
            return http.answer(connection, HTTPStatus.OK, self.metrics.text(), self.metrics.content_type)
        if path == protocol.PATH:
            text = f"this is a websocket: connect to {protocol.PATH} with an Upgrade header\n"
            return http.answer(connection, HTTPStatus.UPGRADE_REQUIRED, text, Upgrade="websocket")
        return http.answer(connection, HTTPStatus.NOT_FOUND, "nothing is here; the page is at /\n")

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        reason = None
        if self._token is not None and not http.has_token(request, self._token):
            reason, response = "token", _unauthorised(connection)
        elif not http.from_here(request):
            text = "pages of other sites may not stream to this server\n"
            reason, response = "origin", http.answer(connection, HTTPStatus.FORBIDDEN, text)
        elif self.draining:
            text = "draining: this server is shutting down and takes no new streams\n"
            reason, response = "draining", _unavailable(connection, text)
        elif len(self._admitted) >= self.limits.max_streams:
            text = f"full: all {self.limits.max_streams} streams are taken; try again in a few seconds\n"
            reason, response = "full", _unavailable(connection, text)
        if reason is not None:
            self.metrics.refused.labels(reason=reason).inc()
            log_event(_log, "refused", reason=reason)
            return response
        self._admitted.add(connection)
        self.metrics.opened.inc()
        self.metrics.streams.set(len(self._admitted))
        return None

    async def _stream(self, connection: ServerConnection) -> None:
        """One client, from the handshake to the end."""
        name, began = uuid.uuid4().hex[:12], time.monotonic()
        outbox = Outbox(self.limits.max_unsent)
        client = _Client(self, connection, outbox, name)
        self._outboxes.add(outbox)
        log_event(_log, "opened", stream=name)
        outbox.put(Event("ready", self._greeting()))
        reader = asyncio.create_task(client.read())
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

    async def _write(self, connection: ServerConnection, outbox: Outbox, name: str) -> str:
        """Send what the outbox holds until it ends; why it ended."""
        while (event := await outbox.get()) is not None:
            try:
                await asyncio.wait_for(connection.send(event.text), self.limits.send_seconds)
            except asyncio.TimeoutError:
                return self._drop(connection)
            except ConnectionClosed:
                return "disconnected"
            if self._log_text and event.kind == "final":
                log_event(_log, "final", stream=name, result=event.text)
            if event.close_code is not None:
                await connection.close(event.close_code)
                return event.kind
        return self._drop(connection) if outbox.overflowed else "disconnected"

    def _drop(self, connection: ServerConnection) -> str:
        """End a connection whose reader is too slow: no message would reach it, a close frame neither."""
        self.metrics.errors.labels(code="slow_reader").inc()
        connection.transport.abort()
        return "slow_reader"

    def _greeting(self) -> str:
        timebase, chunk_size = self.recognizer.model.timebase, self.recognizer.context.chunk_size
        return protocol.dump(
            type="ready",
            protocol=protocol.VERSION,
            sample_rate=timebase.sample_rate,
            chunk_seconds=timebase.encoder_frame_time(chunk_size),
            latency_seconds=round(timebase.chunk_latency_seconds(chunk_size), 4),
            max_seconds=self.limits.max_seconds,
            max_message_bytes=self.limits.max_message_bytes,
        )


class _Connection(ServerConnection):
    """Tells when its socket comes and goes, whether or not a websocket came of it."""

    def __init__(self, owner: Server, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)
        self._owner = owner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._owner._made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._owner._lost(self)


class _Client:
    """The reading side of a connection: audio in, at the pace of recognition."""

    def __init__(self, server: Server, connection: ServerConnection, outbox: Outbox, name: str) -> None:
        self.server, self.connection, self.outbox, self.name = server, connection, outbox, name
        self.session: Session | None = None
        self.num_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._deadline = time.monotonic() + server.limits.max_seconds

    async def read(self) -> None:
        """Take messages until the connection is closed; what the client does wrong becomes its last message."""
        try:
            await self._until_fault()
            while True:  # a close frame may lie behind what is of no use any more
                await self.connection.recv()
        except ConnectionClosed as closed:
            found_by_library = closed.sent is not None and not closed.rcvd_then_sent and not self.outbox.ended
            if found_by_library:
                code = _LIBRARY_FAULTS.get(closed.sent.code, "websocket")
                self.server.metrics.errors.labels(code=code).inc()
                log_event(_log, "fault", stream=self.name, code=code)
            self.outbox.end()

    async def _until_fault(self) -> None:
        try:
            await self._read()
        except ConnectionClosed:
            raise
        except ProtocolError as fault:
            self._end_with(fault)
        except Exception:
            _log.exception("reading failed")
            self._end_with(ProtocolError("internal", "the server failed; open a new stream", protocol.INTERNAL))

    def _end_with(self, fault: ProtocolError) -> None:
        if self.session is not None:
            self.session.close()
        self.server.metrics.errors.labels(code=fault.code).inc()
        log_event(_log, "fault", stream=self.name, code=fault.code)
        self.outbox.put(_last_words(fault))

    async def _read(self) -> None:
        limits, audio = self.server.limits, AudioFormat()
        seconds = 0.0
        last_audio = time.monotonic()
        while True:
            message = await self._receive(last_audio + limits.idle_seconds)
            if isinstance(message, str):
                content = protocol.read_text(message)
                if content["type"] == "end":
                    self._open(audio).end()
                    return
                if self.session is not None:
                    raise ProtocolError("bad_start", "start must come first, and once", protocol.BAD_MESSAGE)
                audio = protocol.read_start(content)
                self._open(audio)
                continue
            samples = audio.samples(message)
            self.num_bytes += len(message)
            seconds += len(samples) / audio.sample_rate
            if self.num_bytes > limits.max_bytes or seconds > limits.max_seconds:
                allowed = f"{limits.max_seconds:g} seconds and {limits.max_bytes} bytes"
                raise ProtocolError("too_long", f"a stream may have at most {allowed} of audio", protocol.POLICY)
            if len(samples):
                last_audio = time.monotonic()
                self._open(audio).push(samples)
                await self._until_there_is_room()
            if self.session is not None and self.session.closed:
                return  # the engine has found a fault

    async def _receive(self, idle_deadline: float) -> str | bytes:
        try:
            waiting = min(idle_deadline, self._deadline) - time.monotonic()
            return await asyncio.wait_for(self.connection.recv(), waiting)
        except asyncio.TimeoutError:
            if time.monotonic() >= self._deadline:
                text = f"a stream may last at most {self.server.limits.max_seconds:g} seconds"
                raise ProtocolError("too_long", text, protocol.POLICY) from None
            text = f"no audio for {self.server.limits.idle_seconds:g} seconds"
            raise ProtocolError("idle", text, protocol.POLICY) from None

    def _open(self, audio: AudioFormat) -> Session:
        if self.session is None:
            self.session = self.server._engines.open(audio.sample_rate, self._report)
        return self.session

    async def _until_there_is_room(self) -> None:
        """Not reading is what pauses a sender who is faster than recognition."""
        session, rate = self.session, self.session.sample_rate
        while session.num_pending > session.wanted + self.server.limits.pending_seconds * rate and not session.closed:
            self._room.clear()
            await self._room.wait()

    def _report(self, events: list[Event]) -> None:
        """From the engine's thread."""
        self._loop.call_soon_threadsafe(self._take, events)

    def _take(self, events: list[Event]) -> None:
        self._room.set()
        for event in events:
            if event.kind != "room":
                self.outbox.put(event)


def _last_words(fault: ProtocolError) -> Event:
    return Event("error", protocol.error(fault), fault.close_code)


def _unauthorised(connection: ServerConnection) -> Response:
    text = "a token is needed: Authorization: Bearer TOKEN, or ?token=TOKEN\n"
    return http.answer(connection, HTTPStatus.UNAUTHORIZED, text, WWW_Authenticate="Bearer")


def _unavailable(connection: ServerConnection, text: str) -> Response:
    return http.answer(connection, HTTPStatus.SERVICE_UNAVAILABLE, text, Retry_After="2")
