"""Wyoming, the protocol of Home Assistant's voice services, over TCP: utterances one after the other on a connection.

The protocol is described at https://github.com/OHF-Voice/wyoming.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from sumix_stream.search.hotwords import unwritable
from sumix_stream.search.hypothesis import Word
from sumix_stream.serve import protocol
from sumix_stream.serve.access import Asked, Grant
from sumix_stream.serve.events import Done, Failed, Final, Partial
from sumix_stream.serve.options import LONGEST_HOTWORD, MOST_HOTWORDS
from sumix_stream.serve.outbox import Outbox
from sumix_stream.serve.protocol import ProtocolError
from sumix_stream.serve.protocols.intake import Intake
from sumix_stream.serve.protocols.listener import Address, Listener
from sumix_stream.serve.protocols.wyoming_events import LONGEST_LINE, EventReader, WireEvent, write_event
from sumix_stream.serve.within import within

if TYPE_CHECKING:
    from sumix_stream.serve.server import Server

PROGRAM = "sumix-stream"
_SAMPLES = {2: "<i2", 4: "<i4"}  # by bytes
_MOST_CHANNELS = 2
_BEAM = 4  # of utterances with names and terms, where the server's own search is greedy
_LINGER_SECONDS = 1.0  # that the last event has to arrive before what the client still sends resets the connection
_log = logging.getLogger(__name__)


class Wyoming(Listener):
    """The port for clients of Wyoming.

    Args:
        model: the model's name.
        languages: that it knows, such as en: clients offer those.
    """

    name = "wyoming"

    def __init__(self, address: Address, model: str = PROGRAM, languages: Sequence[str] = ("en",)) -> None:
        super().__init__(address)
        self.model, self.languages = model, list(languages)

    async def listen(self, server: Server) -> None:
        self.server = server
        self._listening = await asyncio.start_server(self._handle, *self.address, limit=LONGEST_LINE)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        return tuple(self._listening.sockets)

    def close(self) -> None:
        self._listening.close()

    async def wait_closed(self) -> None:
        while self.talks:
            await asyncio.sleep(0.01)

    @property
    def info(self) -> dict[str, Any]:
        """What `describe` is answered."""
        source = {"attribution": {"name": PROGRAM, "url": ""}, "installed": True, "version": _version()}
        model = {"name": self.model, "description": "SummaryMixing transducer", **source, "languages": self.languages}
        program = {"name": PROGRAM, "description": "streaming speech recognition", **source, "models": [model]}
        wanted = {"requires_external_vad": True, "prefers_auto_gain_enabled": False}
        more = {"supports_transcript_streaming": True, **wanted, "prefers_noise_reduction_enabled": False}
        return {"asr": [program | more]}

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = WyomingTalk(self, reader, writer)
        self.talks.add(talk)
        self.server.made(talk)
        try:
            await talk.run()
        finally:
            self.server.lost(talk)
            self.talks.discard(talk)


class WyomingTalk:
    """One connection. It has a place among the streams from `audio-start` to the transcript."""

    protocol_name = Wyoming.name
    may_half_close = True

    def __init__(self, listener: Wyoming, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.transport = listener.server, writer.transport
        self.grant: Grant | None = None
        self.dropped = False
        self._listener, self._writer, self._loop = listener, writer, asyncio.get_running_loop()
        limits = self.server.limits
        self._events = EventReader(reader, limits.max_message_bytes, limits.frames_per_second)
        self._writing = asyncio.Lock()
        self._asked: dict[str, Any] = {}  # for the next utterance
        self._utterance: Utterance | None = None
        self._ended = False  # the last word has been said

    async def run(self) -> None:
        closed = asyncio.ensure_future(self._writer.wait_closed())
        closed.add_done_callback(self._lost)
        try:
            with contextlib.suppress(ConnectionError):
                await self._converse()
        except Exception:
            _log.exception("a connection failed")
        finally:
            if self._utterance is not None:
                await self._utterance.hang_up()
            self.transport.abort() if self.dropped else self._writer.close()

    def _lost(self, closed: asyncio.Future) -> None:
        """The connection is closed, which a talk that waits for room would not hear."""
        if not closed.cancelled():
            closed.exception()  # how it ended does not matter
        if self._utterance is not None:
            self._utterance.end_writing()

    def end(self, fault: ProtocolError) -> None:
        if self._utterance is not None:
            self._utterance.intake.fail(fault)
        else:
            self.transport.abort()

    async def send(self, kind: str, **data: Any) -> None:
        """An event; a reader that is too slow for it is dropped. Raises ConnectionError."""
        too_slow = self._loop.call_later(self.server.limits.send_seconds, self.server.drop, self)
        try:
            async with self._writing:
                if self.transport.is_closing():
                    raise ConnectionResetError
                self._writer.write(write_event(kind, data))
                await self._writer.drain()
        finally:
            too_slow.cancel()

    async def say_last(self, code: str, text: str) -> None:
        """Tell what is wrong, and nothing after it; the connection ends when the client has heard it."""
        if self._ended:
            return
        self._ended = True
        await self.send("error", text=text, code=code)
        with contextlib.suppress(OSError):  # the client is gone already
            self._writer.write_eof()
        self._loop.call_later(_LINGER_SECONDS, self.transport.abort)

    async def _converse(self) -> None:
        try:
            while not self._ended and (event := await self._next()) is not None:
                if not self._ended:
                    await self._take(event)
        except ProtocolError as fault:
            if self._utterance is not None:
                self._utterance.intake.fail(fault)
                await self._utterance.task
            else:
                self.server.metrics.errors.labels(code=fault.code).inc()
                await self.say_last(fault.code, str(fault))
        if self._ended:
            await self._events.discard()

    async def _next(self) -> WireEvent | None:
        """Within an utterance its own limits hold; outside, nobody may be silent for long."""
        if self._utterance is not None:
            return await self._events.read()
        seconds = self.server.limits.idle_seconds
        try:
            return await within(seconds, self._events.read())
        except asyncio.TimeoutError:
            raise ProtocolError("idle", f"nothing for {seconds:g} seconds", protocol.POLICY) from None

    async def _take(self, event: WireEvent) -> None:
        """Events of other kinds are left alone, as the protocol asks."""
        if event.type == "describe":
            await self.send("info", **self._listener.info)
        elif event.type == "ping":
            await self.send("pong", text=event.data.get("text"))
        elif event.type == "transcribe":
            self._asked = self._read_wishes(event.data)
        elif event.type == "audio-start":
            await self._start(event.data)
        elif event.type in ("audio-chunk", "audio-stop"):
            if self._utterance is None:
                raise ProtocolError("bad_order", f"{event.type} must come after audio-start", protocol.BAD_MESSAGE)
            if event.type == "audio-chunk":
                await self._utterance.take(event)
            else:
                await self._stop()

    async def _start(self, data: Mapping[str, Any]) -> None:
        if self._utterance is not None:
            raise ProtocolError("bad_order", "audio-start must come after audio-stop", protocol.BAD_MESSAGE)
        form = AudioForm(data)
        peer = self._writer.get_extra_info("peername")
        asked = Asked("/", lambda name: (), peer[0] if isinstance(peer, tuple) else "")
        refusal = self.server.admit(self, asked, needs_token=False)
        if refusal is not None:
            await self.say_last(refusal.reason, refusal.text.strip())
            return
        self._utterance = Utterance(self, form)
        self._utterance.begin(self._asked)
        self._asked = {}

    async def _stop(self) -> None:
        self._utterance.intake.end()
        await self._utterance.task
        if not self._ended:
            self._utterance = None
            self.server.leave(self)
            self.server.wait(self)

    def _read_wishes(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Options of an utterance, as keys of `start` in PROTOCOL.md."""
        name, language = data.get("name"), data.get("language")
        if name is not None and name not in (PROGRAM, self._listener.model):
            raise ProtocolError("bad_model", f"name must be {self._listener.model!r} or left out", protocol.BAD_MESSAGE)
        known = [_primary(one) for one in self._listener.languages]
        if language is not None and _primary(str(language)) not in known:
            allowed = ", ".join(self._listener.languages)
            raise ProtocolError("bad_language", f"language must be one of {allowed}", protocol.BAD_MESSAGE)
        phrases = [
            one
            for key in ("transcript_names", "transcript_terms")
            for one in (data.get(key) if isinstance(data.get(key), list) else [])
            if isinstance(one, str) and one.strip() and len(one) <= LONGEST_HOTWORD
        ]
        recognizer = self.server.recognizer
        phrases = [one for one in dict.fromkeys(phrases) if not unwritable(one, recognizer.tokenizer)][:MOST_HOTWORDS]
        if not phrases:
            return {}
        return {"hotwords": phrases} | ({"beam": _BEAM} if recognizer.search.options.method == "greedy" else {})


