"""Kaldi's data folders: wav.scp, text and, where they are, segments, utt2spk, utt2lang."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sumix_stream.corpora.readers.base import COMMAND, FILE, Found, Item, ReadOptions, Skipped, split_of
from sumix_stream.corpora.readers.places import Resolver, open_text

ABOUT = "a Kaldi data folder: wav.scp and text, with segments, utt2spk and utt2lang where they are"


def recognise(path: Path) -> bool:
    return (path / "wav.scp").is_file() and (path / "text").is_file()


def read(path: Path, options: ReadOptions) -> Found:
    """Commands in wav.scp (`sph2pipe ... |`) are run with --allow-commands only; archives (`a.ark:7`) are not read.

    A speaker for each utterance alone is no speaker: so Kaldi's folders say that speakers are unknown. The split is
    that of the folder's name (train, dev, test).
    """
    for name in ("wav.scp", "text"):
        if not (path / name).is_file():
            raise ValueError(f"{path}: no {name} in it; a Kaldi data folder has wav.scp and text")
    recordings, faults = _recordings(path, options)
    yield from faults
    speakers, languages = (_table(path / name, options) for name in ("utt2spk", "utt2lang"))
    known = len(set(speakers.values())) < len(speakers) or len(speakers) < 2
    split = split_of(path.resolve().name)
    segments = path / "segments"
    parts = dict(_segments(segments, options)) if segments.is_file() else None
    seen: Counter[str] = Counter()
    where = path / "text"
    for number, id, text in _lines(where, options):
        seen[id] += 1
        if seen[id] > 1:
            yield Skipped(str(where), number, "id occurs twice", id, id)
            continue
        recording, start, end, channel = id, 0.0, None, None
        if parts is not None:
            part = parts.get(id)
            if part is None:
                yield Skipped(str(where), number, "missing audio", f"{id} is not in {segments}", id)
                continue
            if isinstance(part, Skipped):
                yield part
                continue
            recording, start, end, channel = part
        source = recordings.get(recording)
        if source is None:
            yield Skipped(str(where), number, "missing audio", f"{recording} is not in {path / 'wav.scp'}", id)
            continue
        if isinstance(source, Skipped):
            continue  # named already
        kind, audio = source
        speaker = speakers.get(id, "") if known else ""
        yield Item(
            audio, text, str(where), number, id, start, end, channel, speaker, languages.get(id, ""), split, kind
        )
    named = parts if parts is not None else recordings
    place = segments if parts is not None else path / "wav.scp"
    for id in named:
        if id not in seen and not isinstance(named[id], Skipped):
            yield Skipped(str(place), 0, "no transcript", f"{id} is not in {where}", id)


def _recordings(path: Path, options: ReadOptions) -> tuple[dict[str, tuple[str, str] | Skipped], list[Skipped]]:
    """Recording -> (kind, file or command), or why it cannot be read."""
    found: dict[str, tuple[str, str] | Skipped] = {}
    faults: list[Skipped] = []
    resolver, where = Resolver(path, options.audio_root), path / "wav.scp"
    for number, id, source in _lines(where, options):
        if id in found:
            faults.append(Skipped(str(where), number, "id occurs twice", id, id))
            continue
        if source.endswith("|"):
            command = source[:-1].strip()
            if options.allow_commands:
                found[id] = (COMMAND, command)
                continue
            skipped = Skipped(
                str(where), number, "command", f"{command}: commands are run with --allow-commands only", id
            )
        elif (audio := resolver.find(source)) is not None:
            found[id] = (FILE, audio)
            continue
        elif ".ark:" in source:
            detail = f"{source}: archives are not read; write files with wav-copy, or give the original wav.scp"
            skipped = Skipped(str(where), number, "archive", detail, id)
        else:
            skipped = Skipped(str(where), number, "missing audio", f"{source}: no such file ({resolver.sought()})", id)
        found[id] = skipped
        faults.append(skipped)
    return found, faults


def _segments(
    path: Path, options: ReadOptions
) -> Iterator[tuple[str, tuple[str, float, float | None, int | None] | Skipped]]:
    """Utterance -> (recording, start, end, channel); an end of -1 is that of the recording."""
    for number, id, rest in _lines(path, options):
        cells = rest.split()
        try:
            recording, start, end = cells[0], float(cells[1]), float(cells[2])
            channel = int(cells[3]) if len(cells) > 3 else None
            if not 0 <= start < (end if end != -1 else float("inf")) or (channel or 0) < 0:
                raise ValueError
        except (ValueError, IndexError):
            detail = f"{rest!r} is no recording, start and end in seconds"
            yield id, Skipped(str(path), number, "bad times", detail, id)
            continue
        yield id, (recording, start, end if end != -1 else None, channel)


def _lines(path: Path, options: ReadOptions) -> Iterator[tuple[int, str, str]]:
    """(line, first word, rest): whatever white space divides them."""
    with open_text(path, options.encoding) as file:
        for number, line in enumerate(file, 1):
            words = line.strip().split(None, 1)
            if words:
                yield number, words[0], words[1] if len(words) > 1 else ""


def _table(path: Path, options: ReadOptions) -> dict[str, str]:
    return {id: value for _, id, value in _lines(path, options)} if path.is_file() else {}
