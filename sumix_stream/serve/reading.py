"""The reading side of a connection: audio in, at the pace of recognition.

At 20 ms a packet this is the server's busiest loop: no task, no timer and no conversion belongs to a packet.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

import numpy as np
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode, apply_mask
from websockets.protocol import State

from sumix_stream.serve import protocol
from sumix_stream.serve.events import Event, EventKind
from sumix_stream.serve.limits import Limits
from sumix_stream.serve.logs import log_event
from sumix_stream.serve.metrics import Metrics
from sumix_stream.serve.options import DEFAULTS, Offer, StreamOptions
from sumix_stream.serve.outbox import Outbox
from sumix_stream.serve.protocol import AudioFormat, ProtocolError
from sumix_stream.serve.session import Session
from sumix_stream.serve.sniffing import compressed

_log = logging.getLogger(__name__)
_WHOLE_BINARY = b"\x82"  # the first byte of a frame: the only one of its message, and binary
_LIBRARY_FAULTS = {1007: "bad_message", 1009: "too_big"}


class Mailbox:
    """Takes what other threads report to the event loop; however much it is, it wakes the loop once."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._messages: deque[tuple[Callable[[list[Event]], None], list[Event]]] = deque()
        self._called = False

    def send(self, receive: Callable[[list[Event]], None], events: list[Event]) -> None:
        """Have `receive` called with events, in the loop's thread and in order. From any thread."""
        self._messages.append((receive, events))
        if not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._called = False  # before it is emptied: who appends later calls again
        while self._messages:
            receive, events = self._messages.popleft()
            receive(events)


class DirectConnection(ServerConnection):
    """A connection that hands binary messages to `direct`, if there is one, within the read from the socket.

    `recv` wakes a task for each message, which costs more than all that is done with a packet of audio. A message that
    goes to `recv` unsets `direct`, so that nothing overtakes it; who receives sets it again.

    Frames of the common kind (a whole binary message of less than 64 KiB, whole in one read) are taken apart here; the
    library's parser of all kinds, which costs more, gets everything else and what is left of a read.
    """

    direct: Callable[[bytes], None] | None = None

    def data_received(self, data: bytes) -> None:
        if self.direct is not None and self._is_between_messages():
            data = self._take_messages(data)
        if data:
            super().data_received(data)

    def _is_between_messages(self) -> bool:
        """Whether the library would take the next byte as the first of a message."""
        protocol = self.protocol
        within = getattr(protocol, "current_size", 0)  # of a message in fragments; 0: the library has changed
        if protocol.state is not State.OPEN or within is not None:
            return False
        waiting = protocol.parser
        while (inner := getattr(waiting, "gi_yieldfrom", None)) is not None:
            waiting = inner
        return waiting.__name__ == "at_eof"  # elsewhere within a frame

    def _take_messages(self, data: bytes) -> bytes:
        """Hand over whole binary messages from the beginning of what was read; the rest (RFC 6455, 5.2)."""
        start, longest = 0, self.protocol.max_message_size
        while self.direct is not None and data[start : start + 1] == _WHOLE_BINARY:
            length = data[start + 1] - 0x80 if len(data) > start + 1 else -1  # below 0: not masked
            begin = start + 6
            if length == 126:
                length, begin = int.from_bytes(data[start + 2 : start + 4], "big"), start + 8
            if not 0 <= length <= longest or (length == 127 and begin == start + 6) or begin + length > len(data):
                break
            start = begin + length
            self.direct(apply_mask(data[begin:start], data[begin - 4 : begin]))
        return data[start:]

    def process_event(self, event: object) -> None:
        if self.direct is not None and isinstance(event, Frame):
            if event.opcode is Opcode.BINARY and event.fin:
                self.direct(event.data)
                return
            self.direct = None
        super().process_event(event)


