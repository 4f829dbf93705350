"""A folder of audio files, each with its text beside it: `a.wav`, `a.txt` (or `.lab`)."""

import os
from pathlib import Path

from sumix_stream.corpora.readers.base import Found, Item, ReadOptions, Skipped, split_of
from sumix_stream.corpora.readers.places import is_audio, read_text, walk

ABOUT = "a folder of audio files with a .txt or .lab beside each"
TEXTS = (".txt", ".lab")


def recognise(path: Path) -> bool:
    return path.is_dir() and any(_pairs(folder.names) for folder in walk(path))


def _pairs(names: list[str]) -> bool:
    stems = {os.path.splitext(name)[0] for name in names if is_audio(name)}
    return any(os.path.splitext(name)[0] in stems for name in names if name.endswith(TEXTS))


def read(path: Path, options: ReadOptions) -> Found:
    """Audio without text and text without audio are named. Folders called train, dev, test, ... are the splits."""
    if not recognise(path):
        raise ValueError(f"{path}: no audio file with a {' or '.join(TEXTS)} of the same name beside it, here or below")
    for folder in walk(path):
        names = set(folder.names)
        of_folder = _split(path, folder.path)
        audio = {os.path.splitext(name)[0]: name for name in reversed(folder.names) if is_audio(name)}
        for stem in sorted(audio):
            file = str(folder.path / audio[stem])
            text = next((stem + suffix for suffix in TEXTS if stem + suffix in names), None)
            if text is None:
                wanted = " or ".join(stem + suffix for suffix in TEXTS)
                yield Skipped(file, 0, "no transcript", f"no {wanted} beside it")
                continue
            where = folder.path / text
            id = os.path.relpath(os.path.splitext(file)[0], path)
            yield Item(file, read_text(where, options.encoding), str(where), 1, id, split=of_folder)
        for name in folder.names:
            stem, suffix = os.path.splitext(name)
            if suffix in TEXTS and stem not in audio and not name.lower().startswith("readme"):
                yield Skipped(str(folder.path / name), 0, "missing audio", f"no audio file {stem}.* beside it")


def _split(root: Path, folder: Path) -> str:
    return next(filter(None, map(split_of, folder.relative_to(root).parts)), "")
