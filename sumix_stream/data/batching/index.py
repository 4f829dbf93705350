"""Cuts by number: manifests indexed once, so that any cut is one read away and an epoch can be planned from arrays.

An index is a folder beside its manifest, `.<manifest's name>.index/<key>/`, where the key tells the size and time of
each file it was made of. It holds where each cut lies (`cuts.npz`), how long each is, who speaks, its number of tokens
for a tokenizer (`tokens-*.npy`), and of compressed manifests an uncompressed copy (`cuts.jsonl`).
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from lhotse import CutSet
from lhotse.cut import Cut
from tqdm.auto import tqdm

from sumix_stream.data.batching.lines import Located, SharSource, TextSource
from sumix_stream.data.manifests import (
    ManifestError,
    cut_text,
    manifest_paths,
    manifests_of,
    remedy,
    settle,
    supervision_fault,
)
from sumix_stream.tokenizer import Tokenizer

FORMAT = 2  # of the files below: an index of another format is made anew
UNKNOWN = -1  # number of tokens of a transcript that the tokenizer cannot write, or of which nobody knows the order
log = logging.getLogger(__name__)


class Columns(NamedTuple):
    """What a plan knows of N cuts."""

    duration: np.ndarray  # (N,) float64, seconds
    num_tokens: np.ndarray  # (N,) int32; 0: no transcript, UNKNOWN: it cannot be written
    speaker: np.ndarray  # (N,) uint32: equal for the cuts of a speaker, 0: nobody is named


class CutIndex:
    """The cuts of manifests, one after the other, or of a CutSet held in memory: `columns` of all, `read` of one.

    `names` are the manifests', or one for a CutSet; `source` (N,) tells which of them each cut is of.

    Raises:
        ManifestError: a manifest is missing, empty or damaged; names the file and the line.
    """

    def __init__(self, cuts: CutSet | str | Path | Sequence[str | Path], tokenizer: Tokenizer):
        paths = manifests_of(cuts) if isinstance(cuts, CutSet) else manifest_paths(cuts)
        if paths is None:
            self._parts, self.names = [_InMemory(cuts, tokenizer)], ["cuts in memory"]
        else:
            self._parts, self.names = [_Indexed(path, tokenizer) for path in paths], list(map(str, paths))
        counts = [len(part.columns.duration) for part in self._parts]
        self._ends = np.cumsum(counts)
        self.source = np.repeat(np.arange(len(counts)), counts)
        columns = zip(*(part.columns for part in self._parts), strict=True)
        self.columns = Columns(*(np.concatenate(column) for column in columns))

    def __len__(self) -> int:
        return len(self.columns.duration)

    def read(self, number: int) -> Cut:
        """Cut `number` of all, from 0."""
        part = int(np.searchsorted(self._ends, number, side="right"))
        first = int(self._ends[part - 1]) if part else 0
        return self._parts[part].read(number - first)


def measure(cut: Cut, tokenizer: Tokenizer) -> tuple[float, int, int]:
    """A row of `Columns`."""
    speaker = next((s.speaker for s in cut.supervisions if s.speaker), None)
    return cut.duration, num_tokens(cut, tokenizer), zlib.crc32(str(speaker).encode()) if speaker else 0


def num_tokens(cut: Cut, tokenizer: Tokenizer) -> int:
    """Tokens of its transcript, or UNKNOWN."""
    tokens = tokenizer.encode(cut_text(cut))
    return UNKNOWN if tokenizer.unk_id in tokens or supervision_fault(cut) else len(tokens)


class _InMemory:
    """Cuts that were not read from manifests: held as they are."""

    def __init__(self, cuts: CutSet, tokenizer: Tokenizer):
        self._cuts = [settle(cut) for cut in cuts]
        if not self._cuts:
            raise ManifestError("no cut is left to train on: the CutSet is empty")
        columns = zip(*(measure(cut, tokenizer) for cut in self._cuts), strict=True)
        self.columns = Columns(*map(np.array, columns, (np.float64, np.int32, np.uint32)))

    def read(self, number: int) -> Cut:
        return self._cuts[number]


class _Indexed:
    """The cuts of one manifest, found through its index, which is made or made anew where it must be."""

    def __init__(self, path: Path, tokenizer: Tokenizer):
        self.path = path
        self._source = SharSource(path) if path.is_dir() else TextSource(path)
        self._kept: tempfile.TemporaryDirectory | None = None  # an index that could be kept nowhere else
        digest = hashlib.sha256(tokenizer.to_bytes()).hexdigest()[:16]
        tokens_name = f"tokens-{digest}.npy"
        folder = self._find() or self._make(tokenizer, tokens_name)
        try:
            with np.load(folder / "cuts.npz") as arrays:
                located = Located(**{name: arrays[name] for name in Located._fields})
                duration, speaker = arrays["duration"], arrays["speaker"]
        except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise ManifestError(f"{folder}: damaged ({error}); remove this folder and run again") from error
        self._source.open(folder, located)
        tokens = self._tokens(folder / tokens_name, len(duration), tokenizer)
        self.columns = Columns(duration, tokens, speaker)

    def read(self, number: int) -> Cut:
        return self._source.read(number)

    def _find(self) -> Path | None:
        """An index of the manifest as it is now."""
        key = _key(self._source.files())
        return next((place / key for place in _places(self.path) if (place / key).is_dir()), None)

    def _make(self, tokenizer: Tokenizer, tokens_name: str) -> Path:
        """Write the index to the first place that can be written, whole or not at all."""
        if any(map(_holds_an_index, _places(self.path))):
            log.warning("%s: changed since it was indexed, or indexed by another release; indexed anew", self.path)
        for place in _places(self.path):
            try:
                place.mkdir(parents=True, exist_ok=True)
                with _locked(place) as alone:
                    return self._find() or self._write(place, alone, tokenizer, tokens_name)
            except OSError as error:
                log.info("%s: no index can be kept here (%s)", place, error.strerror or error)
        self._kept = tempfile.TemporaryDirectory(prefix="sumix-index-")
        log.warning("%s: its index is kept in %s for this run only", self.path, self._kept.name)
        return self._write(Path(self._kept.name), False, tokenizer, tokens_name)

    def _write(self, place: Path, alone: bool, tokenizer: Tokenizer, tokens_name: str) -> Path:
        key = _key(self._source.files())
        aside = Path(tempfile.mkdtemp(prefix=f"{key}.part.", dir=place))
        try:
            columns, located = Columns(*map(array, "diI")), Located(*map(array, "q" * len(Located._fields)))
            with tqdm(desc=f"{self.path.name}: index", unit="cut", disable=None) as bar:
                for cut, where in self._source.survey(aside):
                    for column, value in zip(columns + located, measure(cut, tokenizer) + where, strict=True):
                        column.append(value)
                    bar.update()
            if not columns.duration:
                raise ManifestError(f"{self.path}: no cuts in it; {remedy(self.path)}")
            arrays = {name: np.array(column) for name, column in {**columns._asdict(), **located._asdict()}.items()}
            tokens = arrays.pop("num_tokens")
            with open(aside / "cuts.npz", "wb") as file:
                np.savez_compressed(file, **arrays)
                _sync(file)
            _save_tokens(aside / tokens_name, tokens)
            aside.chmod(0o755)
            if key != _key(self._source.files()):
                raise ManifestError(f"{self.path}: it was changed while it was read; run again")
            try:
                aside.rename(place / key)
            except OSError:
                if not (place / key).is_dir():  # another process, which did not wait for us, was as quick
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        if alone:
            for stale in place.iterdir():
                if stale.is_dir() and stale.name != key:
                    shutil.rmtree(stale, ignore_errors=True)
        return place / key

    def _tokens(self, path: Path, count: int, tokenizer: Tokenizer) -> np.ndarray:
        """(count,) numbers of tokens: they depend on the tokenizer, the rest of the index does not."""
        with suppress(OSError, ValueError, EOFError):
            tokens = np.load(path)
            if tokens.shape == (count,):
                return tokens
        numbers = tqdm(range(count), desc=f"{self.path.name}: tokens", unit="cut", disable=None)
        tokens = np.array([num_tokens(self.read(i), tokenizer) for i in numbers], np.int32)
        try:
            _save_tokens(path, tokens)
        except OSError as error:
            log.info("%s cannot be kept (%s): counted again next time", path, error.strerror or error)
        return tokens


def _key(files: Sequence[Path]) -> str:
    """Names an index by what it was made of."""
    stats = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([FORMAT, stats]).encode()).hexdigest()[:24]


def _places(path: Path) -> list[Path]:
    """Where the index of a manifest may lie: beside it, shared by all who read it, or with the user's caches."""
    path = path.resolve()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    return [path.with_name(f".{path.name}.index"), cache / "sumix-stream" / "index" / name]


def _holds_an_index(place: Path) -> bool:
    try:
        return any(entry.is_dir() and ".part." not in entry.name for entry in place.iterdir())
    except OSError:
        return False


@contextmanager
def _locked(place: Path) -> Iterator[bool]:
    """One process at a time, where the file system has locks (True): it spares the others the work, no more."""
    lock = FileLock(place / ".lock")
    alone = True
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("%s: waiting for another process, which makes this index", place)
            lock.acquire()
    except NotImplementedError:
        alone = False
    try:
        yield alone
    finally:
        lock.release()


def _save_tokens(path: Path, tokens: np.ndarray) -> None:
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            np.save(file, tokens)
            _sync(file)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())