class Client:
    """One client's audio on its way to a session, and what it does wrong.

    Args:
        limits: of `Limits`, those of time, bytes and waiting audio.
        open_session: a session for audio of a rate (Hz) that reports to a function, with options.
        offer: what options there are.
        spend: counts seconds of audio; whether the client may have them.
        model: the name that the server's model has for clients.
    """

    def __init__(
        self,
        connection: DirectConnection,
        outbox: Outbox,
        mailbox: Mailbox,
        name: str,
        *,
        limits: Limits,
        metrics: Metrics,
        open_session: Callable[[int, Callable[[list[Event]], None], StreamOptions], Session],
        offer: Offer,
        spend: Callable[[float], bool] = lambda seconds: True,
        model: str = "",
    ) -> None:
        self.session: Session | None = None
        self.num_bytes = 0
        self._connection, self._outbox, self._mailbox, self._name = connection, outbox, mailbox, name
        self._limits, self._metrics, self._open_session, self._spend = limits, metrics, open_session, spend
        self._offer, self._options, self._model = offer, DEFAULTS, model
        self._most_pending = offer.latency_seconds(DEFAULTS) + limits.pending_seconds
        self._audio = AudioFormat()
        self._seconds = 0.0  # of audio
        self._loop = asyncio.get_running_loop()
        self._audio_accepted = asyncio.Event()
        self._audio_accepted.set()
        self._idle_at = self._loop.time() + limits.idle_seconds
        self._deadline = self._loop.time() + limits.max_seconds
        self._bridged_until = self._loop.time() + limits.bridged_seconds  # by keepalives at most
        self._over = False  # a fault was found: nothing more is of use

    def greet(self) -> None:
        """Say the first word."""
        self._outbox.put(Event(EventKind.READY, protocol.ready(self._offer, self._limits)))

    async def read(self) -> None:
        """Take messages until the connection is closed; what the client does wrong becomes its last message."""
        try:
            await self._until_fault()
            while True:  # a close frame may lie behind what is of no use any more
                await self._connection.recv()
        except ConnectionClosed as closed:
            found_by_library = closed.sent is not None and not closed.rcvd_then_sent and not self._outbox.ended
            if found_by_library:
                code = _LIBRARY_FAULTS.get(closed.sent.code, "websocket")
                self._metrics.errors.labels(code=code).inc()
                log_event(_log, "fault", stream=self._name, code=code)
            self._outbox.end()

    async def _until_fault(self) -> None:
        self._timer = self._loop.call_soon(self._watch)
        try:
            await self._read()
        except ConnectionClosed:
            raise
        except ProtocolError as fault:
            self._end_with(fault)
        except Exception:
            self._fail()
        finally:
            self._connection.direct = None
            self._timer.cancel()

    def _watch(self) -> None:
        """The one timer of a connection: it goes off when the time could be over, and looks whether it is."""
        now, limits = self._loop.time(), self._limits
        if self._over:
            return
        if not (self._audio_accepted.is_set() and self._has_room()):
            self._idle_at = now + limits.idle_seconds  # it is we who do not read
        if now >= self._deadline:
            text = f"a stream may last at most {limits.max_seconds:g} seconds"
            self._end_with(ProtocolError("too_long", text, protocol.POLICY))
        elif now >= self._idle_at:
            silence = f"no audio for {limits.idle_seconds:g} seconds"
            if now >= self._bridged_until and limits.bridged_seconds > limits.idle_seconds:
                silence = f"nothing but keepalives for {limits.bridged_seconds:g} seconds"
            text = f"{silence}, or audio for less than {limits.least_rate:.0%} of the time"
            self._end_after_last_words(ProtocolError("idle", text, protocol.POLICY))
        else:
            due = min(self._deadline, self._idle_at)
            self._timer = self._loop.call_at(due, self._watch)

    def _fail(self) -> None:
        _log.exception("reading failed")
        self._end_with(ProtocolError("internal", "the server failed; open a new stream", protocol.INTERNAL))

    def _end_after_last_words(self, fault: ProtocolError) -> None:
        """What was said becomes final, and then the stream ends."""
        if self.session is None or self.session.closed:
            self._end_with(fault)
            return
        self._over = True
        self._connection.direct = None
        self._audio_accepted.set()
        self._metrics.errors.labels(code=fault.code).inc()
        log_event(_log, "fault", stream=self._name, code=fault.code)
        self.session.end(fault.failed)

    def _end_with(self, fault: ProtocolError) -> None:
        self._over = True
        self._audio_accepted.set()
        if self.session is not None:
            self.session.close()
        self._metrics.errors.labels(code=fault.code).inc()
        log_event(_log, "fault", stream=self._name, code=fault.code)
        self.say_last(fault)

    def say_last(self, fault: ProtocolError) -> None:
        """Tell why the stream is over."""
        self._outbox.put(Event(EventKind.ERROR, protocol.error(fault), fault.close_code))

    async def _read(self) -> None:
        while not self._over:
            self._connection.direct = self._take_directly
            message = await self._connection.recv()
            self._connection.direct = None  # others may wait behind this one
            if isinstance(message, str):
                if not self._over and self._take_text(message):
                    return
            else:
                await self._until_there_is_room()
                if not self._over:
                    self._take_audio(message)
            if self.session is not None and self.session.closed:
                return  # the engine has found a fault

    def _take_directly(self, message: bytes) -> None:
        """Audio that need not wake a task, because nothing waits before it. What comes next must, if it has to wait."""
        try:
            self._take_audio(message)
            if self._has_room():
                return
        except ProtocolError as fault:
            self._end_with(fault)
        except Exception:
            self._fail()
        self._connection.direct = None

    def _take_text(self, message: str) -> bool:
        """Whether it is the last message."""
        content = protocol.read_text(message)
        kind = content["type"]
        if kind == "end":
            self._open().end()
            return True
        if kind == "start":
            self._start(content)
        elif kind == "keepalive":
            later = self._loop.time() + self._limits.idle_seconds
            self._idle_at = max(self._idle_at, min(later, self._bridged_until))
        elif not self._open().commit():
            fault = "too many commits wait for their results: wait for some first"
            raise ProtocolError("bad_message", fault, protocol.BAD_MESSAGE)
        return False

    def _start(self, content: dict) -> None:
        if self.session is not None:
            raise ProtocolError("bad_start", "start must come first, and once", protocol.BAD_MESSAGE)
        self._audio, options = protocol.read_start(content, self._offer)
        if options is not None:
            self._options = options
            self._most_pending = self._offer.latency_seconds(options) + self._limits.pending_seconds
            self._outbox.put(protocol.write(self._offer.started(options)))
        self._open()

    def _take_audio(self, message: bytes) -> None:
        if not self.num_bytes and (found := compressed(message)):
            raise ProtocolError("bad_audio", found, protocol.BAD_MESSAGE)
        self._push(self._audio.samples(message), len(message), self._audio.sample_rate)

    def _push(self, samples: np.ndarray, num_bytes: int, sample_rate: int) -> None:
        """Count samples (S,) that came in so many bytes, and hand them over."""
        limits, seconds = self._limits, len(samples) / sample_rate
        self.num_bytes += num_bytes
        self._seconds += seconds
        if self.num_bytes > limits.max_bytes or self._seconds > limits.max_seconds:
            allowed = f"{limits.max_seconds:g} seconds and {limits.max_bytes} bytes"
            raise ProtocolError("too_long", f"a stream may have at most {allowed} of audio", protocol.POLICY)
        if len(samples):
            now = self._loop.time()
            earned = seconds / limits.least_rate
            self._idle_at = min(now + limits.idle_seconds, self._idle_at + earned)
            self._bridged_until = min(now + limits.bridged_seconds, max(now, self._bridged_until) + earned)
            if not self._spend(seconds):
                raise ProtocolError("quota", "the day's seconds of audio of this token are used up", protocol.POLICY)
            (self.session or self._open()).push(samples)

    def _open(self) -> Session:
        if self.session is None:
            self.session = self._new_session()
        return self.session

    def _new_session(self) -> Session:
        return self._open_session(self._audio.sample_rate, self._report, self._options)

    def _has_room(self) -> bool:
        session = self.session
        return session is None or session.closed or session.pending_seconds <= self._most_pending

    async def _until_there_is_room(self) -> None:
        """Not reading is what pauses a sender who is faster than recognition."""
        if self._has_room():
            return
        while not self._has_room():
            self._audio_accepted.clear()
            await self._audio_accepted.wait()
        self._idle_at = self._loop.time() + self._limits.idle_seconds

    def _report(self, events: list[Event]) -> None:
        """From the engine's thread."""
        self._mailbox.send(self._take, events)

    def _take(self, events: list[Event]) -> None:
        self._audio_accepted.set()
        for event in events:
            if event.kind != EventKind.AUDIO_ACCEPTED:
                self._outbox.put(event)
