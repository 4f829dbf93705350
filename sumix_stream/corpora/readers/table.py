"""Tables: CSV, TSV, `|`-separated and JSON lines, with a header or without.

LJSpeech's, Common Voice's, Hugging Face's and NeMo's are among them.
"""

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from sumix_stream.corpora.readers.base import Found, Item, ReadOptions, Skipped, split_of
from sumix_stream.corpora.readers.places import Resolver, first_lines, is_audio, open_text

ABOUT = "a table: CSV, TSV or JSON lines with a path and a text in each row"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".txt", ".psv")
SURE = (".csv", ".tsv", ".psv")
# Our name -> names of a column, the likelier first; compared without case, spaces and underscores.
NAMES = {
    "path": "path audiofilepath audiopath audiofile audio filepath filename file wav wavpath wavfilename clip",
    "text": "text sentence normalizedtext normedtext transcription transcript normalizedtranscription",
    "start": "start starttime begin begintime offset startms",
    "end": "end endtime stop stoptime endms",
    "duration": "duration durationms",
    "channel": "channel",
    "speaker": "speaker speakerid spk spkid clientid speakername reader",
    "split": "split subset partition set part",
    "language": "language lang locale",
    "id": "id uttid utteranceid uttname segmentid segid key",
}
COMMON_VOICE = ("train.tsv", "dev.tsv", "test.tsv")
DEFAULTS = ReadOptions()
SEPARATORS = ("\t", "|", ";", ",")
MOST_LINES = 20  # of one row: beyond, a quotation mark was never closed
_CHANNELS = {"left": 0, "right": 1, "a": 0, "b": 1, "l": 0, "r": 1}


class Layout(NamedTuple):
    """Where the columns of a table are."""

    separator: str  # "": JSON lines
    columns: dict[str, int]  # our name -> number of a column (of JSON lines: of a key of the first object), from 0
    header: bool
    names: list[str]  # as the header or the first object has them


def recognise(path: Path) -> bool:
    """A file called a table is one, whatever is in it: reading it says what is wrong."""
    return (path.is_file() and path.name.removesuffix(".gz").endswith(SURE)) or bool(_tables(path))


def _tables(path: Path, options: ReadOptions = DEFAULTS) -> list[Path]:
    """The tables that a source is: itself, or those in a folder."""
    if path.is_file():
        return [path] if _is_table(path, options) else []
    if not path.is_dir():
        return []
    if all((path / name).is_file() for name in COMMON_VOICE[::2]) and (path / "clips").is_dir():
        return [path / name for name in COMMON_VOICE if (path / name).is_file()]
    folders = [path, *sorted(p for p in path.iterdir() if p.is_dir() and split_of(p.name))]
    files = (p for folder in folders for p in sorted(folder.iterdir()))
    tables = [p for p in files if _is_table(p, options, sure=_is_tables_name(p.stem))]
    metadata = [p for p in tables if p.stem == "metadata"]
    of_splits = [p for p in tables if split_of(p.stem)]
    return metadata or of_splits or tables


def _is_tables_name(stem: str) -> bool:
    """Of a file in a folder: others are tables if their header says so, and .txt are transcripts beside their audio."""
    return stem.lower() in ("metadata", "transcripts", "transcript", "train", "valid", "dev", "test", "eval")


def _is_table(path: Path, options: ReadOptions, sure: bool = True) -> bool:
    name = path.name.removesuffix(".gz")
    if not name.endswith(SUFFIXES) or not path.is_file() or (name.endswith(".txt") and not sure):
        return False
    try:
        return layout(path, options).header or sure
    except ValueError:
        return False


def layout(path: Path, options: ReadOptions) -> Layout:
    """Where a table's columns are: by --columns, by the names in its header or, without one, by what they hold.

    Raises:
        ValueError: no column of paths or none of texts.
    """
    lines = first_lines(path, 10, options.encoding)
    if not lines:
        raise ValueError(f"{path}: empty, or no text file; a table has a row for each utterance")
    line = lines[0]
    if line.lstrip().startswith("{"):
        try:
            names = [str(name) for name in json.loads(line)]
        except ValueError as error:
            raise ValueError(f"{path}:1: looks like JSON lines, but is no JSON object ({error})") from None
        return Layout("", _named(names, options, path), True, names)
    separator = _separator(lines)
    cells = next(_reader([line], separator), [])
    if len(cells) < 2:
        raise ValueError(f"{path}: its first line has no tab, comma, ; or | between columns: {line[:60]!r}")
    if _looks_like_header(cells, options):
        return Layout(separator, _named(cells, options, path), True, cells)
    return Layout(separator, _unnamed(path, cells, options), False, [])


