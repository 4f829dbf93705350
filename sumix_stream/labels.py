"""What a classifier can say: one or several sets of labels, in the place of a tokenizer.

A cut's text is its labels. With one set it is the label itself: `yes`. With several it names each set that applies:
`intent=orderDrink; size=large`. A set that a text does not name has the label `none`, where the set has that one.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from sumix_stream.config.bounded_yaml import load_bounded
from sumix_stream.tokenizer import clean_text

NONE = "none"  # the label of a set that says nothing, such as a slot that an order leaves out
ONE = "label"  # name of the set where there is one
_RESERVED = "=;"


class LabelError(ValueError):
    """Labels that are missing or unknown; the message names the file and the line, and the remedy."""


class Labels:
    """Sets of labels by name, each label with a number within its set.

    Stands where training asks for a tokenizer: `encode` gives a number for each set.

    Raises LabelError for a set with fewer than two labels or one twice, and for names with `=` or `;`.
    """

    unk_id = -1

    def __init__(self, sets: Mapping[str, Sequence[str]], source: str = "labels") -> None:
        self.source = source
        self.sets = {str(name): tuple(map(str, labels)) for name, labels in sets.items()}
        if not self.sets:
            raise LabelError(f"{source}: no sets of labels; write `label: [yes, no]` for one set")
        for name, labels in self.sets.items():
            if len(labels) < 2:
                raise LabelError(f"{source}: {name} has {len(labels)} label(s): a choice needs two at least")
            if twice := sorted({label for label in labels if labels.count(label) > 1}):
                raise LabelError(f"{source}: {name} has {twice[0]!r} twice: take one out")
            for word in (name, *labels):
                if not word or word != clean_text(word) or set(word) & set(_RESERVED):
                    raise LabelError(f"{source}: {word!r} in {name}: {_RESERVED!r} and stray spaces are not allowed")
        self._numbers = {name: {label: n for n, label in enumerate(labels)} for name, labels in self.sets.items()}

    @classmethod
    def load(cls, path: str | os.PathLike) -> Labels:
        """Of a YAML file: `label: [yes, no]`, or several such lists by name. Raises LabelError naming the file."""
        try:
            data = Path(path).read_bytes()
        except FileNotFoundError:
            raise LabelError(f"{path}: no such label file; run the recipe's prepare, or set tokenizer.path") from None
        except OSError as error:
            raise LabelError(f"{path}: cannot read the labels: {error.strerror}") from None
        return cls._read(data, str(path))

    @classmethod
    def from_bytes(cls, data: bytes) -> Labels:
        """The inverse of `to_bytes`."""
        return cls._read(data, "labels")

    @classmethod
    def _read(cls, data: bytes, source: str) -> Labels:
        try:
            found = load_bounded(data.decode("utf-8"), yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise LabelError(f"{source}: not a YAML file of labels ({str(error).splitlines()[0]})") from None
        if not isinstance(found, dict) or not all(isinstance(labels, list) for labels in found.values()):
            raise LabelError(f"{source}: not lists of labels by name, such as `label: [yes, no]`")
        for name, labels in found.items():
            for label in labels:
                if not isinstance(label, str):
                    raise LabelError(f"{source}: {label!r} in {name} is no text: put it in quotes")
        return cls(found, source)

    @classmethod
    def of(cls, texts: Iterable[Mapping[str, str]]) -> Labels:
        """Of everything said: the labels of each set in alphabetical order, `none` first where a set is left out."""
        rows = list(texts)
        names = list(dict.fromkeys(name for row in rows for name in row))
        sets = {}
        for name in names:
            found = sorted({row[name] for row in rows if row.get(name)} - {NONE})
            sets[name] = ([NONE] if any(row.get(name, NONE) == NONE for row in rows) else []) + found
        return cls(sets)

    def to_bytes(self) -> bytes:
        """As `load` reads it. Labels are in quotes: YAML takes a bare yes or no for true or false."""
        lines = [f"{name}: {json.dumps(list(labels), ensure_ascii=False)}\n" for name, labels in self.sets.items()]
        return "".join(lines).encode("utf-8")

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(map(len, self.sets.values()))

    @property
    def vocab_size(self) -> int:
        """Outputs of the model: all labels of all sets."""
        return sum(self.sizes)

    def encode(self, text: str) -> list[int]:
        """The number of each set's label; `unk_id` alone where `fault` finds one, nothing for an empty text."""
        if not text:
            return []
        if self.fault(text) is not None:
            return [self.unk_id]
        given = self._pairs(text)
        return [self._numbers[name][given.get(name, NONE)] for name in self.sets]

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of a label for each set; what is `none` is left out."""
        found = {name: labels[n] for (name, labels), n in zip(self.sets.items(), numbers, strict=True)}
        return self.text(found)

    def text(self, labels: Mapping[str, str]) -> str:
        """As a cut has it."""
        if len(self.sets) == 1:
            return next(iter(labels.values()))
        named = [f"{name}={label}" for name, label in labels.items() if label != NONE]
        return "; ".join(named) or f"{next(iter(self.sets))}={NONE}"

    def fault(self, text: str) -> str | None:
        """What is wrong with a text's labels, with the nearest that there are; None = nothing."""
        if not text:
            return "has no label"
        given = self._pairs(text)
        for name, label in given.items():
            if name not in self.sets:
                return f"names {name!r}, which is no set of {self.source}: {_those(self.sets, name)}"
            if label not in self._numbers[name]:
                return f"has the {name} {label!r}, which {self.source} does not have: {_those(self.sets[name], label)}"
        for name in self.sets:
            if name not in given and NONE not in self._numbers[name]:
                return f"has no {name}, and {self.source} has no {NONE!r} for it"
        return None

    def unknown_characters(self, text: str) -> set[str]:
        """The text, where it cannot be encoded: as a message names it."""
        return {text} if self.unk_id in self.encode(text) else set()

    def difference(self, other: Labels) -> str | None:
        """In words, what would give a text other numbers than `other` does; None = nothing."""
        if list(self.sets) != list(other.sets):
            return f"it has the sets {', '.join(self.sets)}, not {', '.join(other.sets)}"
        changed = [name for name in self.sets if self.sets[name] != other.sets[name]]
        return f"the labels of {', '.join(changed)} are others, or in another order" if changed else None

    def _pairs(self, text: str) -> dict[str, str]:
        if len(self.sets) == 1 and "=" not in text:
            return {next(iter(self.sets)): text}
        return {(pair := part.partition("="))[0].strip(): pair[2].strip() for part in text.split(";")}


def _those(names: Iterable[str], wanted: str) -> str:
    names = list(names)
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}it has {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
