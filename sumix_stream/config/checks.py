"""What the fields of a configuration are checked with, and the errors that name the key and what is allowed."""

import contextlib
import difflib
import math
from collections.abc import Iterable
from dataclasses import field
from typing import Any

from sumix_stream.timebase import parse_duration

PATH = {"path": True}  # metadata of fields that hold paths, which `load_recipe` resolves


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the value and what is allowed."""


class ValueNotAllowed(ConfigError):
    """Raised by a dataclass, which knows its field but not the section it stands in; `from_dict` adds the section."""

    def __init__(self, key: str, value: Any, allowed: str) -> None:
        super().__init__(f"{key} must be {allowed}, got {value!r}")
        self.key, self.value, self.allowed = key, value, allowed


def require(config: Any, name: str, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueNotAllowed(name, getattr(config, name), allowed)


def require_range(config: Any, names: str, low: float, high: float = math.inf, *, open_ends: bool = False) -> None:
    """Each of the (space-separated) fields, where set, is finite and in [low, high], or (low, high) with open ends."""
    for name in names.split():
        value = getattr(config, name)
        if value is None:
            continue
        inside = low < value < high if open_ends else low <= value <= high
        if high == math.inf:
            allowed = f"above {low}" if open_ends else f"at least {low}"
        else:
            allowed = f"between {low} and {high}" + (", both excluded" if open_ends else "")
        require(config, name, inside and math.isfinite(value), allowed)


def require_choice(config: Any, name: str, choices: Iterable[str]) -> None:
    choices = tuple(choices)
    value = getattr(config, name)
    nearest = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    require(config, name, value in choices, f"one of {', '.join(choices)}{hint}")


def require_interval(config: Any, names: str, low: float = -math.inf, high: float = math.inf) -> None:
    """Each of the (space-separated) fields is two finite numbers, the lowest and the highest, within [low, high]."""
    for name in names.split():
        ends = getattr(config, name)
        holds = len(ends) == 2 and low <= ends[0] <= ends[1] <= high and all(map(math.isfinite, ends))
        limits = "" if (low, high) == (-math.inf, math.inf) else f", between {low:g} and {high:g}"
        require(config, name, holds, f"[lowest, highest]{limits}")


def path_field(default: str | tuple[str, ...]) -> Any:
    """A field that holds a path or paths, which `load_recipe` resolves."""
    return field(default=default, metadata=PATH)


def require_chunk_size(config: Any, name: str, words: tuple[str, ...]) -> None:
    """A text form of a chunk; whether a duration is a whole number of frames is for the model's timebase to say."""
    text = getattr(config, name)
    holds = text in words or (text.isdecimal() and int(text) > 0)
    if not holds:
        with contextlib.suppress(ValueError):
            holds = parse_duration(text) > 0
    allowed = f"{', '.join(words)}, a duration such as 640ms or 0.64s, or a number of encoder frames such as 16"
    require(config, name, holds, allowed)
