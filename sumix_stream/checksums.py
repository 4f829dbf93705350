"""SHA256SUMS of a directory, as coreutils writes it: `sha256sum -c SHA256SUMS` checks it without this project."""

import hashlib
import re
from pathlib import Path

SUMS = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def write_sums(directory: Path) -> None:
    """Write the sums of all files of a directory (not of directories in it) beside them."""
    files = sorted(path for path in Path(directory).iterdir() if path.is_file() and path.name != SUMS)
    lines = [f"{_digest(path)}  {path.name}\n" for path in files]
    (Path(directory) / SUMS).write_text("".join(lines), encoding="utf-8")


def read_sums(directory: Path) -> dict[str, str] | None:
    """Sum by file name; None when the directory has none. Lines that are damaged are not there."""
    path = Path(directory) / SUMS
    if not path.is_file():
        return None
    matches = (_LINE.fullmatch(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {match[2]: match[1] for match in matches if match}


def fault(path: Path) -> str | None:
    """What the sums beside a file say against it; None when it is as it was saved, or there are no sums."""
    sums = read_sums(path.parent)
    if sums is None:
        return None
    if path.name not in sums:
        return f"{SUMS} does not list it"
    return None if _digest(path) == sums[path.name] else f"its SHA-256 is not that in {SUMS}"


def require_sum(path: Path, expected: str) -> None:
    """Raises ValueError, and removes the file, where a download has another sum than expected: SHA-256, or MD5."""
    name, kind = ("MD5", "md5") if len(expected) == 32 else ("SHA-256", "sha256")
    found = _digest(path, kind)
    if found != expected:
        path.unlink()
        raise ValueError(
            f"{path}: its {name} is {found}, not the published {expected}: it was damaged or changed on its way and "
            "has been removed; download it again"
        )


def _digest(path: Path, kind: str = "sha256") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
