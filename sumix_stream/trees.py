"""States as trees: named tuples, and plain tuples of them, of NumPy arrays or tensors.

Nobody indexes one by position.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

MOST = 2**48  # of any count: 500,000 years of samples, and exact wherever counts are computed with


def is_array(part: Any) -> bool:
    return hasattr(part, "shape")


def leaves(state: Any) -> Iterator[Any]:
    """All arrays of a state, depth first."""
    return (array for _, array in named_leaves(state))


def named_leaves(state: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All arrays of a state under names such as `layers.0.conv`, depth first."""
    if is_array(state):
        yield prefix, state
    elif isinstance(state, tuple):
        names = getattr(state, "_fields", range(len(state)))
        for name, part in zip(names, state, strict=True):
            yield from named_leaves(part, f"{prefix}.{name}" if prefix else str(name))


def map_leaves(function: Callable[..., Any], *states: Any) -> Any:
    """Apply a function to the corresponding arrays of equally built states; other leaves come from the first."""
    first = states[0]
    if is_array(first):
        return function(*states)
    if isinstance(first, tuple):
        parts = (map_leaves(function, *group) for group in zip(*states, strict=True))
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return first


def fill(like: Any, arrays: Mapping[str, Any], *, growing: bool = False) -> Any:
    """A state built as `like` of the arrays that `named_leaves` named. Raises ValueError as `check_arrays`."""
    expected = dict(named_leaves(like))
    check_arrays(expected, arrays, growing=growing)
    given = iter(arrays[name] for name in expected)
    return map_leaves(lambda _: next(given), like)


def check_arrays(expected: Mapping[str, Any], arrays: Mapping[str, Any], *, growing: bool = False) -> None:
    """Raise ValueError for missing or superfluous names, other types or other shapes.

    Args:
        growing: let the second dimension differ, which is the length of caches that grow.
    """
    if expected.keys() != arrays.keys():
        raise ValueError(f"arrays missing, or of another state: {sorted(expected.keys() ^ arrays.keys())}")
    for name, part in expected.items():
        given, shape = arrays[name], tuple(part.shape)
        found = tuple(given.shape)
        same = len(found) == len(shape) and (found[:1] + found[2:], given.dtype) == (shape[:1] + shape[2:], part.dtype)
        if not same or (found != shape and not growing):
            raise ValueError(f"{name} must be {shape} {part.dtype}, got {found} {given.dtype}")


def check_count(name: str, value: Any, most: int = MOST) -> int:
    """An int in 0..most. Raises ValueError naming it for anything else, True and 1.0 included."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name} must be a whole number in 0..{most}, got {value!r}")
    return value
