"""Every key of a recipe with its default and meaning, as the dataclasses of the configuration say them.

The help of `bin/train` and the page docs/recipe-keys.md are made of it: `python -m sumix_stream.config.keys` prints the
page.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from sumix_stream.config import PRESETS, RecipeConfig, SourceConfig

_COMMENT = re.compile(r"^    (\w+):.*?  # (.*)$", re.MULTILINE)
_HEAD = """\
# Recipe keys

Every key of a recipe with its default, made from the configuration in `sumix_stream/config/`; `bin/train --help` prints
the same. In the YAML file a section is a level: `data.max_duration` is `max_duration` under `data`. Each key is an
option of the command line too, with a YAML value: `bin/train --config RECIPE --data.max_duration 60`. An unknown key or
an impossible value ends the command and names the key.

Paths in the file are relative to the recipe's folder (the parent of `conf/`, where it lies in one), on the command line
to where you are. How to choose: [size, chunk and search](choosing.md), [training](train.md),
[fine-tuning](fine-tune.md).
"""


class Key(NamedTuple):
    """`train.max_steps`, its default as YAML writes it, and what it means."""

    name: str
    default: str
    meaning: str


class Section(NamedTuple):
    """The keys of a dataclass; those of sections in it come after."""

    name: str
    about: str  # first paragraph of its docstring
    keys: list[Key]


def sections(cls: type = RecipeConfig, name: str = "") -> Iterator[Section]:
    """The sections of a configuration, outer ones first."""
    comments = dict(_COMMENT.findall(inspect.getsource(cls)))
    keys, inner = [], []
    for field in dataclasses.fields(cls):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        dotted = f"{name}.{field.name}" if name else field.name
        if dataclasses.is_dataclass(default):
            inner.append((type(default), dotted))
        else:
            keys.append(Key(dotted, _plain(default), comments.get(field.name, "")))
    yield Section(name, " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()), keys)
    for kind, dotted in inner:
        yield from sections(kind, dotted)


def page() -> str:
    """docs/recipe-keys.md."""
    parts = [_HEAD]
    for section in sections():
        rows = list(section.keys)
        if section.name == "model":
            rows.insert(
                0, Key("model.preset", "", f"{' | '.join(PRESETS)}: the sizes that other keys of model then change")
            )
        if section.name == "data":
            at = next(n for n, key in enumerate(rows) if key.name == "data.train_cuts") + 1
            (source,) = sections(SourceConfig, "data.train_cuts[]")
            rows[at:at] = source.keys
        title, about = f"## {section.name}\n\n" if section.name else "## At the top\n\n", section.about
        table = "\n".join(f"| `{key.name}` | {_cell(key.default)} | {_escaped(key.meaning)} |" for key in rows)
        parts.append(f"{title}{about}\n\n| key | default | meaning |\n|---|---|---|\n{table}\n")
    return "\n".join(parts)


def _cell(default: str) -> str:
    return f"`{default}`" if default else ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if value == {}:
        return "{}"
    return str(list(value)) if isinstance(value, tuple) else str(value) or "''"


if __name__ == "__main__":
    print(page(), end="")
