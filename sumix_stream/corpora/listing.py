"""The list of utterances that sources name: texts in one spelling, ids that may be file names, nothing twice."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from sumix_stream.corpora.faults import Fault
from sumix_stream.corpora.readers import READERS, reader_of
from sumix_stream.corpora.readers.base import COMMAND, FILE, SHARD, Item, ReadOptions, Skipped
from sumix_stream.corpora.readers.places import name_fault
from sumix_stream.corpora.text import TextNormaliser

BATCH = 64  # whole files that are one piece of work
OVERLAP = 0.3  # seconds that two utterances of a recording may share: subtitles often meet
LONGEST_ID = 100  # characters
_NOT_PLAIN = re.compile(r"[^\w.+@=-]+")


class Given(NamedTuple):
    """A source as people give it: the kind None is recognised; with a `split` all of it belongs to that part."""

    path: Path
    kind: str | None = None
    split: str = ""


class Source(NamedTuple):
    """What was given, what it is, and how many utterances it names."""

    path: str
    kind: str
    utterances: int


class Listing(NamedTuple):
    """What came of the sources."""

    sources: list[Source]
    num_items: int
    faults: list[Fault]


def write_items(
    sources: Sequence[Given],
    path: Path,
    normalise: TextNormaliser,
    options: ReadOptions,
    *,
    use_splits: bool = True,
    keep_overlaps: bool = False,
) -> Listing:
    """Write every utterance of `sources` as a line of JSON to `path`.

    A line is the item and, of its file, size and time: what is made of this list is as old as it. Whole files come in
    the order of reading, then parts of recordings, those of one recording together.

    Args:
        use_splits: keep what the sources say of train, valid and test, where they were not given as such.
        keep_overlaps: use utterances of one recording whose times overlap, in which more is said than is written.

    Raises:
        ValueError: a source cannot be read, or there is nothing to use in all of them.
    """
    faults: list[Fault] = []
    found: list[Source] = []
    ids: set[str] = set()
    heard: set[int] = set()
    parts: list[str] = []  # lines that begin with their recording
    count = 0
    speaker = re.compile(options.speaker) if options.speaker else None
    aside = path.with_name(path.name + ".part")
    with open(aside, "w", encoding="utf-8") as file, tqdm(desc="reading", unit="line", disable=None) as bar:
        for source, named, part in sources:
            kind, before = reader_of(source, named), count
            for item in READERS[kind].read(source, options):
                bar.update()
                if isinstance(item, Skipped):
                    faults.append(Fault("", item.id, item.fault, item.detail, False, item.file, item.line))
                    continue
                if speaker is not None and (match := speaker.search(item.audio)):
                    item = item._replace(speaker=match[1])
                text = normalise(item.text, item.language)
                item = item._replace(text=text, split=part or (item.split if use_splits else ""))
                if (fault := _fault(item, heard)) is not None:
                    faults.append(Fault(item.split, item.id, *fault, False, item.file, item.line))
                    continue
                item = item._replace(id=_unique(plain_name(item.id or Path(item.audio).stem), ids))
                line = json.dumps([*item, *_stamp(item)])
                count += 1
                if item.whole and item.kind != COMMAND:
                    file.write(line + "\n")
                else:
                    parts.append(line)
            found.append(Source(str(source), kind, count - before))
        for line in sorted(parts) if keep_overlaps else _apart(sorted(parts), faults):
            file.write(line + "\n")
    count -= sum(fault.fault == "overlap" for fault in faults)
    if not count:
        reasons = "; ".join(f"{f.file}:{f.line}: {f.fault} ({f.detail})" for f in faults[:3])
        raise ValueError(f"{', '.join(str(given.path) for given in sources)}: no utterance that can be used. {reasons}")
    aside.replace(path)
    return Listing(found, count, faults)


def _apart(lines: list[str], faults: list[Fault]) -> Iterator[str]:
    """The lines whose stretch of a recording's channel is nobody else's; both of two that overlap become faults."""
    for _, group in groupby(((item_of(line), line) for line in lines), key=lambda pair: pair[0].audio):
        members = sorted(group, key=lambda pair: pair[0].start)
        overlapping: dict[int, Item] = {}
        last: dict[int | None, int] = {}  # channel -> place of the one that ends last
        for place, (item, _) in enumerate(members):
            other = last.get(item.channel)
            if other is not None and item.start < _end(members[other][0]) - OVERLAP:
                overlapping.setdefault(other, item)
                overlapping[place] = members[other][0]
            if other is None or _end(item) > _end(members[other][0]):
                last[item.channel] = place
        for place, (item, line) in enumerate(members):
            if place not in overlapping or item.kind == SHARD:
                yield line
                continue
            other = overlapping[place]
            detail = f"{item.id} from {item.start:g} s overlaps {other.id} ({other.file}:{other.line}); --keep-overlaps"
            faults.append(Fault(item.split, item.id, "overlap", detail, False, item.file, item.line))


def _end(item: Item) -> float:
    return float("inf") if item.end is None else item.end


def _fault(item: Item, heard: set[int]) -> tuple[str, str] | None:
    if not any(map(str.isalnum, item.text)):
        return "empty transcript", repr(item.text)
    if "\ufffd" in item.text:
        return "not UTF-8", f"{item.text[:80]!r}; name the encoding with --encoding, such as latin-1"
    if item.kind == FILE and (detail := name_fault(item.audio)) is not None:
        return "file name", detail
    key = hash((item.kind, item.audio, item.start, item.end, item.channel, item.line if item.kind == SHARD else 0))
    if key in heard:
        return "listed twice", f"{item.audio[:200]} from {item.start:g} s is in the list already"
    heard.add(key)
    return None


def plain_name(id: str) -> str:
    """An id that may be the name of a file anywhere: letters, digits and `.+@=_-`, not too long, no dot first."""
    plain = _NOT_PLAIN.sub("-", id.replace(os.sep, "-")).strip("-").lstrip(".") or "utterance"
    return plain[-LONGEST_ID:].lstrip(".-") or "utterance"


def _unique(id: str, taken: set[str]) -> str:
    name, number = id, 1
    while name in taken:
        number += 1
        name = f"{id}-{number}"
    taken.add(name)
    return name


def _stamp(item: Item) -> tuple[int, int]:
    if item.kind not in (FILE, SHARD):
        return 0, 0
    try:
        status = os.stat(item.audio)
    except OSError:
        return -1, -1  # the check says it
    return status.st_size, status.st_mtime_ns


def pieces_of_work(path: Path) -> Iterator[list[str]]:
    """The lines of a list, those of one recording or shard together, whole files BATCH at a time."""
    with open(path, encoding="utf-8") as lines:
        for key, group in groupby(lines, key=_recording):
            if key is not None:
                yield list(group)
                continue
            while batch := list(islice(group, BATCH)):
                yield batch


def _recording(line: str) -> str | None:
    """What a line's utterance is a part of; None: a file of its own."""
    item = item_of(line)
    if item.kind in (COMMAND, SHARD) or not item.whole:
        return f"{item.kind}\n{item.audio}"
    return None


def item_of(line: str) -> Item:
    """The inverse of a line of `write_items`."""
    return Item(*json.loads(line)[: len(Item._fields)])
