"""Pages that live beside what they describe (recipes, results, the protocol) are part of the built site too.

On GitHub their links go through the repository. In the site such a page lies under `repository/`, links between pages
are turned accordingly, and a link to a file that is no page becomes its text.
"""

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "egs/*/*.md", "kernels/RESULTS.md", "kernels/results/*.png")
OUTSIDE += ("sumix_stream/serve/*.md",)
PREFIX = "repository/"
# Code is passed over; of a link the text and the target are taken.
_LINK = re.compile(r"^(```|~~~).*?^\1|`[^`]*`|(!?\[[^\]]*\])\(([^()\s]+)\)", re.MULTILINE | re.DOTALL)
_log = logging.getLogger("mkdocs.hooks")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            uri = PREFIX + path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    own = page.file.src_uri
    folder = posixpath.dirname(own.removeprefix(PREFIX) if own.startswith(PREFIX) else f"docs/{own}")

    def turned(match: re.Match) -> str:
        text, link = match[2], match[3]
        if text is None or re.match(r"[a-z]+:|#|//", link):
            return match[0]
        target, hash_sign, anchor = link.partition("#")
        path = posixpath.normpath(posixpath.join(folder, target))
        uri = path.removeprefix("docs/") if path.startswith("docs/") else PREFIX + path
        if files.get_file_from_path(uri) is None:
            if not (ROOT / path).exists():
                _log.warning(f"{own}: no file {path} for the link {link}")
            return text.removeprefix("!").strip("[]")
        return f"{text}({posixpath.relpath(uri, posixpath.dirname(own) or '.')}{hash_sign}{anchor})"

    return _LINK.sub(turned, markdown)
