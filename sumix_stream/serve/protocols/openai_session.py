"""The settings of a realtime transcription session: OpenAI's general form and the earlier flat one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sumix_stream.audio.pcm import ENCODINGS
from sumix_stream.serve.options import ENDPOINTS, Offer, StreamOptions
from sumix_stream.serve.protocols.openai_errors import wrong
from sumix_stream.serve.protocols.openai_fields import check_language, check_model, hotword_options, shown

PCM, ULAW, ALAW = "pcm16", "g711_ulaw", "g711_alaw"
_GENERAL = {"audio/pcm": PCM, "audio/pcmu": ULAW, "audio/pcma": ALAW}
_ENCODINGS = {ULAW: "mulaw", ALAW: "alaw"}
_RATES = {PCM: 24_000, ULAW: 8_000, ALAW: 8_000}
_VAD = {"type", "threshold", "prefix_padding_ms", "silence_duration_ms", "create_response", "interrupt_response"}
_VAD |= {"idle_timeout_ms"}
_TRANSCRIPTION = {"model", "language", "languages", "prompt", "keywords", "delay"}
_FLAT = {
    "input_audio_format": "format",
    "input_audio_transcription": "transcription",
    "input_audio_noise_reduction": "noise_reduction",
    "turn_detection": "turn_detection",
}
_INPUT = set(_FLAT.values())


@dataclass(frozen=True)
class Settings:
    """Of a session. `silence_ms`: that ends a turn, None = as the server's endpoints; `turns`: whether it ends any."""

    format: str = PCM
    transcription: Mapping[str, Any] | None = None
    noise_reduction: Mapping[str, Any] | None = None
    turns: bool = True
    silence_ms: float | None = None

    @property
    def sample_rate(self) -> int:
        """In Hz."""
        return _RATES[self.format]

    def update(self, session: Mapping[str, Any], model: str, offer: Offer) -> Settings:
        """With the keys of a `session`, in either form. Raises ApiError naming the key and what is allowed."""
        changed = self
        for key, value in _inputs(session).items():
            changed = getattr(changed, f"_with_{key}")(value, model)
        changed.options(offer)
        return changed

    def options(self, offer: Offer) -> StreamOptions:
        """Of the stream. Raises ApiError for hotwords that cannot be had."""
        given = self.transcription or {}
        options = hotword_options(offer, given.get("prompt"), given.get("keywords"))
        if not self.turns:
            return replace(options, endpointing=offer.read({"endpoint": False}).endpointing)
        if self.silence_ms is not None:
            options = replace(options, endpointing=offer.with_silence(self.silence_ms / 1000).endpointing)
        return replace(options, speech_events=True)

    def samples(self, data: bytes) -> np.ndarray:
        """Samples (S,), int16 or float32 in [-1, 1], of whole samples' bytes."""
        if self.format == PCM:
            return np.frombuffer(data, "<i2")
        return ENCODINGS[_ENCODINGS[self.format]].decode(np.frombuffer(data, np.uint8))

    def describe(self, flat: bool) -> dict:
        """As the server tells them."""
        turns = None
        if self.turns:
            turns = {"type": "server_vad"}
            turns |= {} if self.silence_ms is None else {"silence_duration_ms": self.silence_ms}
        transcription = None if self.transcription is None else dict(self.transcription)
        if flat:
            return {
                "input_audio_format": self.format,
                "input_audio_transcription": transcription,
                "input_audio_noise_reduction": self.noise_reduction,
                "turn_detection": turns,
            }
        kind = {own: general for general, own in _GENERAL.items()}[self.format]
        form = {"type": kind} | ({"rate": self.sample_rate} if self.format == PCM else {})
        return {
            "type": "transcription",
            "audio": {
                "input": {
                    "format": form,
                    "transcription": transcription,
                    "noise_reduction": self.noise_reduction,
                    "turn_detection": turns,
                }
            },
        }

    def _with_format(self, value: Any, model: str) -> Settings:
        general = isinstance(value, dict)
        kind, known = (value.get("type"), _GENERAL) if general else (value, {own: own for own in _RATES})
        if not isinstance(kind, str) or kind not in known:
            raise wrong(f"the format must be one of {', '.join(known)}, got {shown(value)}", "format")
        found = known[kind]
        if general and value.get("rate") not in (None, _RATES[found]):
            raise wrong(f"{kind} has {_RATES[found]} Hz here, got rate {shown(value['rate'])}", "rate")
        return replace(self, format=found)

    def _with_transcription(self, value: Any, model: str) -> Settings:
        if value is None:
            return replace(self, transcription={"model": model})  # it is what this server does
        _check_keys(value, _TRANSCRIPTION, "transcription")
        if value.get("model") is not None:
            check_model(value["model"], model)
        languages = value.get("languages") or []
        for language in [value.get("language"), *(languages if isinstance(languages, list) else [languages])]:
            if language not in (None, ""):
                check_language(language)
        return replace(self, transcription=value)

    def _with_noise_reduction(self, value: Any, model: str) -> Settings:
        if value is not None:
            _check_keys(value, {"type", "strength"}, "noise_reduction")
        return replace(self, noise_reduction=value)

    def _with_turn_detection(self, value: Any, model: str) -> Settings:
        if value is None:
            return replace(self, turns=False, silence_ms=None)
        _check_keys(value, _VAD, "turn_detection")
        if value.get("type", "server_vad") != "server_vad":
            message = f"turn_detection may be null or of type server_vad here, got {shown(value['type'])}"
            raise wrong(message, "turn_detection.type")
        silence, (low, high) = value.get("silence_duration_ms"), ENDPOINTS
        if silence is not None and not (_is_number(silence) and low <= silence / 1000 <= high):
            message = f"silence_duration_ms must be a number, {1000 * low:g} to {1000 * high:g}"
            raise wrong(message, "turn_detection.silence_duration_ms")
        return replace(self, turns=True, silence_ms=silence)


def options_differ(one: Settings, other: Settings) -> bool:
    """Whether a stream of one is none of the other."""
    kinds = [
        (s.format, s.turns, s.silence_ms, *((s.transcription or {}).get(key) for key in ("prompt", "keywords")))
        for s in (one, other)
    ]
    return kinds[0] != kinds[1]


def is_flat(session: Mapping[str, Any]) -> bool:
    """Whether settings are in the earlier form."""
    return any(key in session for key in _FLAT)


def _inputs(session: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the input, by their names in the general form."""
    known = {"type", "audio", "include", "id", "object", "expires_at", "client_secret", "modalities", *_FLAT}
    _check_keys(session, known, "session")
    if session.get("type", "transcription") != "transcription":
        raise wrong("session.type must be transcription: this server writes down, and does not answer", "session.type")
    if session.get("include"):
        raise wrong("include: log-probabilities are not told here; leave it out", "session.include")
    found = {name: session[key] for key, name in _FLAT.items() if key in session}
    audio = session.get("audio") or {}
    _check_keys(audio, {"input"}, "session.audio")
    given = audio.get("input") or {}
    _check_keys(given, _INPUT, "session.audio.input")
    found |= given
    if "format" in found and found["format"] is None:
        del found["format"]
    return found


def _check_keys(value: Any, known: set[str], name: str) -> None:
    if not isinstance(value, dict):
        raise wrong(f"{name} must be an object, got {shown(value)}", name)
    if unknown := sorted(value.keys() - known):
        raise wrong(f"{name}.{unknown[0][:60]} is not supported here; known: {', '.join(sorted(known))}", name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