def _version() -> str | None:
    """Of this package, where it is installed."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(PROGRAM)
    return None


def _primary(language: str) -> str:
    """en of en-GB."""
    return language.replace("_", "-").partition("-")[0].lower()


class AudioForm:
    """How the payload of audio events is read. Raises ProtocolError for a form that cannot be had."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.rate, self.width, self.channels = (data.get(key) for key in ("rate", "width", "channels"))
        if type(self.width) is not int or self.width not in _SAMPLES:
            raise ProtocolError("bad_audio", "width must be 2 or 4 bytes, of signed integers", protocol.BAD_MESSAGE)
        if type(self.channels) is not int or not 1 <= self.channels <= _MOST_CHANNELS:
            raise ProtocolError("bad_audio", f"channels must be 1 to {_MOST_CHANNELS}", protocol.BAD_MESSAGE)

    def differs(self, data: Mapping[str, Any]) -> str | None:
        """The key of a chunk that has another form."""
        own = {"rate": self.rate, "width": self.width, "channels": self.channels}
        return next((key for key, value in own.items() if data.get(key, value) != value), None)

    def samples(self, payload: bytes) -> np.ndarray:
        """Samples (S,) of the mean of the channels: int16 as they are, else float32."""
        if len(payload) % (self.width * self.channels):
            fault = f"a payload of {len(payload)} bytes holds no whole number of samples"
            raise ProtocolError("bad_audio", fault, protocol.BAD_MESSAGE)
        samples = np.frombuffer(payload, _SAMPLES[self.width])
        if self.width == 2 and self.channels == 1:
            return samples
        mean = samples.reshape(-1, self.channels).mean(1, dtype=np.float64)
        return (mean / (1 << 8 * self.width - 1)).astype(np.float32)


