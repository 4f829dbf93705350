"""LibriSpeech's layout: `<speaker>/<chapter>/<id>.flac` beside `<speaker>-<chapter>.trans.txt`, a line an utterance."""

import os
from pathlib import Path

from sumix_stream.corpora.names import require_plain_name
from sumix_stream.corpora.readers.base import Found, Item, ReadOptions, Skipped, split_of
from sumix_stream.corpora.readers.places import is_audio, open_text, walk

ABOUT = "LibriSpeech's layout: audio beside *.trans.txt"
SUFFIX = ".trans.txt"


def recognise(path: Path) -> bool:
    return path.is_dir() and any(name.endswith(SUFFIX) for folder in walk(path) for name in folder.names)


def read(path: Path, options: ReadOptions) -> Found:
    """The speaker is the first part of the id (`19-198-0001`), the split that of a part's name (`train-clean-100`)."""
    if not recognise(path):
        raise ValueError(f"{path}: no *{SUFFIX} in it or below; is this LibriSpeech, or a part of it?")
    for folder in walk(path):
        tables = [name for name in folder.names if name.endswith(SUFFIX)]
        if tables:
            yield from _chapter(path, folder.path, tables, folder.names, options)


def _chapter(root: Path, folder: Path, tables: list[str], names: list[str], options: ReadOptions) -> Found:
    audio = {os.path.splitext(name)[0]: name for name in reversed(names) if is_audio(name)}
    parts = (*folder.relative_to(root).parts, root.name)
    split = next(filter(None, map(split_of, parts)), "")
    named = set()
    for table in tables:
        where = str(folder / table)
        with open_text(folder / table, options.encoding) as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                id, _, text = line.strip().partition(" ")
                named.add(id)
                try:
                    require_plain_name(id, f"{table}, line {number}")
                except ValueError as error:
                    yield Skipped(where, number, "bad id", str(error), id)
                    continue
                if id not in audio:
                    yield Skipped(where, number, "missing audio", f"{folder / id}.flac", id)
                    continue
                file = str(folder / audio[id])
                yield Item(file, text, where, number, id, speaker=id.split("-")[0], split=split)
    for stem in sorted(audio.keys() - named):
        listed = ", ".join(tables)
        yield Skipped(str(folder / audio[stem]), 0, "no transcript", f"{folder / audio[stem]} is not in {listed}", stem)
