"""Reading the project's Markdown: its pages, their code blocks, headings and links as GitHub takes them."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT

_FENCE = re.compile(r"^(?P<note>(?:<!--[^\n]*-->\n)?)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S)
_CODE = re.compile(r"^```.*?^```$|`[^`]*`", re.M | re.S)
_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")


class Block(NamedTuple):
    """A fenced block: the comment before it (or ""), its language, its lines, and the line it begins in."""

    note: str
    language: str
    code: str
    line: int


def pages() -> list[Path]:
    """Every Markdown file of the project."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):  # no checkout: those that are known without git
        listed = [str(p.relative_to(ROOT)) for pattern in ("*.md", "docs/**/*.md") for p in ROOT.glob(pattern)]
    return sorted(path for name in listed if name and (path := ROOT / name).is_file())


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        line = text[: found.start("code")].count("\n") + 1
        yield Block(found["note"].strip().removeprefix("<!--").removesuffix("-->").strip(), *found.group(2, 3), line)


def links(page: Path) -> list[str]:
    """Targets of the links and pictures of a page, those within code left out."""
    return _LINK.findall(_CODE.sub("code", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """Names of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#{1,6} +(.+?) *$", text, re.M)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", t)).lower().replace(" ", "-") for t in titles
    }


def names_in_code(page: Path) -> set[str]:
    """What is written as `code` within the text."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return set(re.findall(r"`([^`\n]+)`", text))