class Utterance:
    """One stream: from `audio-start` to `transcript-stop`. `task` sends what is recognised, and ends when all is said.

    Chunks only append, and together they are the transcript: of the open segment they tell words that no later audio
    changes, and nothing where its text will be replaced by that of a second pass.
    """

    def __init__(self, talk: WyomingTalk, form: AudioForm) -> None:
        self._talk, self._form = talk, form
        self._outbox = Outbox(talk.server.limits.max_unsent)
        self.intake = Intake(talk.server, talk, self._outbox.put)
        self._texts: list[str] = []  # of segments that have ended
        self._told = ""  # of the open one
        self._begun = False  # the client knows that text comes
        self._append_early = True
        self.task = asyncio.create_task(self._write())

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Raises ProtocolError for a rate or options that cannot be had."""
        self.intake.start(sample_rate=self._form.rate, format="s16le", **asked)
        self._append_early = not self.intake.second_pass

    async def take(self, event: WireEvent) -> None:
        """An `audio-chunk`. Raises ProtocolError."""
        if key := self._form.differs(event.data):
            fault = f"{key} of audio-chunk must be that of audio-start"
            raise ProtocolError("bad_audio", fault, protocol.BAD_MESSAGE)
        await self.intake.push(self._form.samples(event.payload), event.payload)

    def end_writing(self) -> None:
        """The client is gone: nothing more is sent, and audio that waits is of no use."""
        self._outbox.end()

    async def hang_up(self) -> None:
        """`end_writing`, and wait until that has been seen to."""
        self.end_writing()
        await self.task

    async def _write(self) -> None:
        reason = "internal"
        try:
            reason = await self._write_all()
        except ConnectionError:
            reason = "slow_reader" if self._talk.dropped else "disconnected"
        except Exception:
            _log.exception("writing failed")
            self._talk.transport.abort()
        finally:
            self.intake.close(reason)

    async def _write_all(self) -> str:
        while (event := await self._outbox.get()) is not None:
            happened = event.happened
            if isinstance(happened, Failed):
                await self._talk.say_last(happened.code, happened.message)
                return happened.code
            if isinstance(happened, Partial) and self._append_early:
                await self._tell(_joined(happened.words[: happened.stable]))
            elif isinstance(happened, Final):
                await self._tell(happened.text)
                self._texts += [happened.text] if happened.text else []
                self._told = ""
            elif isinstance(happened, Done):
                await self._begin_text()
                await self._talk.send("transcript", text=" ".join(self._texts))
                await self._talk.send("transcript-stop")
                return "done"
        if self._outbox.overflowed:
            self._talk.server.drop(self._talk)
        return "slow_reader" if self._talk.dropped else "disconnected"

    async def _tell(self, text: str) -> None:
        """The open segment's text so far: what is new of it."""
        new = text[len(self._told) :]
        if not text.startswith(self._told):
            _log.error("text that was told has changed; the transcript has all of it")
        elif new:
            space = " " if self._texts and not self._told else ""
            self._told = text
            await self._begin_text()
            await self._talk.send("transcript-chunk", text=space + new)

    async def _begin_text(self) -> None:
        if not self._begun:
            self._begun = True
            await self._talk.send("transcript-start")


def _joined(words: Sequence[Word]) -> str:
    """Their text, as a segment's."""
    return "".join((" " if n and word.space else "") + word.text for n, word in enumerate(words))
