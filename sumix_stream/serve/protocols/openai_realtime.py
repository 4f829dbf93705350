"""OpenAI's realtime transcription over a websocket at /v1/realtime."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Response
from websockets.typing import Subprotocol

from sumix_stream.serve import http, protocol
from sumix_stream.serve.access import Refusal
from sumix_stream.serve.events import Done, Event, EventKind, Failed, Final, carry
from sumix_stream.serve.protocol import ProtocolError
from sumix_stream.serve.protocols.openai_errors import INVALID, SERVER, ApiError, of_refusal, wrong
from sumix_stream.serve.protocols.openai_fields import shown
from sumix_stream.serve.protocols.openai_items import Items, dump, event
from sumix_stream.serve.protocols.openai_session import PCM, Settings, is_flat, options_differ
from sumix_stream.serve.reading import Client
from sumix_stream.serve.session import Session
from sumix_stream.serve.within import within

PATH = "/v1/realtime"
SUBPROTOCOL = "realtime"
_APPEND, _COMMIT, _CLEAR = (f"input_audio_buffer.{verb}" for verb in ("append", "commit", "clear"))
_UPDATE, _FLAT_UPDATE = "session.update", "transcription_session.update"
_KINDS = (_APPEND, _COMMIT, _CLEAR, _UPDATE, _FLAT_UPDATE)
_MOST_TEXT = 65_536  # characters of an event that carries no audio
_LEAST_AUDIO = 0.5  # of the characters of a longer one
_MOST_FAULTS = 32  # of a connection; one more ends it
_LONGEST_ID = 512  # characters of an event_id that is told back
_OWN_FAULTS = ("internal", "going_away")


class RealtimeClient(Client):
    """One client's events on their way to a session, or to one after the other where it clears or changes settings."""

    def greet(self) -> None:
        request = self._connection.request
        versions = [*request.headers.get_all("OpenAI-Beta"), *request.headers.get_all("Sec-WebSocket-Protocol")]
        self._settings, self._items = Settings(transcription={"model": self._model}), Items()
        self._items.flat = any("realtime=v1" in value or "realtime-v1" in value for value in versions)
        self._id = f"sess_{uuid.uuid4().hex[:20]}"
        self._num_faults = 0
        self._number = 0  # of the stream
        self._odd = b""  # the first half of a sample
        self._uncommitted = 0.0  # seconds of audio
        self._sent = 0.0  # seconds of audio, of the stream
        self._num_commits = 0  # that have no result yet
        self._discarding = False  # what comes after these is not told
        self._ended = asyncio.Event()  # the stream that was asked to
        self._put(self._about_session("created", self._items.flat))

    def say_last(self, fault: ProtocolError) -> None:
        kind = SERVER if fault.code in _OWN_FAULTS else INVALID
        error = {"type": kind, "code": fault.code, "message": str(fault), "param": None, "event_id": None}
        self._outbox.put(Event(EventKind.ERROR, dump(event("error", error=error)), fault.close_code))

    async def _read(self) -> None:
        while not self._over:
            message = await self._connection.recv()
            await self._until_there_is_room()
            if self._over:
                return
            content: dict[str, Any] = {}
            try:
                content = _parse(message)
                _check(content, len(message))
                await self._take_event(content)
            except ApiError as fault:
                self._complain(fault, content)
            if self.session is not None and self.session.closed:
                return  # the engine has found a fault

    async def _take_event(self, content: dict[str, Any]) -> None:
        kind = content["type"]
        if kind == _APPEND:
            self._append(content)
        elif kind == _COMMIT:
            self._commit()
        elif kind == _CLEAR:
            await self._retire(discard=True)
            self._put(event("input_audio_buffer.cleared"))
        else:
            await self._update(content.get("session"), kind == _FLAT_UPDATE)

    async def _update(self, session: Any, flat: bool) -> None:
        if not isinstance(session, dict):
            raise wrong("session must be an object with what changes", "session")
        changed = self._settings.update(session, self._model, self._offer)
        if options_differ(changed, self._settings):
            if self.session is not None and not self._settings.turns and self._uncommitted:
                raise wrong("there is audio that was not committed: commit or clear it before this changes", "session")
            await self._retire(discard=False)
        flat = flat or is_flat(session)
        self._settings, self._items.flat, self._items.turns = changed, flat, changed.turns
        self._put(self._about_session("updated", flat))

    def _append(self, content: dict[str, Any]) -> None:
        try:
            data = self._odd + base64.b64decode(content["audio"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise wrong(f"audio is no base64 ({error})", "audio", "invalid_base64") from None
        size = len(data) - len(data) % (2 if self._settings.format == PCM else 1)
        self._odd = data[size:]
        samples = self._settings.samples(data[:size])
        seconds = len(samples) / self._settings.sample_rate
        self._uncommitted += seconds
        self._sent += seconds
        self._push(samples, size, self._settings.sample_rate)

    def _commit(self) -> None:
        if not self._uncommitted:
            message = "there is no audio to commit: append some first"
            raise wrong(message, code="input_audio_buffer_commit_empty")
        if not self._open().commit():
            raise wrong("too many commits wait for their results: wait for some first", code="too_many_commits")
        self._num_commits += 1
        self._uncommitted = 0.0

    def _new_session(self) -> Session:
        self._items.begin(self._seconds - self._sent)
        options, number = self._settings.options(self._offer), self._number
        self._most_pending = self._offer.latency_seconds(options) + self._limits.pending_seconds
        report = partial(self._report_of, number)
        return self._open_session(self._settings.sample_rate, report, options, write=carry)

    async def _retire(self, discard: bool) -> None:
        """End the stream; what comes next is another one. Results of commits are waited for, and all else, or not."""
        session = self.session
        self._odd, self._uncommitted = b"", 0.0
        if session is not None and discard and not self._num_commits:
            session.close()
        elif session is not None:
            self._discarding = discard
            session.end()
            await self._until_ended()
        if not self._over:
            self.session, self._sent, self._discarding, self._num_commits = None, 0.0, False, 0
            self._number += 1
            self._ended.clear()

    async def _until_ended(self) -> None:
        """Wait for the stream's last word. Raises ProtocolError where for `idle_seconds` nothing comes of it."""
        while not (self._ended.is_set() or self._over):
            self._audio_accepted.clear()  # meanwhile nobody is idle: it is we who do not read
            self._idle_at = self._loop.time() + self._limits.idle_seconds
            try:
                await within(self._limits.idle_seconds, self._audio_accepted.wait())
            except asyncio.TimeoutError:
                text = "the results of the audio so far do not come; open a new session"
                raise ProtocolError("internal", text, protocol.INTERNAL) from None
        self._idle_at = self._loop.time() + self._limits.idle_seconds

    def _report_of(self, number: int, events: list[Event]) -> None:
        """From the engine's thread."""
        self._mailbox.send(partial(self._take_of, number), events)

    def _take_of(self, number: int, events: list[Event]) -> None:
        self._audio_accepted.set()
        for one in events:
            if number == self._number and one.happened is not None:
                self._tell(one)

    def _tell(self, one: Event) -> None:
        happened = one.happened
        if isinstance(happened, Done | Failed):
            self._ended.set()
        if isinstance(happened, Failed):
            self._over = True
            self.say_last(ProtocolError(happened.code, happened.message, happened.close_code))
            return
        if self._discarding and not self._num_commits:
            return
        for message in self._items.write(happened):
            self._put(message)
        if isinstance(happened, Final) and happened.reason == "commit":
            self._num_commits -= 1

    def _complain(self, fault: ApiError, content: dict[str, Any]) -> None:
        """Say what is wrong with an event; a few of them end nothing."""
        self._num_faults += 1
        self._metrics.errors.labels(code="bad_event").inc()
        if self._num_faults > _MOST_FAULTS:
            raise ProtocolError("bad_message", f"{fault}; that is one fault too many", protocol.POLICY)
        caused_by = content.get("event_id")
        known = isinstance(caused_by, str) and len(caused_by) <= _LONGEST_ID
        self._put(event("error", error=fault.error | {"event_id": caused_by if known else None}))

    def _about_session(self, verb: str, flat: bool) -> dict:
        kind = f"transcription_session.{verb}" if flat else f"session.{verb}"
        about = {"id": self._id, "object": "realtime.transcription_session", **self._settings.describe(flat)}
        return event(kind, session=about)

    def _put(self, message: dict) -> None:
        is_final = message["type"].endswith(".completed")
        self._outbox.put(Event(EventKind.FINAL if is_final else EventKind.OTHER, dump(message)))


def refuse(connection: ServerConnection, refusal: Refusal) -> Response:
    """The answer to a handshake, in OpenAI's form."""
    error = of_refusal(refusal)
    return http.refuse(connection, refusal._replace(status=error.status), error.body, "application/json")


def select_subprotocol(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Pages of browsers offer several, one of which carries their token."""
    return SUBPROTOCOL if SUBPROTOCOL in offered else None


def _parse(message: str | bytes) -> dict[str, Any]:
    """A client's event. Raises ApiError for what is none."""
    if isinstance(message, bytes):
        raise wrong("events are text messages: JSON, with audio in base64", code="invalid_event")
    if len(message) > _MOST_TEXT and f'"{_APPEND}"' not in message:
        raise wrong(f"an event without audio has at most {_MOST_TEXT} characters", code="invalid_event")
    try:
        content = json.loads(message)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise wrong("an event is a JSON object", code="invalid_json")
    return content


def _check(content: dict[str, Any], size: int) -> None:
    """Raises ApiError for an event of so many characters that cannot be, whatever the session."""
    kind, audio = content.get("type"), content.get("audio")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise wrong(f"there is no {shown(kind)} here; events: {', '.join(_KINDS)}", "type", "unknown_event")
    if kind == _APPEND:
        if not isinstance(audio, str) or content.keys() - {"type", "event_id", "audio"}:
            raise wrong(f"{_APPEND} has audio, a text of base64, and nothing else", "audio")
        if size > _MOST_TEXT and len(audio) < _LEAST_AUDIO * size:
            raise wrong("an event is hardly anything but its audio", code="invalid_event")
