"""Lhotse's manifests: recordings with supervisions, cuts (plain or gzipped), and Shar folders.

They are read as JSON, so that one bad line is one bad line. Cuts that are a stretch of a file become that; all others
(mixed, padded, transformed) are handed on whole, for Lhotse to load.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sumix_stream.corpora.readers.base import CUT, SHARD, Found, Item, ReadOptions, Skipped, split_of
from sumix_stream.corpora.readers.places import Resolver

ABOUT = "Lhotse manifests: recordings with supervisions, cuts, or a Shar folder"
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
EDGE = 0.1  # seconds that a supervision may reach beyond its cut, as rounding makes it
_CUTS, _RECORDINGS, _SUPERVISIONS = "cuts", "recordings", "supervisions"
_MADE_BY_OTHERS = ("command", "url")


def recognise(path: Path) -> bool:
    if path.is_dir():
        return bool(_shards(path) or _manifests(path))
    return path.is_file() and _kind(path) is not None


def _shards(path: Path) -> list[Path]:
    return sorted(path.glob("cuts.[0-9]*.jsonl*")) if any(path.glob("recording.[0-9]*.tar*")) else []


def _manifests(path: Path) -> list[Path]:
    """Of a folder: its cuts, or else its recordings that have supervisions."""
    files = [p for p in sorted(path.iterdir()) if p.is_file() and p.name.endswith(SUFFIXES)]
    kinds = {p: kind for p in files if any(word in p.name for word in (_CUTS, _RECORDINGS)) and (kind := _kind(p))}
    cuts = [p for p, kind in kinds.items() if kind == _CUTS]
    return cuts or [p for p, kind in kinds.items() if kind == _RECORDINGS and _partner(p) is not None]


def _partner(path: Path) -> Path | None:
    """The supervisions beside recordings: the same name with that word in it."""
    stem = path.name.replace(_RECORDINGS, _SUPERVISIONS)
    if stem == path.name:
        return None
    for suffix in SUFFIXES:
        other = path.with_name(stem.split(".json")[0] + suffix)
        if other.is_file():
            return other
    return None


def _kind(path: Path) -> str | None:
    """What a manifest holds, by its first object."""
    if not path.name.endswith(SUFFIXES):
        return None
    try:
        first = next((content for _, content in _objects(path) if isinstance(content, dict)), None)
    except ValueError:
        return None
    if first is None:
        return None
    if str(first.get("type", "")).endswith("Cut") or _SUPERVISIONS in first or "tracks" in first:
        return _CUTS
    if "sources" in first:
        return _RECORDINGS
    return _SUPERVISIONS if "recording_id" in first else None


def read(path: Path, options: ReadOptions) -> Found:
    """Cuts with several supervisions give an utterance for each; one that ends after its cut is named.

    Audio that a command makes or that lies at an address is used with --allow-commands only.
    """
    if not recognise(path):
        raise ValueError(f"{path}: no Lhotse manifest of cuts, or of recordings with supervisions of the same name")
    if path.is_dir() and (shards := _shards(path)):
        for shard in shards:
            yield from _cuts(shard, options, split_of(path.name), SHARD)
        return
    for manifest in [path] if path.is_file() else _manifests(path):
        words = manifest.name.split(".json")[0].replace("-", "_").split("_")
        split = next(filter(None, map(split_of, words)), "")
        kind = _kind(manifest)
        if kind == _CUTS:
            yield from _cuts(manifest, options, split)
            continue
        recordings = manifest
        if kind == _SUPERVISIONS:
            recordings = manifest.with_name(manifest.name.replace(_SUPERVISIONS, _RECORDINGS))
        supervisions = _partner(recordings) if kind == _RECORDINGS else manifest
        if supervisions is None or not recordings.is_file() or recordings == supervisions:
            raise ValueError(f"{manifest}: needs recordings and supervisions, of one name but for that word, beside it")
        yield from _pairs(recordings, supervisions, options, split)


def _objects(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, object), None where a line is no JSON; of `.json`, the elements of its list (numbered from 1)."""
    number = 0
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="utf-8-sig") if zipped else open(path, encoding="utf-8-sig") as file:
            if ".jsonl" not in path.name:
                content = json.load(file)
                yield from enumerate(content if isinstance(content, list) else [content], 1)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except ValueError:
                        yield number, None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path}:{number + 1}: cannot be read ({error}); copy or make it again") from None


def _cuts(path: Path, options: ReadOptions, split: str, kind: str = CUT) -> Found:
    resolver = Resolver(path.parent, options.audio_root)
    for number, cut in _objects(path):
        if not isinstance(cut, dict):
            yield Skipped(str(path), number, "bad row", "no JSON object")
            continue
        try:
            yield from _of_cut(cut, str(path), number, resolver, options, split, kind)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            fault, _, detail = str(error).partition(": ")
            if not isinstance(error, ValueError) or not detail:
                fault, detail = "bad row", f"no cut as Lhotse writes it ({type(error).__name__}: {error})"
            yield Skipped(str(path), number, fault, detail, str(cut.get("id", "")))


