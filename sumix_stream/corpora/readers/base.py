"""What every reader gives: utterances with where they were named, or why a line gives none."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

FILE, COMMAND, CUT, SHARD = "file", "command", "cut", "shard"  # kinds of `Item.audio`
SPLITS = ("train", "valid", "test")
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "development"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


class Item(NamedTuple):
    """One utterance as people have it. Plain values only: it goes through JSON and between processes."""

    audio: str  # path of a file; a command that writes audio; a Lhotse cut as JSON; a shard's cuts file
    text: str
    file: str = ""  # where it is named, and on which line (0: no line)
    line: int = 0
    id: str = ""  # "" : made of the audio's name
    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None: to the end of the audio
    channel: int | None = None  # from 0; None: the average
    speaker: str = ""
    language: str = ""
    split: str = ""  # train, valid, test or "" where nobody says
    kind: str = FILE

    @property
    def whole(self) -> bool:
        """Nothing says that it is a part of its recording."""
        return self.start == 0.0 and self.end is None


class Skipped(NamedTuple):
    """A line or file that gives no utterance, and why: `fault` is one of a few words, which are counted."""

    file: str
    line: int
    fault: str
    detail: str
    id: str = ""


Found = Iterator[Item | Skipped]


@dataclass(frozen=True)
class ReadOptions:
    """How to read a source, where that cannot be seen from it."""

    columns: Mapping[str, str] = field(default_factory=dict)  # of tables: our name -> its name or its number from 1
    audio_root: Path | None = None  # folder that relative paths of audio begin at
    encoding: str | None = None  # of text files; None: UTF-8, or UTF-16 with its mark
    allow_commands: bool = False  # run commands and fetch addresses that a manifest names
    speaker: str | None = None  # regular expression: its first group, found in an audio file's path, is the speaker


class Reader(Protocol):
    """A module of this folder."""

    ABOUT: str  # what it reads, for people

    def recognise(self, path: Path) -> bool:
        """Whether `path` is a source of this kind, judged by names and first lines alone."""

    def read(self, path: Path, options: ReadOptions) -> Found:
        """The utterances of a source, in an order that depends on nothing but it.

        Raises:
            ValueError: nothing of the source can be read; names the file and the remedy. A single bad line is a
                `Skipped`.
        """


def split_of(name: str) -> str:
    """train, valid or test, where a file, folder or value is named so (train, train_small, dev-clean); else ""."""
    word = name.strip().lower()
    for mark in "-_. ":
        word = word.split(mark)[0]
    return _SPLIT_NAMES.get(word, "")
