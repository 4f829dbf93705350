"""What a request of OpenAI's API may ask for: the fields of a transcription, and what its sessions share with it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from sumix_stream.serve.options import DEFAULTS, Offer, StreamOptions, Wrong
from sumix_stream.serve.protocols.openai_errors import ApiError, wrong

FORMATS = ("json", "verbose_json", "text", "srt", "vtt")
ALIASES = (  # names that clients have built in: the server has one model
    *("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe"),
    *("gpt-live-transcribe", "gpt-realtime-whisper"),
)
_GRANULARITIES = ("segment", "word")
_KNOWN = (
    *("model", "language", "languages", "prompt", "keywords", "response_format", "stream", "temperature"),
    *("timestamp_granularities", "chunking_strategy"),
)
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*")
_BETWEEN_PHRASES = re.compile(r"[,;\n]")
_MOST_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Form:
    """What a transcription is asked to be."""

    response_format: str
    granularities: tuple[str, ...]
    stream: bool
    language: str | None
    temperature: float
    options: StreamOptions


def read_form(fields: Mapping[str, Sequence[str]], model: str, offer: Offer) -> Form:
    """The fields of a form, each with all its values; names of lists may end in [].

    Raises ApiError naming the field and what is allowed.
    """
    given: dict[str, list[str]] = {}
    for name, values in fields.items():
        given.setdefault(name.removesuffix("[]"), []).extend(values)
    if unknown := sorted(given.keys() - set(_KNOWN)):
        known = ", ".join(("file", *_KNOWN))
        raise wrong(f"{shown(unknown[0])} is not supported here; known: {known}", unknown[0][:_MOST_SHOWN])
    one = {name: _only(name, values) for name, values in given.items() if name not in _LISTS}
    check_model(one.get("model"), model)
    languages = [*([one["language"]] if one.get("language") else []), *given.get("languages", [])]
    for language in languages:
        check_language(language)
    response_format = one.get("response_format") or "json"
    if response_format not in FORMATS:
        raise wrong(
            f"response_format must be one of {', '.join(FORMATS)}, got {shown(response_format)}", "response_format"
        )
    if one.get("chunking_strategy") not in (None, "", "auto"):
        raise wrong("chunking_strategy may only be auto: segments end where this server's do", "chunking_strategy")
    stream = _boolean(one.get("stream") or "false")
    if stream and response_format not in ("json", "text"):
        raise wrong("with stream, response_format may be json or text", "response_format")
    granularities = tuple(dict.fromkeys(given.get("timestamp_granularities", [])))
    return Form(
        response_format,
        _checked(granularities, response_format) or ("segment",),
        stream,
        languages[0] if languages else None,
        _temperature(one.get("temperature") or "0"),
        hotword_options(offer, one.get("prompt"), given.get("keywords")),
    )


_LISTS = ("languages", "keywords", "timestamp_granularities")


def check_model(name: Any, own: str) -> None:
    """Raises ApiError unless it is this server's model, or one that a client has built in."""
    if not isinstance(name, str) or not name:
        raise wrong(f"model is missing; this server's is {own}", "model")
    if name not in (own, *ALIASES):
        known = f"this server has {own}, which also answers to {', '.join(ALIASES)}"
        status = HTTPStatus.NOT_FOUND
        raise ApiError(status, f"no model {shown(name)}; {known}", code="model_not_found", param="model")


def check_language(value: Any) -> None:
    """Raises ApiError for what is no code of a language; which language a model knows is not known here."""
    if not isinstance(value, str) or not _LANGUAGE.fullmatch(value):
        raise wrong(f"language must be a code such as en or pt-BR, got {shown(value)}", "language")


def hotword_options(offer: Offer, prompt: Any, keywords: Any) -> StreamOptions:
    """The options of a stream that listens for the phrases of a prompt, between commas or lines, and for keywords.

    Raises ApiError naming the field.
    """
    found: list[str] = []
    for param, value in (("prompt", prompt), ("keywords", keywords)):
        if value is None:
            continue
        phrases = [value] if isinstance(value, str) else value
        if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
            raise wrong(f"{param} must be text" if param == "prompt" else f"{param} must be a list of texts", param)
        parts = [part.strip() for phrase in phrases for part in _BETWEEN_PHRASES.split(phrase)]
        found += [part for part in parts if part]
        if found:
            try:
                options = offer.with_hotwords(found)
            except Wrong as fault:
                how = "" if param == "keywords" else " (a prompt is a list of phrases here, between commas or lines)"
                raise wrong(f"{param}: {fault}{how}", param) from None
    return options if found else DEFAULTS


def shown(value: Any) -> str:
    """A client's value in a message."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return ascii(text[:_MOST_SHOWN])


def _only(name: str, values: Sequence[str]) -> str:
    if len(values) > 1:
        raise wrong(f"{name} is given {len(values)} times", name)
    return values[0]


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise wrong(f"stream must be true or false, got {shown(text)}", "stream")
    return text.lower() in ("true", "1")


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise wrong(f"temperature must be a number, 0 to 1, got {shown(text)}", "temperature")
    return value


def _checked(granularities: tuple[str, ...], response_format: str) -> tuple[str, ...]:
    param = "timestamp_granularities"
    for one in granularities:
        if one not in _GRANULARITIES:
            raise wrong(f"{param} must be among {', '.join(_GRANULARITIES)}, got {shown(one)}", param)
    if granularities and response_format != "verbose_json":
        raise wrong(f"{param} needs response_format verbose_json", param)
    return granularities
