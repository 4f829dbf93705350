"""The wheel holds all that is needed: it is built from a copy of the sources and used from an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

EVERYTHING = """
import importlib, pkgutil, sys
import sumix_kernels, sumix_stream
where = sys.argv[1]
names = []
for package in (sumix_stream, sumix_kernels):
    assert package.__file__.startswith(where), f"{package.__file__} is not in {where}"
    names += [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:  # a tool of an extra that is not installed; ours must be there
        assert error.name.split(".")[0] not in ("sumix_stream", "sumix_kernels"), error
print(len(names))
"""


@pytest.mark.slow
def test_the_wheel_works_from_an_empty_folder(tmp_path: Path):
    sources, wheels, installed, empty = (tmp_path / name for name in ("sources", "wheels", "installed", "empty"))
    empty.mkdir()
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("no git checkout: which files are the project's is not known")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and name.startswith(
            ("sumix_stream/", "kernels/", "setup.py", "README.md", "LICENSE")
        ):
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            (sources / name).write_bytes((ROOT / name).read_bytes())
    (sources / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, sources], empty)
    (wheel,) = wheels.glob("*.whl")
    run([*pip, "install", "--no-deps", "--no-index", "--target", installed, wheel], empty)

    modules = int(run([sys.executable, "-c", EVERYTHING, installed], empty, installed))
    assert modules == len([p for f in ("kernels", "sumix_stream") for p in (sources / f).rglob("*.py")]) - 2
    usage = run([sys.executable, installed / "bin" / "sumix", "--help"], empty, installed)
    assert usage.startswith("usage: sumix COMMAND")
    for path in ("serve/page/page.html", "serve/page/captions.js", "serve/PROTOCOL.md"):
        assert (installed / "sumix_stream" / path).is_file()
    assert list(empty.iterdir()) == []


def run(command: list, folder: Path, path: Path | None = None) -> str:
    """Its output; from a folder, with `path` before all else that is installed."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"} | ({} if path is None else {"PYTHONPATH": str(path)})
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