def _of_cut(cut: dict, file: str, line: int, resolver: Resolver, options: ReadOptions, split: str, kind: str) -> Found:
    id = str(cut["id"])
    simple = kind == CUT and _is_stretch(cut)
    tracks = [track["cut"] for track in cut["tracks"]] if "tracks" in cut else [cut]
    if kind == CUT:
        for track in tracks:
            if recording := track.get("recording"):
                _find_sources(recording, resolver, options)
    supervisions = [dict(s, start=float(s["start"])) for s in _supervisions(cut)]
    if not supervisions:
        yield Skipped(file, line, "no transcript", "a cut without supervisions", id)
        return
    if not simple:
        texts = sorted((s for s in supervisions if s.get("text") is not None), key=lambda s: s["start"])
        text = " ".join(str(s["text"]) for s in texts)
        audio = file if kind == SHARD else json.dumps(cut)
        speaker = str(supervisions[0].get("speaker") or "")
        language = str(supervisions[0].get("language") or "")
        yield Item(audio, text, file, line, id, speaker=speaker, language=language, split=split, kind=kind)
        return
    recording, start, duration = cut["recording"], float(cut["start"]), float(cut["duration"])
    audio, channel = recording["sources"][0]["source"], cut.get("channel")
    everything = start == 0 and duration >= float(recording["duration"]) - 0.01
    end = None if everything else start + duration
    if len(recording["sources"][0].get("channels", [0])) == 1:
        channel = None
    for number, s in enumerate(sorted(supervisions, key=lambda s: s["start"])):
        own = id if len(supervisions) == 1 else f"{id}-{s.get('id', number)}"
        if s.get("text") is None:
            yield Skipped(file, line, "no transcript", "a supervision without text", own)
            continue
        last = s["start"] + float(s["duration"])
        if last > duration + EDGE or s["start"] < -EDGE:
            detail = f"from {s['start']:g} to {last:g} s in a cut of {duration:g} s"
            yield Skipped(file, line, "bad times", detail, own)
            continue
        span = (start, end)
        if len(supervisions) > 1:
            span = (start + max(0.0, s["start"]), start + min(last, duration))
        speaker, language = str(s.get("speaker") or ""), str(s.get("language") or "")
        yield Item(audio, str(s["text"]), file, line, own, *span, channel, speaker, language, split)


def _supervisions(cut: Mapping[str, Any]) -> list[dict]:
    if "tracks" not in cut:
        return list(cut.get("supervisions") or ())
    found = []
    for track in cut["tracks"]:
        offset = float(track.get("offset", 0.0))
        found += [dict(s, start=float(s["start"]) + offset) for s in track["cut"].get("supervisions") or ()]
    return found


def _is_stretch(cut: Mapping[str, Any]) -> bool:
    """One channel of one file as it is, from a start for a duration."""
    recording = cut.get("recording")
    if cut.get("type", "MonoCut") != "MonoCut" or not recording or recording.get("transforms"):
        return False
    sources = recording.get("sources", [])
    return len(sources) == 1 and sources[0].get("type") == "file"


def _find_sources(recording: dict, resolver: Resolver, options: ReadOptions) -> None:
    """Make the paths of a recording absolute. Raises ValueError "fault: detail"."""
    for source in recording["sources"]:
        kind, name = source["type"], source["source"]
        if kind in _MADE_BY_OTHERS and not options.allow_commands:
            raise ValueError(f"command: {name}: commands and addresses are used with --allow-commands only")
        if kind == "file":
            found = resolver.find(str(name))
            if found is None:
                raise ValueError(f"missing audio: {name}: no such file ({resolver.sought()})")
            source["source"] = found


def _pairs(recordings: Path, supervisions: Path, options: ReadOptions, split: str) -> Found:
    resolver = Resolver(recordings.parent, options.audio_root)
    found: dict[str, dict | Skipped] = {}
    for number, recording in _objects(recordings):
        try:
            id = str(recording["id"])
            _find_sources(recording, resolver, options)
            found[id] = recording
        except (KeyError, TypeError, ValueError) as error:
            id = str(recording.get("id", "")) if isinstance(recording, dict) else ""
            fault, _, detail = str(error).partition(": ")
            skipped = Skipped(str(recordings), number, fault if detail else "bad row", detail or str(error), id)
            found[id] = skipped
            yield skipped
    used = set()
    for number, s in _objects(supervisions):
        try:
            recording = found[str(s["recording_id"])]
            used.add(str(s["recording_id"]))
            if isinstance(recording, Skipped):
                continue  # named already
            yield from _of_pair(recording, s, str(supervisions), number, split)
        except (KeyError, TypeError, ValueError) as error:
            id = str(s.get("id", "")) if isinstance(s, dict) else ""
            detail = f"no supervision of a recording in {recordings.name} ({type(error).__name__}: {error})"
            yield Skipped(str(supervisions), number, "bad row", detail, id)
    for id in found.keys() - used:
        if not isinstance(found[id], Skipped):
            yield Skipped(str(recordings), 0, "no transcript", f"no supervision of it in {supervisions.name}", id)


def _of_pair(recording: dict, s: dict, file: str, line: int, split: str) -> Found:
    id, start, duration = str(s["id"]), float(s["start"]), float(s["duration"])
    if s.get("text") is None:
        yield Skipped(file, line, "no transcript", "a supervision without text", id)
        return
    whole = start == 0 and duration >= float(recording["duration"]) - 0.01
    channel = s.get("channel", 0)
    channel = channel if isinstance(channel, int) else None
    speaker, language = str(s.get("speaker") or ""), str(s.get("language") or "")
    cut = {"recording": recording, "start": start, "duration": duration, "channel": channel or 0}
    if _is_stretch(cut):
        source = recording["sources"][0]
        if len(source.get("channels", [0])) == 1:
            channel = None
        span = (0.0, None) if whole else (start, start + duration)
        yield Item(source["source"], str(s["text"]), file, line, id, *span, channel, speaker, language, split)
        return
    cut |= {"id": id, "type": "MonoCut", "supervisions": []}
    yield Item(json.dumps(cut), str(s["text"]), file, line, id, 0.0, None, None, speaker, language, split, CUT)
