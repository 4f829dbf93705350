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
    "language": 5,
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
FOUNDATION = (
    "config",
    "context",
    "timebase",
    "features",
    "audio",
    "tokenizer",
    "labels",
    "checksums",
    "checkpoint",
    "registry",
    "trees",
)
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


WITHOUT_TORCH = """
import sys
from pathlib import Path

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchaudio", "triton", "lhotse", "lightning_fabric", "lightning"):
            raise ImportError(f"{name} is for training")

sys.meta_path.insert(0, Refused())
folder = Path(sys.argv[1])

import numpy as np, soundfile
from sumix_stream import audio, checkpoint, checksums, config, context, features, registry, timebase, tokenizer
from sumix_stream.checkpoint import writing
from sumix_stream.config.reader import from_dict, load_recipe, to_dict

soundfile.write(folder / "a.wav", np.sin(np.arange(8_000) * 0.1), 8_000)
samples = audio.resample(*audio.read_audio(folder / "a.wav"))
assert samples.shape == (16_000,) and samples.dtype == np.float32
assert features.whole_fbank(samples).shape == (100, 80)
assert features.whole_fbank(samples, features.numpy_log_mel).shape == (100, 80)
assert timebase.Timebase().num_feature_frames(np.array([16_000])) == 100
assert context.ChunkContext.parse("640ms", left_context=4).chunk_size == 16
assert from_dict(config.RecipeConfig, to_dict(config.RecipeConfig())) == config.RecipeConfig()
assert "conformer" in registry.ENCODERS.names and load_recipe("egs/mini/conf/tiny.yaml").model
assert tokenizer.train_tokenizer(["one two"], folder / "t.model", 4, "word").encode("two")
writing.write_checkpoint(folder / "dir", lambda path: writing.save_yaml(path / "config.yaml", {"a": 1}))
assert checksums.fault(folder / "dir" / "config.yaml") is None
read = checkpoint.read_checkpoint(folder / "exp", 2)
print(sum(float(np.abs(value.astype(np.float64)).sum()) for value in read.arrays.values()), read.tokenizer.vocab_size)
assert "torch" not in sys.modules
"""


def test_the_foundation_needs_no_torch(tmp_path: Path):
    from sumix_stream.tasks import checkpoint
    from sumix_stream.tasks.build import build_model
    from sumix_stream.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["one two three"], tmp_path / "t.model", 5, "word")
    for step in (1, 2):
        path, model = checkpoint.step_directory(tmp_path / "exp", step), build_model("tiny", tokenizer.vocab_size, step)
        checkpoint.write_checkpoint(path, lambda folder: checkpoint.save_model(folder, model, tokenizer))  # noqa: B023
    mean = checkpoint.load_model(tmp_path / "exp", 2)[0].state_dict()
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()
    expected = sum(value.double().abs().sum().item() for value in mean.values())
    assert float(printed[0]) == pytest.approx(expected, rel=1e-12) and int(printed[1]) == tokenizer.vocab_size


TORCH_FREE = ("foundation", "search", "streaming", "serve", "runtime")
TORCH_RUNTIME = re.compile(r"torch\w*\.py|cuda_graph\.py")  # of runtime/
HEAVY = {"torch", "torchaudio", "triton", "lhotse", "onnxruntime", "kaldialign"}


def imports_at_load(path: Path) -> set[str]:
    """Modules that importing a file imports."""
    waiting, found = list(ast.parse(path.read_text(encoding="utf-8")).body), set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


def test_what_serves_a_model_loads_no_torch():
    """test_light_install.py serves one where there is none; this names the line that would break it."""
    checked = 0
    for path in python_files(ROOT):
        part = part_of(module_name(path, ROOT))
        if part in TORCH_FREE and not (part == "runtime" and TORCH_RUNTIME.fullmatch(path.name)):
            parts = {part_of(name) for name in imports_at_load(path)}
            heavy = {name for name in imports_at_load(path) if name.split(".")[0] in HEAVY}
            assert not heavy and not parts & {"encoders", "tasks", "data", "train", "evaluate"}, (path, heavy, parts)
            checked += 1
    assert checked > 50


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
