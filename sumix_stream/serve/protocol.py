"""The messages of PROTOCOL.md: reading those of clients, making those of the server."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sumix_stream.audio import MAX_RATE, MIN_RATE, MODEL_RATE, check_rate, check_samples
from sumix_stream.search.hypothesis import Word
from sumix_stream.serve import events
from sumix_stream.serve.events import Event, Failed, Happened
from sumix_stream.serve.limits import Limits
from sumix_stream.serve.options import Offer, StreamOptions, Wrong

VERSION = 2
PATH = "/stream"
DTYPES = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
DEFAULT_RATE, DEFAULT_FORMAT = 16_000, "s16le"
MAX_TEXT = 16_384  # characters of a client's text message
_MAX_RATIO = 300_000  # 11025:16000 passes; filters of worse ratios take up to 100 MB, for anyone who asks
_AUDIO_KEYS = {"type", "sample_rate", "format"}
TYPES = ("start", "commit", "keepalive", "end")


class ProtocolError(ValueError):
    """What a client did wrong: a code for programs, a sentence for people, and the websocket's close code."""

    def __init__(self, code: str, message: str, close_code: int) -> None:
        super().__init__(message)
        self.code, self.close_code = code, close_code

    @property
    def failed(self) -> Failed:
        return Failed(self.code, str(self), self.close_code)


BAD_MESSAGE, POLICY, INTERNAL, GOING_AWAY = 1007, 1008, 1011, 1001  # RFC 6455, 7.4.1


@dataclass(frozen=True)
class AudioFormat:
    """How the binary messages of a stream are read: `sample_rate` in Hz, mono."""

    sample_rate: int = DEFAULT_RATE
    format: str = DEFAULT_FORMAT

    def samples(self, message: bytes) -> np.ndarray:
        """Samples (S,) of a binary message. Raises ProtocolError for part of a sample, NaN, or a peak far over 1."""
        dtype = DTYPES[self.format]
        if len(message) % dtype.itemsize:
            raise ProtocolError(
                "bad_audio",
                f"a message of {len(message)} bytes holds no whole number of {self.format} samples",
                BAD_MESSAGE,
            )
        samples = np.frombuffer(message, dtype)
        if dtype.kind == "i":
            return samples  # any 16 bits are a sample
        try:
            check_samples(samples, self.sample_rate)
        except ValueError as error:
            raise ProtocolError("bad_audio", str(error), BAD_MESSAGE) from None
        return samples


def read_text(text: str) -> dict:
    """A client's text message: an object whose `type` is one of TYPES. Raises ProtocolError for anything else."""
    try:
        message = json.loads(text) if len(text) <= MAX_TEXT else None
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or message.get("type") not in TYPES:
        known = ", ".join(f'{{"type": "{kind}"}}' for kind in TYPES)
        raise ProtocolError(
            "bad_message", f"a text message is JSON of at most {MAX_TEXT} characters, one of {known}", BAD_MESSAGE
        )
    return message


def read_start(message: dict, offer: Offer | None = None) -> tuple[AudioFormat, StreamOptions | None]:
    """The audio's format, and the options where there are any, of those on offer.

    Raises ProtocolError for an unknown key, a rate that cannot be, another format, or an option that cannot be had.
    """
    known = _AUDIO_KEYS | set(() if offer is None else offer.keys)
    if unknown := sorted(message.keys() - known):
        raise ProtocolError(
            "bad_start", f"unknown key {unknown[0][:40]!r}; known: {', '.join(sorted(known))}", BAD_MESSAGE
        )
    rate, form = message.get("sample_rate", DEFAULT_RATE), message.get("format", DEFAULT_FORMAT)
    try:
        check_rate(rate)
    except ValueError:
        fault = f"sample_rate must be an integer in {MIN_RATE}..{MAX_RATE} (Hz)"
        raise ProtocolError("bad_start", fault, BAD_MESSAGE) from None
    if rate * MODEL_RATE // math.gcd(rate, MODEL_RATE) ** 2 > _MAX_RATIO:
        fault = f"{rate} Hz has too little in common with {MODEL_RATE} Hz; resample to 8000, 44100 or 48000 Hz first"
        raise ProtocolError("bad_start", fault, BAD_MESSAGE)
    if not isinstance(form, str) or form not in DTYPES:
        raise ProtocolError("bad_start", f"format must be one of {', '.join(DTYPES)}", BAD_MESSAGE)
    try:
        options = offer.read(message) if message.keys() - _AUDIO_KEYS else None
    except Wrong as fault:
        raise ProtocolError("bad_start", str(fault), BAD_MESSAGE) from None
    return AudioFormat(rate, form), options


def ready(offer: Offer, limits: Limits) -> str:
    """The first message."""
    recognizer = offer.recognizer
    timebase, chunk_size = recognizer.timebase, recognizer.context.chunk_size
    return dump(
        type="ready",
        protocol=VERSION,
        sample_rate=timebase.sample_rate,
        chunk_seconds=timebase.encoder_frame_time(chunk_size),
        latency_seconds=round(timebase.chunk_latency_seconds(chunk_size), 4),
        max_seconds=limits.max_seconds,
        max_message_bytes=limits.max_message_bytes,
        idle_seconds=limits.idle_seconds,
        options=offer.describe(),
    )


def write(happened: Happened) -> Event | None:
    """The message of something that happened."""
    kind = events.KINDS[type(happened)]
    text = _WRITERS.get(type(happened), _fields)(kind.value, happened)
    return Event(kind, text, events.close_code_of(happened))


def _fields(kind: str, happened: Happened) -> str:
    values = happened._asdict()
    values.pop("close_code", None)
    return dump(type=kind, **{name: round(x, 3) if isinstance(x, float) else x for name, x in values.items()})


def _partial(kind: str, found: events.Partial) -> str:
    head = dump(type=kind, segment=found.segment, decoded=round(found.decoded, 3), text=found.text, stable=found.stable)
    return _with_words(head, found.words)


def _final(kind: str, found: events.Final) -> str:
    more = {}
    if found.streaming_text is not None:
        more |= {"streaming_text": found.streaming_text, "second_pass": found.second_pass}
    if found.alternatives:
        more["alternatives"] = [{"text": one.text, "score": round(one.score, 3)} for one in found.alternatives]
    head = dump(
        type=kind,
        segment=found.segment,
        decoded=round(found.decoded, 3),
        reason=found.reason,
        text=found.text,
        tokens=found.tokens,
        timestamps=[round(time, 3) for time in found.timestamps],
        **more,
    )
    return _with_words(head, found.words)


_WRITERS = {events.Partial: _partial, events.Final: _final}


def _with_words(head: str, words: Sequence[Word]) -> str:
    return f'{head[:-1]},"words":[{",".join(map(word, words))}]}}'


@lru_cache(8192)  # all words of a segment are sent again with each chunk
def word(said: Word) -> str:
    """An element of `words`."""
    start, end, confidence = (round(value, 3) for value in said[1:4])
    joined = {} if said.space else {"space": False}
    return dump(text=said.text, start=start, end=end, confidence=confidence, **joined)


def error(fault: ProtocolError) -> str:
    return dump(type="error", code=fault.code, message=str(fault))


def dump(**message: object) -> str:
    """A server's message."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))
