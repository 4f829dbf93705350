"""What happens in a stream as the events of OpenAI's realtime transcription: items, their deltas, their end."""

from __future__ import annotations

import json
import uuid

from sumix_stream.serve.events import Final, Happened, Partial, SpeechStarted, SpeechStopped
from sumix_stream.serve.protocols.openai_answers import usage
from sumix_stream.serve.protocols.openai_text import GrowingText, text_of

_TRANSCRIPTION = "conversation.item.input_audio_transcription"


class Items:
    """Events of one connection.

    An item begins with its first words, so that clients know it before its first delta, and ends at an endpoint or a
    commit. Without turns only commits end it: what the server's longest segments cut is one item.

    flat: in the earlier form, items are `created` instead of `added` and `done`.
    turns: endpoints end items, and speech is told.
    """

    def __init__(self) -> None:
        self.flat, self.turns = False, True
        self.offset = 0.0  # seconds of audio before the stream
        self._item: str | None = None
        self._previous: str | None = None
        self._stopped = False
        self._growing, self._finals = GrowingText(), []
        self._marked = 0  # milliseconds of the last speech event
        self._since = 0.0  # seconds of the stream that earlier items have

    def begin(self, offset: float) -> None:
        """A new stream, after so many seconds of audio; the open item is forgotten."""
        self.offset, self._since = offset, 0.0
        self._forget()

    def write(self, happened: Happened) -> list[dict]:
        """The events of something that happened."""
        if isinstance(happened, SpeechStarted):
            return self._open(happened.at)
        if isinstance(happened, SpeechStopped):
            return self._stop(happened.at)
        if isinstance(happened, Partial):
            delta = self._growing.partial(happened)
            return self._open(happened.words[0].start) + self._delta(delta) if delta else []
        return self._final(happened) if isinstance(happened, Final) else []

    def _final(self, found: Final) -> list[dict]:
        delta = self._growing.final(found)
        said = bool(found.text or delta or self._item)
        if not self.turns and found.reason == "endpoint":
            self._finals.append(found)
            return self._open(found.words[0].start) + self._delta(delta) if delta else []
        if not said and found.reason != "commit":
            return []
        at = found.words[0].start if found.words else found.decoded
        events = self._open(at) + self._delta(delta)
        if self.turns and found.reason != "commit":
            events += self._stop(found.words[-1].end if found.words else found.decoded)
        events.append(event("input_audio_buffer.committed", previous_item_id=self._previous, item_id=self._item))
        text = text_of([*self._finals, found])
        if not self.flat:
            events.append(self._about_item("conversation.item.done", "completed", text))
        seconds, self._since = max(0.0, found.decoded - self._since), found.decoded
        end = {"item_id": self._item, "content_index": 0, "transcript": text, "usage": usage(seconds)}
        events.append(event(f"{_TRANSCRIPTION}.completed", **end))
        self._previous = self._item
        self._forget()
        return events

    def _open(self, at: float) -> list[dict]:
        if self._item is not None:
            return []
        self._item = f"item_{uuid.uuid4().hex[:20]}"
        events = []
        if self.turns:
            mark = {"audio_start_ms": self._milliseconds(at), "item_id": self._item}
            events.append(event("input_audio_buffer.speech_started", **mark))
        kind = "conversation.item.created" if self.flat else "conversation.item.added"
        return [*events, self._about_item(kind, "in_progress")]

    def _stop(self, at: float) -> list[dict]:
        if self._item is None or self._stopped or not self.turns:
            return []
        self._stopped = True
        mark = {"audio_end_ms": self._milliseconds(at), "item_id": self._item}
        return [event("input_audio_buffer.speech_stopped", **mark)]

    def _milliseconds(self, at: float) -> int:
        """Of a mark, which is not before the one before it: words of one frame may overlap."""
        self._marked = max(self._marked, round(1000 * (self.offset + at)))
        return self._marked

    def _delta(self, delta: str) -> list[dict]:
        if not delta:
            return []
        return [event(f"{_TRANSCRIPTION}.delta", item_id=self._item, content_index=0, delta=delta)]

    def _about_item(self, kind: str, status: str, transcript: str | None = None) -> dict:
        content = [{"type": "input_audio", "transcript": transcript}]
        item = {"id": self._item, "object": "realtime.item", "type": "message", "status": status}
        return event(kind, previous_item_id=self._previous, item=item | {"role": "user", "content": content})

    def _forget(self) -> None:
        self._item, self._stopped = None, False
        self._growing, self._finals = GrowingText(), []


def event(kind: str, **content: object) -> dict:
    """An event of the server."""
    return {"type": kind, "event_id": f"event_{uuid.uuid4().hex[:20]}", **content}


def dump(message: dict) -> str:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))
