"""Subtitles (`.srt`, `.vtt`) beside long audio of the same name: an utterance a cue."""

import os
import re
from html import unescape
from pathlib import Path

from sumix_stream.corpora.readers.base import Found, Item, ReadOptions, Skipped, split_of
from sumix_stream.corpora.readers.places import is_audio, open_text, walk

ABOUT = "audio with subtitles (.srt, .vtt) of the same name"
SUFFIXES = (".srt", ".vtt")
_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_CUE = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?$")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<\d[\d:.]*>|\{\\[^}]*\}")  # <i>, <00:01.000>, {\an8}
_VOICE = re.compile(r"<v(?:\.[^ >]*)?\s+([^>]+)>")
_SOUND = re.compile(r"^\s*(?:\[[^\]]*\]|\([^)]*\)|[♪♫].*)\s*$")  # [applause], (music)


def recognise(path: Path) -> bool:
    if path.is_file():
        return path.suffix.lower() in SUFFIXES
    return path.is_dir() and any(_beside(folder.names) for folder in walk(path))


def _beside(names: list[str]) -> dict[str, str]:
    """Subtitles -> audio: `talk.vtt`, or `talk.en.vtt`, belongs to `talk.mp3`."""
    audio = {os.path.splitext(name)[0]: name for name in reversed(names) if is_audio(name)}
    found = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in SUFFIXES:
            file = audio.get(stem) or audio.get(os.path.splitext(stem)[0])
            if file is not None:
                found[name] = file
    return found


def read(path: Path, options: ReadOptions) -> Found:
    """Sounds in brackets are no speech and are left out by line; tags are taken out; `<v Ann>` names a speaker."""
    if path.is_file():
        audio = _beside([path.name, *sorted(p.name for p in path.parent.iterdir() if p.is_file())]).get(path.name)
        if audio is None:
            raise ValueError(f"{path}: no audio file of the same name beside it")
        yield from _cues(path, path.with_name(audio), path.stem, "", options)
        return
    if not recognise(path):
        raise ValueError(f"{path}: no audio with .srt or .vtt of the same name beside it")
    for folder in walk(path):
        beside = _beside(folder.names)
        parts = folder.path.relative_to(path).parts
        split = next(filter(None, map(split_of, parts)), "")
        for name in folder.names:
            if name in beside:
                id = os.path.relpath(os.path.splitext(folder.path / name)[0], path)
                yield from _cues(folder.path / name, folder.path / beside[name], id, split, options)
            elif name.lower().endswith(SUFFIXES):
                yield Skipped(str(folder.path / name), 0, "missing audio", "no audio of the same name beside it")
            elif is_audio(name) and name not in beside.values():
                yield Skipped(str(folder.path / name), 0, "no transcript", "no .srt or .vtt of the same name beside it")


def _cues(path: Path, audio: Path, id: str, split: str, options: ReadOptions) -> Found:
    file, count = str(path), 0
    with open_text(path, options.encoding) as lines:
        cue: tuple[int, float, float] | None = None
        words: list[str] = []
        for number, line in enumerate((*lines, ""), 1):
            match = _CUE.match(line)
            if "-->" in line and match is None:
                yield Skipped(file, number, "bad times", f"{line.strip()!r} are no times of a cue")
            if match is None and line.strip():
                words += [line.strip()] if cue else []
                continue
            if cue is not None:
                at, start, end = cue
                if match is not None and words and words[-1].isdecimal():
                    words.pop()  # the next cue's number: no empty line was before it
                made = _item(str(audio), " ".join(words), file, at, f"{id}-{count:05d}", start, end, split)
                count += 1
                yield made
                cue, words = None, []
            if match is not None:
                start, end = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
                if start < end:
                    cue = (number, start, end)
                else:
                    yield Skipped(file, number, "bad times", f"from {start:g} to {end:g} s")
    if not count:
        yield Skipped(file, 0, "no transcript", "no cue in it (00:00:01,000 --> 00:00:02,500)")


def _item(audio: str, text: str, file: str, line: int, id: str, start: float, end: float, split: str) -> Item | Skipped:
    voice = _VOICE.search(text)
    plain = unescape(_TAG.sub("", text))
    plain = re.sub(r"^\s*(?:-|–|>>+)\s*", "", plain)  # a dash, or >>, before a turn
    if _SOUND.match(plain) or not plain.strip():
        return Skipped(file, line, "no speech", repr(plain.strip()), id)
    return Item(audio, plain, file, line, id, start, end, None, voice[1].strip() if voice else "", split=split)


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = parts
    return 3600 * int(hours or 0) + 60 * int(minutes) + int(seconds) + int(fraction) / 10 ** len(fraction)
