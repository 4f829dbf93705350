"""Steps of a corpus preparation: done once, gone on with after an interruption, checked by checksums."""

import hashlib
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tqdm.auto import tqdm

Item, Result = TypeVar("Item"), TypeVar("Result")
CHECKSUMS = "SHA256SUMS"
AHEAD = 4  # pieces of work that wait for each process, or whose results wait for their turn


class Stages:
    """Named steps of a preparation, each done once.

    A marker file `.NAME.completed` keeps the settings a step was completed with and the checksums of what it made. A
    step runs when its marker is missing or tells of other settings, when a file that it made is missing or was changed,
    and when a step before it made something else than last time. What is left half done is not marked, so an
    interrupted preparation goes on where it stopped.
    """

    def __init__(self, out_dir: Path):
        self.out_dir = out_dir
        self._stale = False
        self._history = hashlib.sha256()  # of the markers of the steps before
        self._made: dict[str, str] = {}
        out_dir.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        name: str,
        settings: Mapping[str, object],
        action: Callable[[], object],
        makes: Sequence[str] | Callable[[], Sequence[str]] = (),
        *,
        independent: bool = False,
    ) -> bool:
        """Do `action` unless it was completed with these settings before; True when it was done now.

        Args:
            makes: files that it writes, relative to `out_dir`; a function where that is known afterwards only.
            independent: it uses nothing that earlier steps made, so that it need not follow them.
        """
        marker = self.out_dir / f".{name}.completed"
        wanted = {"settings": json.loads(json.dumps(settings, sort_keys=True, default=str))}
        if not independent:
            wanted["after"] = self._history.hexdigest()
        fresh = independent or not self._stale
        list_made = makes if callable(makes) else lambda: makes
        made = self._verified(marker, wanted, list_made()) if fresh else None
        done = made is None
        if done:
            self._stale = True
            marker.unlink(missing_ok=True)
            action()
            made = {file: sha256(self.out_dir / file) for file in list_made()}
            replace_text(marker, json.dumps({**wanted, "sha256": made}, sort_keys=True, indent=1))
        else:
            print(f"{name}: already done")
        self._history.update(marker.read_bytes())
        self._made |= made
        return done

    def _verified(self, marker: Path, wanted: dict, makes: Sequence[str]) -> dict[str, str] | None:
        """The checksums of a marker whose settings and files are as wanted, else None."""
        try:
            found = json.loads(marker.read_text())
            made = found.pop("sha256")
        except (OSError, ValueError, KeyError, AttributeError):
            return None
        if found != wanted or set(made) != set(makes):
            return None
        for file, checksum in made.items():
            path = self.out_dir / file
            if not path.is_file() or sha256(path) != checksum:
                print(f"{path}: missing or changed since it was made; made again")
                return None
        return made

    def write_checksums(self) -> None:
        """Write `SHA256SUMS` of everything that the steps made: `sha256sum -c SHA256SUMS` checks it in that folder."""
        lines = (f"{checksum}  {file}\n" for file, checksum in sorted(self._made.items()))
        path, text = self.out_dir / CHECKSUMS, "".join(lines)
        if not path.exists() or path.read_text() != text:
            replace_text(path, text)


def sha256(path: Path) -> str:
    """Checksum of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def parallel(
    work: Callable[[Item], Result], items: Sequence[Item], jobs: int | None, desc: str, unit: str
) -> Iterator[Result]:
    """`work` of each item, in order, in `jobs` threads (None = 1), with a progress bar.

    Threads do, because what takes long (libsndfile, hashing) holds no lock. An error or Ctrl-C leaves the rest undone.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {jobs}")
    pool = ThreadPoolExecutor(jobs or 1)
    try:
        yield from tqdm(pool.map(work, items), desc=desc, unit=unit, total=len(items), disable=None)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def default_jobs() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(work: Callable[[Item], Result], items: Iterable[Item], jobs: int | None) -> Iterator[Result]:
    """`work` of each item, in order, in `jobs` processes (None: one for each core); with one job in this process.

    Items are taken as they are needed, so that memory does not grow with their number. An error or Ctrl-C leaves the
    rest undone.
    """
    jobs = default_jobs() if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {jobs}")
    if jobs == 1:
        yield from map(work, items)
        return
    # Forked where that is possible: importing the package takes seconds in each process otherwise.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context(method), initializer=_one_thread)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= AHEAD * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the work
    torch.set_num_threads(1)
