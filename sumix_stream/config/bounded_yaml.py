"""YAML that others wrote, in bounded time and memory: a few aliases of aliases stand for more than any memory holds."""

import math
import re
from pathlib import Path
from typing import Any

import yaml

_MOST_VALUES = 10_000  # of a file; a recipe has a hundred
_MOST_CHARACTERS = 1 << 18
_DEEPEST = 50  # brackets in brackets: PyYAML's time grows with their square


def read_bounded(path: Path, loader: type[yaml.SafeLoader]) -> Any:
    """What a file of UTF-8 holds; `load_bounded` of its text. Raises OSError and UnicodeDecodeError too."""
    with path.open(encoding="utf-8") as file:
        return load_bounded(file.read(_MOST_CHARACTERS + 1), loader)


def load_bounded(text: str, loader: type[yaml.SafeLoader]) -> Any:
    """What YAML means by `loader`. Raises YAMLError: it is none, or larger or deeper than a configuration."""
    if len(text) > _MOST_CHARACTERS:
        raise yaml.YAMLError(f"more than {_MOST_CHARACTERS:,} characters, which no configuration has")
    if _depth(text) > _DEEPEST:
        raise yaml.YAMLError("nested too deeply for a configuration")
    try:
        if _num_values(yaml.compose(text, Loader=loader), {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {_MOST_VALUES:,} values; write out what is meant")
        return yaml.load(text, Loader=loader)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply for a configuration") from None


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[][{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _num_values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Values of a node with what its aliases stand for; one that holds itself has no end."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf
        pairs = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_num_values(part, known) for part in pairs)
    return known[id(node)]