def _separator(lines: list[str]) -> str:
    """What divides all lines into equally many columns, at least two; else what divides the first one."""
    widths = {separator: [len(row) for row in _reader(lines, separator)] for separator in SEPARATORS}
    even = (separator for separator, width in widths.items() if width and width[0] > 1 and len(set(width)) == 1)
    some = (separator for separator, width in widths.items() if width and width[0] > 1)
    return next(even, None) or next(some, ",")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.strip().strip("\ufeff").lower())


def _looks_like_header(cells: list[str], options: ReadOptions) -> bool:
    known = {name for names in NAMES.values() for name in names.split()}
    wanted = {name for name in options.columns.values() if not name.isdecimal()}
    return bool(wanted & {cell.strip() for cell in cells}) or sum(_plain(cell) in known for cell in cells) >= 2


def _named(names: list[str], options: ReadOptions, path: Path) -> dict[str, int]:
    plain = [_plain(name) for name in names]
    found: dict[str, int] = {}
    for ours, theirs in NAMES.items():
        for name in theirs.split():
            if name in plain and plain.index(name) not in found.values():
                found[ours] = plain.index(name)
                break
    for ours, name in options.columns.items():
        stripped = [other.strip() for other in names]
        if name in stripped:
            found[ours] = stripped.index(name)
        elif name.isdecimal() and 1 <= int(name) <= len(names):
            found[ours] = int(name) - 1
        else:
            raise ValueError(f"{path}: --columns {ours}={name}: no such column; it has {', '.join(names)}")
    if "path" not in found and "id" in found:
        found["path"] = found.pop("id")  # LJSpeech and others name a file by its id
    for ours in ("path", "text"):
        if ours not in found:
            raise ValueError(
                f"{path}: no column for {ours} among {', '.join(names)}; name it with --columns {ours}=NAME"
            )
    return found


def _unnamed(path: Path, cells: list[str], options: ReadOptions) -> dict[str, int]:
    columns: dict[str, int] = {}
    for ours, name in options.columns.items():
        if not name.isdecimal() or not 1 <= int(name) <= len(cells):
            raise ValueError(f"{path}: --columns {ours}={name}: it has no header, but columns 1 to {len(cells)}")
        columns[ours] = int(name) - 1
    resolver = Resolver(path.parent, options.audio_root)
    if "path" not in columns:
        files = (n for n, cell in enumerate(cells) if is_audio(cell) or resolver.find(cell) is not None)
        columns["path"] = next(files, -1)
    if columns["path"] == -1:
        raise ValueError(
            f"{path}: neither a header nor an audio file in its first line ({', '.join(cells)[:80]}); "
            f"name the columns with --columns path=1,text=2 (audio is {resolver.sought()})"
        )
    if "text" not in columns:  # LJSpeech: id, text as written, text as read
        columns["text"] = len(cells) - 1 if columns["path"] != len(cells) - 1 else 0
    if columns["text"] == columns["path"]:
        raise ValueError(f"{path}: one column holds no path and text; name them with --columns path=1,text=2")
    return columns


def read(path: Path, options: ReadOptions) -> Found:
    """Rows without audio or with impossible times are named by line."""
    tables = _tables(path, options)
    if not tables:
        if path.is_file():
            layout(path, options)  # says what is wrong
        raise ValueError(f"{path}: no table in it ({', '.join(SUFFIXES)} with a column of paths and one of texts)")
    folders = ["" if table.parent in (path, path.parent) else table.parent.name for table in tables]
    splits = [split_of(table.stem) or split_of(folder) for table, folder in zip(tables, folders, strict=True)]
    if len(tables) > 1 and not all(splits):
        names = ", ".join(table.name for table in tables)
        raise ValueError(f"{path}: several tables ({names}); name the ones to use")
    for table, split in zip(tables, splits, strict=True):
        yield from _rows(table, split, options)


def _rows(path: Path, split: str, options: ReadOptions) -> Found:
    where = layout(path, options)
    resolver = Resolver(path.parent, options.audio_root)
    root = str(path.parent.absolute())
    names = {ours: where.names[column] for ours, column in where.columns.items() if where.names}
    milliseconds = {ours for ours, name in names.items() if _plain(name).endswith("ms")}
    for line, row in _cells(path, where, options):
        if isinstance(row, Skipped):
            yield row
            continue
        try:
            yield _item(row, str(path), line, split, resolver, root, milliseconds)
        except ValueError as error:
            fault, _, detail = str(error).partition(": ")
            yield Skipped(str(path), line, fault, detail, row.get("id", ""))


