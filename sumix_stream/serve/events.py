"""What happens in a session, as values: a protocol writes each as its own message, or leaves it out.

Times are in seconds from the first sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from sumix_stream.search.hypothesis import Word


class Started(NamedTuple):
    """The options of a stream that asked for some."""

    chunk_seconds: float
    latency_seconds: float
    left_context: int | None
    beam: int | None
    nbest: int
    second_pass: bool
    endpoint: Sequence[float] | None


class Partial(NamedTuple):
    """The open segment so far.

    stable: words at its beginning that no later audio changes.
    tokens, timestamps: of the text; none where the session writes messages of PROTOCOL.md, which have none.
    spaced: whether a space belongs between it and the segment before it.
    """

    segment: int
    decoded: float
    text: str
    words: Sequence[Word]
    stable: int
    tokens: Sequence[str] = ()
    timestamps: Sequence[float] = ()
    spaced: bool = True


class Progress(NamedTuple):
    """A chunk was recognised, and the open segment has no words."""

    decoded: float


class Alternative(NamedTuple):
    """One of several results; `score` is a natural log-probability, what options add included."""

    text: str
    score: float


class Final(NamedTuple):
    """A segment is complete.

    reason: endpoint, commit, idle or end.
    streaming_text: what was streamed of it, where a second pass was asked for.
    second_pass: whether there was one.
    alternatives: where several results were asked for; the first is the result.
    """

    segment: int
    decoded: float
    reason: str
    text: str
    words: Sequence[Word]
    tokens: Sequence[str]
    timestamps: Sequence[float]
    streaming_text: str | None = None
    second_pass: bool = False
    alternatives: Sequence[Alternative] = ()


class SpeechStarted(NamedTuple):
    """Speech began after a silence: when its first token was heard."""

    at: float


class SpeechStopped(NamedTuple):
    """An endpoint of silence, or the end: when the last token before it was heard."""

    at: float


class Done(NamedTuple):
    """After the last segment."""

    segments: int
    decoded: float


class Failed(NamedTuple):
    """The session is over: a code for programs, a sentence for people, and a websocket's close code."""

    code: str
    message: str
    close_code: int


Happened = Started | Partial | Progress | Final | SpeechStarted | SpeechStopped | Done | Failed


class EventKind(str, Enum):
    """All but the last two are messages of the server's own protocol."""

    READY = "ready"
    STARTED = "started"
    PARTIAL = "partial"
    PROGRESS = "progress"
    FINAL = "final"
    SPEECH_STARTED = "speech_started"
    SPEECH_STOPPED = "speech_stopped"
    DONE = "done"
    ERROR = "error"
    OTHER = "other"  # a message of another protocol
    AUDIO_ACCEPTED = "audio_accepted"  # the stream has got audio that waited: there is room for more


class Event(NamedTuple):
    """Something for a session's client, as it is sent."""

    kind: EventKind
    text: str = ""
    close_code: int | None = None  # after the message, the connection ends
    happened: Happened | None = None  # of `carry`


KINDS = {
    Started: EventKind.STARTED,
    Partial: EventKind.PARTIAL,
    Progress: EventKind.PROGRESS,
    Final: EventKind.FINAL,
    SpeechStarted: EventKind.SPEECH_STARTED,
    SpeechStopped: EventKind.SPEECH_STOPPED,
    Done: EventKind.DONE,
    Failed: EventKind.ERROR,
}


def close_code_of(happened: Happened) -> int | None:
    """A websocket's close code where this is the last thing that happens in a session."""
    return happened.close_code if isinstance(happened, Failed) else 1000 if isinstance(happened, Done) else None


def carry(happened: Happened) -> Event:
    """The `write` of a session whose messages are made elsewhere, such as where the connection is: the value itself."""
    return Event(KINDS[type(happened)], "", close_code_of(happened), happened)
