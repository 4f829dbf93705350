"""Every file that leans on a library's private parts is named on the page that lists them, docs/fragile.md."""

import ast
import re
from pathlib import Path

from conftest import ROOT

PAGE = ROOT / "docs" / "fragile.md"
OURS = {"sumix_stream", "sumix_kernels"}
INTERNALS = {"llvmlite"}  # compilers' own modules
PUBLIC = {"os._exit"}  # documented in spite of their names


def private_parts(source: str) -> set[str]:
    """Names such as `torch._foreach_norm` that a file takes from libraries, and libraries that are internals."""
    tree, modules, found = ast.parse(source), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split(".")[0]
                modules[alias.asname or name] = name
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            for alias in node.names:
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    names = set(modules.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts, root = [node.attr], node.value
            while isinstance(root, ast.Attribute):
                parts.append(root.attr)
                root = root.value
            if isinstance(root, ast.Name) and root.id in modules:
                names.add(".".join([modules[root.id], *reversed(parts)]))
    for name in names:
        top, *rest = name.split(".")
        private = any(part.startswith("_") and not part.startswith("__") for part in rest)
        if top not in OURS and name not in PUBLIC and (private or top in INTERNALS):
            found.add(name)
    return found


def files() -> list[Path]:
    return sorted(path for folder in ("kernels", "sumix_stream") for path in (ROOT / folder).rglob("*.py"))


def test_every_use_of_a_private_part_is_listed():
    text, missing = PAGE.read_text(), {}
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        if (found := private_parts(path.read_text())) and f"`{name}`" not in text:
            missing[name] = sorted(found)
    assert missing == {}, "say in docs/fragile.md: where, which versions, which test guards it, the fallback"


def test_a_private_part_is_found():
    source = (
        "import torch\nimport os\nfrom lib import _inner\nimport sumix_kernels as K\nfrom numpy import linalg as la\n"
    )
    source += "torch.ops.mkldnn._linear(1); os._exit(1); K._own; la._umath; torch.__version__; self._own\n"
    assert private_parts(source) == {"torch.ops.mkldnn._linear", "lib._inner", "numpy.linalg._umath"}
    assert private_parts("from llvmlite import ir")


def test_versions_are_those_that_are_tested():
    """The page's versions are the pins: who raises a pin has read the page."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    table = PAGE.read_text().partition("\n## ")[0]
    named = re.findall(r"\b([a-z][\w-]+) (\d+\.\d+\.\d+|\d+\.\d+)(?=[ ,|])", table)
    assert len(named) > 10
    assert [(name, version, pins[name]) for name, version in named if name in pins and pins[name] != version] == []
    assert {name for name, _ in named} <= {*pins, "below"}, "a library without a pin"
