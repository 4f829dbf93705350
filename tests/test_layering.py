"""Who may import whom, read from the source with ast: arrows go down only (see the table LAYER)."""

import ast
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from conftest import ROOT

# Part of the tree -> its height. A module may import its own part and every lower one; parts of one height are
# neighbours that do not know each other.
LAYER = {
    "kernels": -1,  # the foundation's filter bank calls two of them
    "foundation": 0,
    "encoders": 1,
    "data": 2,
    "tasks": 2,
    "corpora": 3,
    "runtime": 3,
    "search": 4,
    "streaming": 5,
    "report": 5,
    "train": 6,
    "evaluate": 6,
    "export": 6,
    "serve": 6,
    "bench": 7,  # measures all of them
    "facade": 7,  # sumix_stream/__init__.py, which only gives public names
    "cli": 8,
    "command": 9,  # bin/ and egs/: nothing imports them
}
FOUNDATION = ("config", "context", "timebase", "features", "audio", "tokenizer", "checksums", "registry")
LINES = 400
# Paths of one machine, spelt so that this file does not hold them.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:" + "|".join(("work", "home", "root", "Users", "mnt", "scratch")) + r")/\w")
TEXT = {".py", ".md", ".yaml", ".toml", ".txt", ".sh", ""}


def part_of(module: str) -> str:
    """The part of the tree a dotted module name belongs to, or "" for what is not ours."""
    package, _, rest = module.partition(".")
    if package in ("sumix_kernels", "kernels"):
        return "kernels"
    if package != "sumix_stream":
        return ""
    if not rest:
        return "facade"
    part = rest.split(".")[0]
    return "foundation" if part in FOUNDATION else part


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    if parts[0] == "kernels":
        parts = ("sumix_kernels", *parts[1:])
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, root: Path) -> list[tuple[int, str]]:
    """(line, dotted module) of every import in a file, inside functions and under TYPE_CHECKING too."""
    package = module_name(path, root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            # `from sumix_stream import data` imports a module, `from sumix_stream import load` a public name.
            found += [
                (node.lineno, name if (base == "sumix_stream" and is_module(name, root)) else base) for name in names
            ]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                found.append((node.lineno, str(node.args[0].value)))
    return sorted(set(found))


def is_module(name: str, root: Path) -> bool:
    path = root.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def python_files(root: Path) -> list[Path]:
    files = [p for folder in ("kernels", "sumix_stream") for p in sorted((root / folder).rglob("*.py"))]
    for folder in ("bin", "egs"):
        files += [p for p in sorted((root / folder).rglob("*")) if p.is_file() and is_python(p)]
    return files


def is_python(path: Path) -> bool:
    if {"data", "exp", "__pycache__"} & set(path.parts):
        return False
    if path.suffix:
        return path.suffix == ".py"
    with path.open("rb") as file:
        return b"python" in file.readline()


def violations(root: Path) -> list[str]:
    """Every import that goes up or sideways, as `file:line: why`."""
    found = []
    for path in python_files(root):
        where = path.relative_to(root)
        own = "command" if where.parts[0] in ("bin", "egs") else part_of(module_name(path, root))
        if own not in LAYER:
            found.append(f"{where}: belongs to no layer; say in test_layering.py where `{own}` stands")
            continue
        for line, target in imports(path, root):
            part = part_of(target)
            if path.name == "naive.py" and part == "kernels":
                found.append(f"{where}:{line}: a reference imports {target}: it must stand alone")
            if not part or part == own:
                continue
            if part not in LAYER or LAYER[part] >= LAYER[own]:
                found.append(f"{where}:{line}: {own} imports {target} ({part})")
    return found


def tracked_files(root: Path) -> list[Path]:
    """Text files of the project: those git knows or does not ignore."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git checkout: which files are the project's is not known")
    return [p for name in listed.split("\0") if name and (p := root / name).is_file() and p.suffix in TEXT]


def machine_paths(files: list[Path]) -> list[str]:
    found = []
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if match := MACHINE_PATH.search(line):
                found.append(f"{path}:{number}: {match.group()}")
    return found


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_imports_go_down():
    assert len(python_files(ROOT)) > 30
    assert violations(ROOT) == []


BAD = {
    "upward": ("sumix_stream/encoders/a.py", "from sumix_stream.tasks.build import build_model"),
    "upward inside a function": ("sumix_stream/encoders/a.py", "def f():\n    import sumix_stream.tasks"),
    "upward, relative": ("sumix_stream/encoders/a.py", "from ..tasks import build"),
    "upward by a module's name": ("sumix_stream/encoders/a.py", "from sumix_stream import tasks"),
    "upward by a public name": ("sumix_stream/streaming/a.py", "from sumix_stream import load"),
    "upward by a string": (
        "sumix_stream/data/a.py",
        "from importlib import import_module\nimport_module('sumix_stream.train')",
    ),
    "sideways: train, evaluate": ("sumix_stream/train/a.py", "from sumix_stream.evaluate import scoring"),
    "sideways: data, tasks": ("sumix_stream/data/a.py", "import sumix_stream.tasks.build"),
    "sideways: export, serve": ("sumix_stream/export/a.py", "from sumix_stream import serve"),
    "kernels import the package": ("kernels/rnnt/op.py", "from sumix_stream.config import LossConfig"),
    "reference imports a sibling": ("kernels/rnnt/naive.py", "from sumix_kernels.window import visible"),
    "reference imports a sibling, relative": ("kernels/rnnt/naive.py", "from . import lattice"),
    "a part nobody placed": ("sumix_stream/misc/a.py", "import os"),
    "a command is imported": ("sumix_stream/train/a.py", "from sumix_stream import bin"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_import_is_found(name: str, tmp_path: Path):
    parts = {
        f"sumix_stream/{part}/__init__.py": "" for part in ("encoders", "tasks", "data", "serve", "evaluate", "bin")
    }
    root = write_tree(tmp_path, parts)
    (root / "sumix_stream" / "bin" / "__init__.py").unlink()
    path, source = BAD[name]
    write_tree(root, {path: source})
    found = violations(root)
    assert len(found) == 1 and found[0].startswith(path), found


def test_good_imports_pass(tmp_path: Path):
    good = {
        "kernels/rnnt/op.py": "import torch\nfrom sumix_kernels.rnnt import naive",
        "sumix_stream/encoders/a.py": "import sumix_kernels\nfrom sumix_stream.config import X\nfrom . import b",
        "sumix_stream/serve/a.py": "from sumix_stream.streaming import recognizer",
        "sumix_stream/train/a.py": "from sumix_stream import data\nimport sumix_stream.tasks.build",
        "bin/train": "#!/usr/bin/env python3\nfrom sumix_stream import load\nfrom sumix_stream.evaluate import scoring",
    }
    write_tree(tmp_path, good | {"sumix_stream/data/__init__.py": ""})
    assert violations(tmp_path) == []


def test_import_is_light():
    code = "import sys, sumix_stream; assert not {'torch', 'numpy', 'lhotse'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_load():
    import sumix_stream as sx

    assert all(callable(getattr(sx, name)) for name in sx.__all__)
    assert set(sx.__all__) <= set(dir(sx))
    with pytest.raises(AttributeError, match="lod"):
        sx.lod  # noqa: B018


def test_every_folder_is_a_package():
    """setup.py finds packages by their __init__.py; a folder without one would be missing from an installed copy."""
    folders = {p.parent for folder in ("kernels", "sumix_stream") for p in (ROOT / folder).rglob("*.py")}
    assert [str(f) for f in sorted(folders) if not (f / "__init__.py").is_file()] == []


def test_no_paths_of_one_machine(tmp_path: Path):
    bad = tmp_path / "bad.md"
    bad.write_text(
        "data lie in " + "/".join(("", "home", "me", "corpora")) + ", not https://host/home/x or ../home/x\n"
    )
    assert len(machine_paths([bad])) == 1
    assert machine_paths(tracked_files(ROOT)) == []


def test_file_lengths_are_watched():
    for path in python_files(ROOT):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LINES:
            warnings.warn(f"{path.relative_to(ROOT)} has {lines} lines: look for the second thing in it", stacklevel=1)