def _item(
    row: Mapping[str, str],
    file: str,
    line: int,
    split: str,
    resolver: Resolver,
    root: str,
    milliseconds: set[str],
) -> Item:
    name = row.get("path", "")
    if not name:
        raise ValueError("missing audio: no path in this row")
    audio = resolver.find(name)
    if audio is None:
        raise ValueError(f"missing audio: {name}: no such file ({resolver.sought()})")
    time = {
        ours: None if not row.get(ours) else seconds(row[ours]) / (1000 if ours in milliseconds else 1)
        for ours in ("start", "end", "duration")
    }
    start, end = time["start"] or 0.0, time["end"]
    if end is None and time["duration"] is not None and time["start"] is not None:
        end = start + time["duration"]
    if end is not None and end <= start:
        raise ValueError(f"bad times: from {start:g} to {end:g} s")
    stem = os.path.splitext(audio)[0]
    id = row.get("id") or (os.path.relpath(stem, root) if stem.startswith(root + os.sep) else os.path.basename(stem))
    if not row.get("id") and (start or end is not None):
        id += f"-{round(1000 * start):07d}"
    return Item(
        audio,
        row.get("text", ""),
        file,
        line,
        id,
        start,
        end,
        _channel(row.get("channel", "")),
        row.get("speaker", ""),
        row.get("language", ""),
        split_of(row.get("split", "")) or split,
    )


def _cells(path: Path, where: Layout, options: ReadOptions) -> Iterator[tuple[int, dict[str, str] | Skipped]]:
    """(line, cells by our names), from 1."""
    with open_text(path, options.encoding) as file:
        if not where.separator:
            layouts: dict[tuple[str, ...], dict[str, int]] = {}
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(path, number, line, options, layouts)
            return
        rows = _reader(file, where.separator)
        started, width = 0, 0
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                detail = f"not a table ({error}); is a quotation mark unclosed?"
                raise ValueError(f"{path}:{started + 1}: {detail}") from None
            first, started = started + 1, rows.line_num
            width = width or len(row)
            if (where.header and first == 1) or not any(map(str.strip, row)):
                continue
            if started - first >= MOST_LINES:
                detail = f"it goes on to line {started}: a quotation mark is never closed"
                yield first, Skipped(str(path), first, "bad row", detail)
            elif len(row) != width:
                yield first, Skipped(str(path), first, "bad row", f"{len(row)} cells, the first line has {width}")
            else:
                yield first, {ours: row[column].strip() for ours, column in where.columns.items()}


def _object(
    path: Path, number: int, line: str, options: ReadOptions, layouts: dict[tuple[str, ...], dict[str, int]]
) -> dict[str, str] | Skipped:
    """A JSON object by our names. Objects of a file may have different keys: `layouts` keeps what was found."""
    try:
        content = json.loads(line)
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        keys = tuple(content)
        if keys not in layouts:
            layouts[keys] = _named(list(keys), options, path)
    except ValueError as error:
        return Skipped(str(path), number, "bad row", str(error).removeprefix(f"{path}: "))
    values = {ours: content[keys[number]] for ours, number in layouts[keys].items()}
    if isinstance(values["path"], dict):  # Hugging Face: {"path": ..., "bytes": ...}
        values["path"] = values["path"].get("path")
    return {ours: "" if value is None else str(value).strip() for ours, value in values.items()}


def _reader(lines, separator: str) -> Iterator[list[str]]:
    """Quotation marks quote between commas only: in the others they are part of a text, as often single ones."""
    quoted = separator in ",;"
    return csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)


def seconds(text: str) -> float:
    """Seconds of `12.5`, `1:02.5` or `0:01:02,5`. Raises ValueError "bad times: ..."."""
    try:
        parts = [float(part.replace(",", ".")) for part in text.split(":")]
        value = sum(part * 60**power for power, part in enumerate(reversed(parts)))
        if len(parts) > 3 or not 0 <= value < float("inf"):
            raise ValueError
    except ValueError:
        raise ValueError(f"bad times: {text!r} is no time in seconds") from None
    return value


def _channel(text: str) -> int | None:
    if not text:
        return None
    number = _CHANNELS.get(text.lower(), text)
    try:
        if (value := int(float(number))) >= 0:
            return value
    except ValueError:
        pass
    raise ValueError(f"bad channel: {text!r} is none of 0, 1, ..., left, right")
