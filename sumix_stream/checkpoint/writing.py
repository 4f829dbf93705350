"""Checkpoints and other outputs that appear whole or not at all."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sumix_stream.checkpoint.layout import FORMAT, CheckpointError, step_directory
from sumix_stream.checksums import write_sums


def save_yaml(path: Path, data: dict[str, Any]) -> None:
    """Write a mapping of plain values. The format comes last: a file cut short, which is often YAML too, lacks it."""
    path.write_text(yaml.safe_dump({**data, "format": FORMAT}, sort_keys=False, allow_unicode=True), encoding="utf-8")


def write_checkpoint(path: Path, writer: Callable[[Path], None]) -> None:
    """`write_directory_atomically`, with the checksums of what `writer` wrote."""

    def write(directory: Path) -> None:
        writer(directory)
        write_sums(directory)

    write_directory_atomically(path, write)


def remove_checkpoint(path: Path) -> None:
    """Remove a directory at once: killed half way, it leaves none that looks complete."""
    aside = path.with_name(f".{path.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    shutil.rmtree(aside)


def remove_remnants(exp_dir: Path) -> None:
    """Clear away what a killed process had not finished writing or removing."""
    for pattern in (".step-*.partial", ".step-*.removed"):
        for path in (Path(exp_dir) / "checkpoints").glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def write_directory_atomically(path: Path, writer: Callable[[Path], None]) -> None:
    """Let `writer` fill a directory that appears at `path` whole, on disk, or not at all.

    It is written aside in the same parent, synchronised and renamed. Whatever fails, the partial copy is removed and
    what stood beside it is untouched.

    Raises:
        CheckpointError: `path` exists already, or the disk refuses (full, read-only...).
    """
    path = Path(path)
    if path.exists():
        raise CheckpointError(f"{path} exists already: remove it, or write elsewhere")
    aside = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        writer(aside)
        for file in aside.rglob("*"):
            _sync(file)
        _sync(aside)
        aside.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot save {path}: {_write_fault(path.parent, error)}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a small text file: readers see the old text or the new, never a part. Raises CheckpointError."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_text(text, encoding="utf-8")
        _sync(aside)
        aside.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot save {path}: {_write_fault(path.parent, error)}") from error
    finally:
        aside.unlink(missing_ok=True)


def point(exp_dir: Path, name: str, step: int) -> None:
    """Let `best` or `last` name the checkpoint after `step` training steps."""
    write_text_atomically(Path(exp_dir) / f"{name}.txt", f"checkpoints/{step_directory(exp_dir, step).name}\n")


def _write_fault(folder: Path, error: OSError) -> str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return str(error)
    try:
        free = f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB are free"
    except OSError:
        free = "free space unknown"
    return f"the disk is full ({free} at {folder}); earlier checkpoints are intact. Free some space and resume"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
