"""What is wrong with utterances of a corpus: found, named by id in a report, left out."""

import csv
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

COLUMNS = ("file", "line", "fault", "detail", "action", "id", "part")
MAX_LOGGED = 20  # of one part
_ORDINALS = "ªº"  # letters to Unicode, of no script
log = logging.getLogger(__name__)


class Fault(NamedTuple):
    """One utterance and why it is left out; with `kept`, why it would be, were it not part of a test set."""

    part: str
    id: str
    fault: str  # one of a few words: what is counted
    detail: str
    kept: bool = False
    file: str = ""  # that names it, and on which line (0: no line)
    line: int = 0


class FaultyUtterance(ValueError):
    """Raised by checks: `fault` and `detail` as in `Fault`."""

    def __init__(self, fault: str, detail: str) -> None:
        super().__init__(f"{fault}: {detail}")
        self.fault, self.detail = fault, detail


def check_text(text: str) -> None:
    """Raises FaultyUtterance for a transcript without letters and digits, or with letters of a script but Latin."""
    if not any(map(str.isalnum, text)):
        raise FaultyUtterance("empty transcript", repr(text))
    if "\ufffd" in text:
        raise FaultyUtterance("non-Latin transcript", "not UTF-8")
    foreign = sorted({c for c in text if c.isalpha() and c not in _ORDINALS and not _is_latin(c)})
    if foreign:
        raise FaultyUtterance("non-Latin transcript", " ".join(foreign))


def _is_latin(letter: str) -> bool:
    return letter.isascii() or unicodedata.name(letter, "").startswith("LATIN ")


def check_duration(seconds: float, low: float, high: float) -> None:
    """Raises FaultyUtterance for a duration outside `low` to `high` seconds."""
    if not low <= seconds <= high:
        fault = "too short" if seconds < low else "too long"
        raise FaultyUtterance(fault, f"{seconds:.2f} s is outside {low:g} to {high:g} s")


def check_speaking_rate(text: str, seconds: float, low: float, high: float) -> None:
    """Raises FaultyUtterance where characters a second (white space not counted) are outside `low` to `high`.

    Such a transcript most likely is not what is said in this segment.
    """
    rate = sum(not c.isspace() for c in text) / seconds
    if not low <= rate <= high:
        raise FaultyUtterance("misaligned", f"{rate:.1f} characters a second are outside {low:g} to {high:g}")


def write_report(path: Path, faults: Iterable[Fault]) -> None:
    """Write the faults as tab-separated values with a header, sorted by part and id."""
    aside = path.with_name(path.name + ".part")
    # A file name that is not UTF-8 is written readably: \udce9 for its byte.
    with open(aside, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        for fault in sorted(faults):
            action = "kept" if fault.kept else "left out"
            line = fault.line or ""
            writer.writerow([fault.file, line, fault.fault, fault.detail, action, fault.id, fault.part])
    aside.replace(path)


def read_report(path: Path) -> list[Fault]:
    """The inverse of `write_report`."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [
            Fault(
                *(row["part"], row["id"], row["fault"], row["detail"], row["action"] == "kept"),
                *(row["file"], int(row["line"] or 0)),
            )
            for row in rows
        ]


def log_faults(faults: Iterable[Fault]) -> None:
    """Name the first of those left out in the log, and count the rest: the report names all."""
    left_out = [fault for fault in faults if not fault.kept]
    for fault in left_out[:MAX_LOGGED]:
        log.warning("%s left out: %s (%s)", fault.id, fault.fault, fault.detail)
    if rest := Counter(fault.fault for fault in left_out[MAX_LOGGED:]):
        log.warning("and %s", ", ".join(f"{number} more: {fault}" for fault, number in sorted(rest.items())))


def print_summary(faults: Iterable[Fault], report: Path) -> None:
    """One line for each part and fault: how many, and where they are named."""
    counts = Counter((fault.part, fault.kept, fault.fault) for fault in faults)
    for (part, kept, fault), number in sorted(counts.items()):
        prefix = f"{part}: " if part else ""
        print(f"{prefix}{number} {'kept although' if kept else 'left out:'} {fault} (by id in {report})")
