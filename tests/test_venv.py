"""Doors run in the project's own environment, with the arguments, interpreter options and exit code of the caller."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

DOOR = """
import os
import sys
import _venv
_venv.enter()
print(sys.prefix, sys.argv[1:], sys.flags.dev_mode)
sys.exit(7)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "a project"
    (root / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "bin" / "_venv.py", root / "bin")
    (root / "bin" / "door").write_text(DOOR)
    for name in ("sumix_stream", "sumix_kernels"):
        (root / "site" / name).mkdir(parents=True)
        (root / "site" / name / "__init__.py").touch()
    return root


def open_door(project: Path, installed: bool = True, **environment: str) -> subprocess.CompletedProcess:
    # Two arguments and an interpreter option, from another folder; a base Python that has nothing installed.
    site = {"PYTHONPATH": str(project / "site")} if installed else {}
    command = [os.path.realpath(sys.executable), "-X", "dev", str(project / "bin" / "door"), "a b", "--c"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "_SUMIX", "GOMP", "OMP"))}
    return subprocess.run(command, capture_output=True, text=True, cwd=project.parent, env=clean | site | environment)


def test_enters_the_environment(project: Path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(project / ".venv")], check=True)
    done = open_door(project)
    assert (done.stdout.strip(), done.returncode) == (f"{project / '.venv'} ['a b', '--c'] True", 7), done.stderr


def test_stays_where_there_is_none(project: Path):
    done = open_door(project)
    assert (done.stdout.strip(), done.returncode) == (f"{sys.base_prefix} ['a b', '--c'] True", 7), done.stderr


def test_does_not_loop_when_the_environment_is_not_one(project: Path):
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    assert open_door(project).returncode == 7


def test_says_how_to_install(project: Path):
    done = open_door(project, installed=False)
    assert done.returncode == 1
    assert "bin/test or bin/demo" in done.stderr and "pip install" in done.stderr
