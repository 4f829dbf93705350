"""Every door answers --help quickly (nothing heavy is imported), with status 0 and with units."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

DOORS = sorted(
    p
    for p in [*(ROOT / "bin").iterdir(), *ROOT.glob("egs/*/prepare")]
    if p.is_file() and not p.name.startswith("_") and not p.suffix
)
UNITS = re.compile(r"\b(seconds|milliseconds|ms|s|minutes|hours|frames|chunks|steps|utterances|Hz|kHz|MB|GB|bytes)\b")
HEAVY = ("torch", "lhotse", "lightning_fabric", "numpy", "soundfile", "sentencepiece", "tensorboard")


def is_shell(door: Path) -> bool:
    return b"bash" in door.open("rb").readline()


def help_of(door: Path, interpreter: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run([*interpreter, str(door), "--help"], capture_output=True, text=True, timeout=120, cwd="/")


def imported(importtime: str) -> set[str]:
    """Top-level packages named in the report of `python -X importtime`."""
    return {line.rpartition("|")[2].strip().split(".")[0] for line in importtime.splitlines() if "import time:" in line}


def test_doors_are_found():
    assert {"train", "decode", "stream_decode", "bench", "demo", "test", "prepare"} <= {door.name for door in DOORS}


@pytest.mark.parametrize("door", DOORS, ids=lambda door: str(door.relative_to(ROOT)))
def test_help(door: Path):
    assert os.access(door, os.X_OK), f"{door} is not executable"
    done = help_of(door, ["bash"] if is_shell(door) else [sys.executable, "-X", "importtime"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.lower().startswith("usage"), done.stdout[:200]
    assert UNITS.search(done.stdout), f"no unit in the help of {door.name}:\n{done.stdout}"
    if not is_shell(door):
        loaded = imported(done.stderr)
        assert "argparse" in loaded, "the import report could not be read"
        assert not loaded & set(HEAVY), f"{door.name} --help imports {sorted(loaded & set(HEAVY))}"


def test_a_heavy_door_is_found(tmp_path: Path):
    door = tmp_path / "door"
    door.write_text("import argparse, torch.version\nargparse.ArgumentParser().parse_args()\n")
    assert "torch" in imported(help_of(door, [sys.executable, "-X", "importtime"]).stderr)
