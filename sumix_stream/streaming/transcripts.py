"""What was recognised of a recording as txt, srt, vtt, json or tsv."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sumix_stream.search.hypothesis import Hypothesis, Word, join_words
from sumix_stream.search.words import utterance_confidence
from sumix_stream.streaming.captions import CaptionStyle, captions_of, paragraphs

TSV_HEAD = "file\tchannel\tstart\tend\tconfidence\tword\n"


@dataclass(frozen=True)
class Transcript:
    """One recording's, or one channel's of it.

    about: plain values for JSON: model, chunk and so on.
    """

    file: str
    hypothesis: Hypothesis
    words: list[Word]
    seconds: float  # of audio
    sample_rate: int  # Hz, of the recording
    channel: int | None = None  # where channels are recognised apart
    style: CaptionStyle = field(default_factory=CaptionStyle)
    about: dict[str, Any] = field(default_factory=dict)


def as_txt(transcript: Transcript) -> str:
    """Text, a line for each stretch between pauses."""
    found = paragraphs(transcript.words, transcript.style.pause)
    return "".join(join_words([words[0]._replace(space=True), *words[1:]]) + "\n" for words in found)


def as_srt(transcript: Transcript) -> str:
    """SubRip captions."""
    cues = enumerate(captions_of(transcript.words, transcript.style), 1)
    return "\n".join(
        f"{n}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n" + "".join(f"{line}\n" for line in cue.lines)
        for n, cue in cues
    )


def as_vtt(transcript: Transcript) -> str:
    """WebVTT captions (W3C)."""
    cues = (
        f"\n{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n"
        + "".join(f"{_escaped(line)}\n" for line in cue.lines)
        for cue in captions_of(transcript.words, transcript.style)
    )
    return "WEBVTT\n" + "".join(cues)


def as_json(transcript: Transcript) -> str:
    """One object in one line: text, words with times in seconds and confidences."""
    words = [
        {
            "text": word.text,
            "start": _seconds(word.start),
            "end": _seconds(word.end),
            "confidence": _seconds(word.confidence),
            **({} if word.space else {"space": False}),
        }
        for word in transcript.words
    ]
    content = {
        "file": transcript.file,
        **({} if transcript.channel is None else {"channel": transcript.channel}),
        "text": transcript.hypothesis.text,
        "confidence": _seconds(utterance_confidence(transcript.hypothesis)),
        "seconds": _seconds(transcript.seconds),
        "sample_rate": transcript.sample_rate,
        **transcript.about,
        "words": words,
    }
    text = json.dumps(content, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"  # a file's name need not be UTF-8


def as_tsv(transcript: Transcript) -> str:
    """A line for each word, under TSV_HEAD, which is left to the caller."""
    channel = "" if transcript.channel is None else str(transcript.channel)
    name = " ".join(transcript.file.split())
    rows = (
        (name, channel, *(f"{value:.3f}" for value in (word.start, word.end, word.confidence)), word.text)
        for word in transcript.words
    )
    return "".join("\t".join(row) + "\n" for row in rows)


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": as_txt,
    "srt": as_srt,
    "vtt": as_vtt,
    "json": as_json,
    "tsv": as_tsv,
}


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def _escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
