"""Where the cuts of a manifest lie in its files: found in one pass, then read one by one by their offsets."""

import gzip
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lhotse import Recording
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from lhotse.shar.utils import fill_shar_placeholder

from sumix_stream.data.manifests import ManifestError, remedy, settle

DAMAGE = (OSError, EOFError, AssertionError, KeyError, TypeError, ValueError, AttributeError, zlib.error)


class Located(NamedTuple):
    """Bytes of a cut: its line; of Shar also its audio and their description in tar file `shard`. -1: there are none.

    Of one cut ints, of N cuts arrays (N,) int64.
    """

    line: int | np.ndarray
    line_size: int | np.ndarray
    shard: int | np.ndarray = -1
    audio: int | np.ndarray = -1
    audio_size: int | np.ndarray = -1
    about: int | np.ndarray = -1
    about_size: int | np.ndarray = -1


class TextSource:
    """A `.jsonl` or `.jsonl.gz` file of cuts."""

    def __init__(self, path: Path):
        self.path = path

    def files(self) -> list[Path]:
        """Everything that an index is made of."""
        return [self.path]

    def survey(self, folder: Path) -> Iterator[tuple[Cut, Located]]:
        """Every cut and where it lies; compressed lines are copied to `folder`.

        Raises ManifestError naming the file and the line where it is damaged.
        """
        if self.path.suffix != ".gz":
            offset = 0
            for line, cut in _cuts(self.path):
                yield cut, Located(offset, len(line))
                offset += len(line)
        else:
            located = ((line, cut, Located(0, len(line))) for line, cut in _cuts(self.path))
            yield from _copied(located, folder)

    def open(self, folder: Path, located: Located) -> None:
        """Read from now on by what `survey` found, with the copy that it left in `folder`."""
        self._lines = _File(folder / "cuts.jsonl" if self.path.suffix == ".gz" else self.path)
        self.located = located

    def read(self, number: int) -> Cut:
        """Raises ManifestError when the bytes are not the cut's any more."""
        line = self._lines.read(int(self.located.line[number]), int(self.located.line_size[number]))
        try:
            return settle(deserialize_item(json.loads(line)), self.path.absolute().parent)
        except ManifestError:
            raise
        except DAMAGE as error:
            raise ManifestError(
                f"{self._lines.path}: cut {number} cannot be read ({_say(error)}): it has changed since it was "
                "indexed, or is damaged; run again, and if this comes again remove its index"
            ) from error


class SharSource(TextSource):
    """A folder of cuts.NNNNNN.jsonl.gz and recording.NNNNNN.tar (Lhotse Shar), whose audio is read by offset too."""

    def files(self) -> list[Path]:
        return self._shards("cuts", ".jsonl") + self._shards("recording", ".tar")

    def _shards(self, field: str, extension: str) -> list[Path]:
        return sorted(path for path in self.path.glob(f"{field}.*") if extension in path.name)

    def survey(self, folder: Path) -> Iterator[tuple[Cut, Located]]:
        yield from _copied(self._survey(), folder)

    def _survey(self) -> Iterator[tuple[bytes, Cut, Located]]:
        manifests, tars = self._shards("cuts", ".jsonl"), self._shards("recording", ".tar")
        if tars and len(tars) != len(manifests):
            raise ManifestError(
                f"{self.path}: {len(manifests)} files of cuts, but {len(tars)} of audio; {remedy(self.path)}"
            )
        for shard, manifest in enumerate(manifests):
            members = _members(tars[shard]) if tars else None
            for number, (line, cut) in enumerate(_cuts(manifest), 1):
                where = Located(0, len(line), shard)
                if members is not None:
                    name, *where_audio = next(members, (None,))
                    if name != cut.id:
                        raise ManifestError(
                            f"{tars[shard]}: {name or 'nothing'} where the audio of {cut.id} should be "
                            f"({manifest.name}, line {number}); {remedy(self.path)}"
                        )
                    where = Located(0, len(line), shard, *where_audio)
                yield line, cut, where

    def open(self, folder: Path, located: Located) -> None:
        self._lines, self.located = _File(folder / "cuts.jsonl"), located
        self._tars = self._shards("recording", ".tar")

    def read(self, number: int) -> Cut:
        cut, where = super().read(number), Located(*(int(column[number]) for column in self.located))
        if where.audio < 0:
            return cut
        tar = self._tars[where.shard]
        try:
            with open(tar, "rb", buffering=0) as file:
                recording: Recording = deserialize_item(
                    json.loads(os.pread(file.fileno(), where.about_size, where.about))
                )
                fill_shar_placeholder(recording, os.pread(file.fileno(), where.audio_size, where.audio), cut.id)
        except DAMAGE as error:
            raise ManifestError(f"{tar}: audio of {cut.id} cannot be read ({_say(error)}); run again") from error
        cut.recording = recording
        return cut


class _File:
    """A file read at offsets by this process and its children."""

    def __init__(self, path: Path):
        self.path = path
        self._file = open(path, "rb", buffering=0)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)

    def __reduce__(self):
        return _File, (self.path,)  # a worker that was not forked opens its own


def _cuts(path: Path) -> Iterator[tuple[bytes, Cut]]:
    """Lines of a file of cuts, line ends included, each with its cut."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                cut = settle(deserialize_item(json.loads(line)))
                if not isinstance(cut, Cut):
                    raise ValueError(f"a {type(cut).__name__}, not a cut")
                yield line, cut
                number += 1
    except ManifestError as error:
        raise ManifestError(f"{path}, line {number}: {error}") from None
    except DAMAGE as error:
        raise ManifestError(f"{path}, line {max(number, 1)}: damaged ({_say(error)}); {remedy(path)}") from error


def _copied(lines: Iterator[tuple[bytes, Cut, Located]], folder: Path) -> Iterator[tuple[Cut, Located]]:
    """Cuts while their lines are copied to `folder`, where they lie."""
    with open(folder / "cuts.jsonl", "wb") as copy:
        for line, cut, located in lines:
            yield cut, located._replace(line=copy.tell())
            copy.write(line)
        copy.flush()
        os.fsync(copy.fileno())


def _members(path: Path) -> Iterator[tuple[str, int, int, int, int]]:
    """(id, offset and size of the audio, offset and size of its description) in a tar file; audio that is not there has
    offset -1."""
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            members = iter(tar)
            for audio in members:
                about = next(members, None)
                if about is None or about.offset_data + about.size > size:
                    raise tarfile.TarError("it ends too early")
                name = str(Path(audio.name).with_suffix(""))
                if audio.name.endswith(".nodata"):
                    yield name, -1, -1, -1, -1
                else:
                    yield name, audio.offset_data, audio.size, about.offset_data, about.size
    except (tarfile.TarError, OSError) as error:
        raise ManifestError(f"{path}: damaged ({_say(error)}); {remedy(path)}") from error


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
