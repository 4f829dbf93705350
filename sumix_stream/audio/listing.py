"""Audio files of a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from sumix_stream.audio import media
from sumix_stream.audio.samples import AudioError

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".oga", ".aiff", ".aif", ".au", ".sph", ".w64", ".caf")
HEADERLESS = (".raw", ".pcm", ".sln", ".sln16", ".s16", ".s16le", ".ulaw", ".alaw", ".ul", ".al", ".vox", ".g721")


def is_audio(name: str) -> bool:
    """By the name's ending: what libsndfile reads, and what PyAV does."""
    return os.path.splitext(name)[1].lower() in (*SUFFIXES, *media.SUFFIXES)


def audio_files(folder: Path, headerless: bool = False) -> list[Path]:
    """Those in a folder and the folders in it, in the order of their names; hidden ones are left out.

    Args:
        headerless: those whose samples have no header, by the names' endings, instead of all others.

    Raises AudioError where there is none.
    """
    known = HEADERLESS if headerless else (*SUFFIXES, *media.SUFFIXES)
    found = [path for path in _walk(folder, set()) if path.suffix.lower() in known]
    if not found:
        raise AudioError(f"{folder}: a folder without audio files (known endings: {' '.join(known)})")
    return found


def _walk(folder: Path, above: set[str]) -> Iterator[Path]:
    place = os.path.realpath(folder)
    if place in above:  # a link to a folder that it lies in
        return
    with os.scandir(folder) as entries:
        entries = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir():
            yield from _walk(Path(entry.path), above | {place})
        elif entry.is_file():
            yield Path(entry.path)
