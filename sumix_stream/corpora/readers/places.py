"""Files as people name them: audio beside texts, paths relative to nobody says what, texts in several encodings."""

import gzip
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sumix_stream.audio import listing
from sumix_stream.audio.listing import is_audio

AUDIO = listing.SUFFIXES
_SOURCES = ("", "audio", "wavs", "wav", "clips", "data", "flac")  # folders beside a table that hold its audio


class Folder(NamedTuple):
    """A folder and the names of the files in it, sorted."""

    path: Path
    names: list[str]


def walk(root: Path) -> Iterator[Folder]:
    """Every folder below `root`, itself first, in the order of their names; hidden ones are left out."""
    for path, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Folder(Path(path), sorted(name for name in names if not name.startswith(".")))


class Resolver:
    """Finds audio whose path may be relative to any of several folders.

    Args:
        folder: that of the file which names the audio.
        root: the only folder that relative paths begin at, if people say so; names alone are sought there too.
    """

    def __init__(self, folder: Path, root: Path | None = None) -> None:
        folder = Path(os.path.abspath(folder))
        if root is None:
            near = [folder / name if name else folder for name in _SOURCES]
            self._bases = [*near, folder.parent, folder.parent.parent, Path.cwd()]
        else:
            self._bases = [Path(os.path.abspath(root))]
        self._root, self._folder = root, folder
        self._endings: dict[str, str] = {}  # base -> suffix that its files had when a name lacked one

    def find(self, name: str) -> str | None:
        """The absolute path of a file, or None. A name without a suffix finds `name.wav`, `name.flac`, ..."""
        name = name.strip().removeprefix("file://")
        if os.path.isabs(name):
            if os.path.isfile(name):
                return name
            if self._root is None:
                return None
            name = os.path.basename(name)
        for number, base in enumerate(self._bases):
            if (path := self._in(str(base), name)) is not None:
                self._bases.insert(0, self._bases.pop(number))  # the others will be there too
                return path
        return None

    def _in(self, base: str, name: str) -> str | None:
        path = os.path.normpath(os.path.join(base, name))
        if os.path.isfile(path):
            return path
        if is_audio(name):
            return None
        known = self._endings.get(base)
        for suffix in ([known] if known else []) + list(AUDIO):
            if os.path.isfile(path + suffix):
                self._endings[base] = suffix
                return path + suffix
        return None

    def sought(self) -> str:
        """Where `find` looks, for an error."""
        if self._root is not None:
            return f"sought in {self._root}"
        return f"sought in {self._folder}, the folders in it and above it; --audio-root names another"


def open_text(path: Path, encoding: str | None = None) -> io.TextIOBase:
    """A text file, compressed or not, as lines; its byte order mark is not among them.

    Without `encoding` it is UTF-8, or UTF-16 where its mark says so. What is not valid becomes U+FFFD, which the check
    of texts names.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    raw = gzip.open(path, "rb") if zipped else open(path, "rb")
    if encoding is None:
        mark = raw.read(4)
        raw.seek(0)
        encoding = "utf-16" if mark[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return io.TextIOWrapper(raw, encoding=encoding, errors="replace", newline=None)


def read_text(path: Path, encoding: str | None = None, most: int = 1 << 18) -> str:
    """The text of a small file, decoded as `open_text` does; at most so many bytes of it."""
    with open(path, "rb") as file:
        data = file.read(most)
    if encoding is None:
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return data.decode(encoding, errors="replace")


def first_lines(path: Path, count: int = 1, encoding: str | None = None) -> list[str]:
    """The first lines that hold anything, at most 64 KiB of each; none of a file that cannot be read as text."""
    found: list[str] = []
    try:
        with open_text(path, encoding) as file:
            while len(found) < count and (line := file.readline(1 << 16)):
                if line.strip():
                    found.append(line.rstrip("\n"))
    except (OSError, EOFError, LookupError, UnicodeError):
        return []
    return found


def name_fault(path: str) -> str | None:
    """Why a path cannot stand in a manifest, which is UTF-8; None: it can."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return f"{os.fsencode(path)!r}: a file name that is not UTF-8; rename it"
    return None
