"""One stream's audio on its way to a session, within the server's limits, whatever protocol it comes by."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from sumix_stream.serve import events, protocol
from sumix_stream.serve.events import Event, EventKind
from sumix_stream.serve.logs import log_event
from sumix_stream.serve.options import DEFAULTS
from sumix_stream.serve.protocol import AudioFormat, ProtocolError
from sumix_stream.serve.sniffing import compressed

if TYPE_CHECKING:
    from sumix_stream.serve.protocols.listener import Connected
    from sumix_stream.serve.server import Server
    from sumix_stream.serve.session import Session
    from sumix_stream.serve.workers import RemoteSession

_log = logging.getLogger(__name__)


class Intake:
    """From the first word of a stream to its last, in the loop's thread.

    Args:
        server: whose recogniser, limits and metrics these are.
        connection: that has a place there.
        receive: called with all that happens, in order; after an event with a close code comes no other.
    """

    def __init__(self, server: Server, connection: Connected, receive: Callable[[Event], None]) -> None:
        self.name = uuid.uuid4().hex[:12]
        self.session: Session | RemoteSession | None = None
        self.is_over = False  # audio is of no use any more
        self.second_pass = False  # whether each segment's text is replaced when it ends
        self._server, self._connection, self._receive = server, connection, receive
        self._limits, self._loop = server.limits, asyncio.get_running_loop()
        self._began = time.monotonic()
        self._audio = AudioFormat()
        self._num_bytes = self._num_samples = 0
        self._latency = server.offer.latency_seconds(DEFAULTS)
        self._accepted = asyncio.Event()
        self._accepted.set()
        self._closed = False
        self._idle_at = self._loop.time() + self._limits.idle_seconds
        self._deadline = self._loop.time() + self._limits.max_seconds
        self._timer = self._loop.call_soon(self._watch)
        log_event(_log, "opened", stream=self.name, protocol=connection.protocol_name)

    def start(self, **asked: object) -> None:
        """Open the session: audio's form and options are keys of `start` in PROTOCOL.md.

        Raises ProtocolError naming the key that is wrong.
        """
        self._audio, options = protocol.read_start(asked, self._server.offer)
        options = options or DEFAULTS
        self._latency = self._server.offer.latency_seconds(options)
        self.second_pass = self._server.offer.started(options).second_pass
        self.session = self._server.open_session(self._audio.sample_rate, self._report, options, write=events.carry)

    async def take(self, message: bytes) -> None:
        """Audio in the form that was given to `start`; waits until there is room. Raises ProtocolError."""
        await self.push(self._audio.samples(message), message)

    async def push(self, samples: np.ndarray, message: bytes) -> None:
        """Samples (S,) that a message held; waits until there is room. Raises ProtocolError."""
        limits, now = self._limits, self._loop.time()
        if not self._num_bytes and (found := compressed(message)):
            raise ProtocolError("bad_audio", found, protocol.BAD_MESSAGE)
        self._num_bytes += len(message)
        self._num_samples += len(samples)
        if self._num_bytes > limits.max_bytes or self._num_samples > limits.max_seconds * self._audio.sample_rate:
            allowed = f"{limits.max_seconds:g} seconds and {limits.max_bytes} bytes"
            raise ProtocolError("too_long", f"a stream may have at most {allowed} of audio", protocol.POLICY)
        if not len(samples):
            return
        seconds = len(samples) / self._audio.sample_rate
        self._idle_at = min(now + limits.idle_seconds, self._idle_at + seconds / limits.least_rate)
        if not self._connection.grant.spend(seconds):
            raise ProtocolError("quota", "the day's seconds of audio of this token are used up", protocol.POLICY)
        await self._until_less_waits(self._latency + limits.pending_seconds)
        if not self.is_over and not self.session.closed:
            self.session.push(samples)

    async def until_taken(self) -> None:
        """Until less than a chunk waits for the engine: what is recognised so far is of all before that."""
        await self._until_less_waits(self._latency)

    def keep_alive(self) -> None:
        self._idle_at = self._loop.time() + self._limits.idle_seconds

    def commit(self) -> None:
        """Make what was said so far final. Raises ProtocolError where too many commits wait."""
        if not self.session.closed and not self.session.commit():
            fault = "too many commits wait for their results: wait for some first"
            raise ProtocolError("bad_message", fault, protocol.BAD_MESSAGE)

    def end(self) -> None:
        """No more audio: the last results will be received, and then `Done`."""
        self.is_over = True
        self._timer.cancel()
        if not self.session.closed:
            self.session.end()

    def fail(self, fault: ProtocolError) -> None:
        """End the stream at once; what is wrong will be received."""
        if self._closed:
            return
        self._stop(fault)
        if self.session is not None:
            self.session.close()
        self._receive(events.carry(fault.failed))

    def close(self, reason: str) -> None:
        """Nothing more is received."""
        if self._closed:
            return
        self._closed = self.is_over = True
        self._timer.cancel()
        self._accepted.set()
        if self.session is not None:
            self.session.close()
        seconds = round(time.monotonic() - self._began, 3)
        what = {"stream": self.name, "protocol": self._connection.protocol_name, "reason": reason}
        log_event(_log, "closed", **what, seconds=seconds, bytes=self._num_bytes)

    def _stop(self, fault: ProtocolError) -> None:
        self.is_over = True
        self._timer.cancel()
        self._accepted.set()
        self._server.metrics.errors.labels(code=fault.code).inc()
        what = {"stream": self.name, "protocol": self._connection.protocol_name}
        log_event(_log, "fault", **what, code=fault.code)

    def _watch(self) -> None:
        """The one timer of a stream: it goes off when the time could be over, and looks whether it is."""
        now, limits = self._loop.time(), self._limits
        if self.is_over:
            return
        if not self._accepted.is_set():
            self.keep_alive()  # it is we who do not read
        if now >= self._deadline:
            text = f"a stream may last at most {limits.max_seconds:g} seconds"
            self.fail(ProtocolError("too_long", text, protocol.POLICY))
        elif now >= self._idle_at:
            text = f"no audio for {limits.idle_seconds:g} seconds, or less than {limits.least_rate:.0%} of the time"
            fault = ProtocolError("idle", text, protocol.POLICY)
            if self.session is None or self.session.closed:
                self.fail(fault)
            else:  # what was said becomes final first
                self._stop(fault)
                self.session.end(fault.failed)
        else:
            self._timer = self._loop.call_at(min(self._deadline, self._idle_at), self._watch)

    async def _until_less_waits(self, seconds: float) -> None:
        """Not reading is what pauses a sender who is faster than recognition."""
        while not self.is_over and not self.session.closed and self.session.pending_seconds >= seconds:
            self._accepted.clear()
            await self._accepted.wait()
            self.keep_alive()

    def _report(self, happened: list[Event]) -> None:
        """From the engine's thread."""
        self._server.mailbox.send(self._take, happened)

    def _take(self, happened: list[Event]) -> None:
        self._accepted.set()
        if self._closed:
            return
        for event in happened:
            if event.kind is EventKind.FINAL and self._server.log_text:
                log_event(_log, "final", stream=self.name, result=event.happened.text)
            if event.kind is not EventKind.AUDIO_ACCEPTED:
                self._receive(event)
