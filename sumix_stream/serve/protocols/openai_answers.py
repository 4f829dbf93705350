"""Transcriptions as OpenAI's API writes them: json, verbose_json, text, srt, vtt."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from sumix_stream.search.hypothesis import Hypothesis
from sumix_stream.serve.events import Final
from sumix_stream.serve.protocols.openai_fields import Form
from sumix_stream.serve.protocols.openai_text import text_of, words_of
from sumix_stream.streaming.transcripts import Transcript, as_srt, as_vtt

_CAPTIONS = {"srt": (as_srt, "application/x-subrip"), "vtt": (as_vtt, "text/vtt")}


def answer(form: Form, finals: Sequence[Final], seconds: float, ids: Mapping[str, int]) -> tuple[str, str]:
    """(body, content type) of a transcription.

    Args:
        seconds: of audio.
        ids: of the model's tokens.
    """
    text = text_of(finals)
    if form.response_format == "text":
        return text + "\n", "text/plain"
    if form.response_format in _CAPTIONS:
        write, kind = _CAPTIONS[form.response_format]
        hypothesis = Hypothesis(text, [], [], [])
        return write(Transcript("", hypothesis, words_of(finals), seconds, 0)), kind
    content: dict[str, Any] = {"text": text}
    if form.response_format == "verbose_json":
        content |= {"task": "transcribe", "language": form.language or "und", "duration": round(seconds, 3)}
        if "segment" in form.granularities:
            segments = [found for found in finals if found.words]
            content["segments"] = [_segment(n, found, ids, form) for n, found in enumerate(segments)]
        if "word" in form.granularities:
            content["words"] = [
                {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
                for word in words_of(finals)
            ]
    return json.dumps(content | {"usage": usage(seconds)}, ensure_ascii=False), "application/json"


def usage(seconds: float) -> dict:
    """What was transcribed."""
    return {"type": "duration", "seconds": round(seconds, 3)}


def _segment(number: int, found: Final, ids: Mapping[str, int], form: Form) -> dict:
    data = found.text.encode()
    mean = sum(math.log(max(word.confidence, math.ulp(0.0))) for word in found.words) / len(found.words)
    return {
        "id": number,
        "seek": 0,
        "start": round(found.words[0].start, 3),
        "end": round(found.words[-1].end, 3),
        "text": found.text,
        "tokens": [ids[piece] for piece in found.tokens],
        "temperature": form.temperature,
        "avg_logprob": round(mean, 4),
        "compression_ratio": round(len(data) / len(zlib.compress(data)), 3),
        "no_speech_prob": 0.0,  # is not estimated
    }
