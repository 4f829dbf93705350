"""The messages of PROTOCOL.md: reading those of clients, making those of the server."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sumix_stream.audio import MAX_RATE, MIN_RATE, MODEL_RATE, check_rate, check_samples
from sumix_stream.search.hypothesis import Word

VERSION = 1
PATH = "/stream"
DTYPES = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
DEFAULT_RATE, DEFAULT_FORMAT = 16_000, "s16le"
MAX_TEXT = 4_096  # characters of a client's text message
_MAX_RATIO = 300_000  # 11025:16000 passes; filters of worse ratios take up to 100 MB, for anyone who asks
_START_KEYS = {"type", "sample_rate", "format"}


class ProtocolError(ValueError):
    """What a client did wrong: a code for programs, a sentence for people, and the websocket's close code."""

    def __init__(self, code: str, message: str, close_code: int) -> None:
        super().__init__(message)
        self.code, self.close_code = code, close_code


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
    """A client's text message: an object whose `type` is start or end. Raises ProtocolError for anything else."""
    try:
        message = json.loads(text) if len(text) <= MAX_TEXT else None
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or message.get("type") not in ("start", "end"):
        raise ProtocolError(
            "bad_message", 'a text message is JSON: {"type": "start", ...} or {"type": "end"}', BAD_MESSAGE
        )
    return message


def read_start(message: dict) -> AudioFormat:
    """Raises ProtocolError for an unknown key, a rate that cannot be, or another format."""
    if unknown := sorted(message.keys() - _START_KEYS):
        raise ProtocolError(
            "bad_start", f"unknown key {unknown[0][:40]!r}; known: {', '.join(sorted(_START_KEYS))}", BAD_MESSAGE
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
    return AudioFormat(rate, form)


def result(kind: str, segment: int, decoded: float, text: str, words: Sequence[str], **more: Sequence) -> str:
    """A `partial` or `final` message; `decoded`: seconds of audio it has heard; words: as `word` writes them; `more`:
    the `tokens` and `timestamps` of a final one."""
    head = dump(type=kind, segment=segment, decoded=round(decoded, 3), text=text, **more)
    return f'{head[:-1]},"words":[{",".join(words)}]}}'


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
