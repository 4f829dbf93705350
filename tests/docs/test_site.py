"""The built site: strict mode finds nothing, every page is in the navigation, and nothing is loaded from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("mkdocs", "material", "mkdocstrings"))), reason="the extra `docs` is not installed"
)
LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}


class Loaded(HTMLParser):
    """What a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") not in ("next", "prev", "canonical", "alternate"):
            self.addresses.append(values.get("href") or "")
        elif tag in LOADS and values.get(LOADS[tag]):
            self.addresses.append(values[LOADS[tag]])
        if "mermaid" in (values.get("class") or ""):  # for which the theme would fetch a program
            self.addresses.append("https: mermaid")


def from_elsewhere(html: str) -> list[str]:
    loaded = Loaded()
    loaded.feed(html)
    styles = re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]+)", html)
    return [address for address in loaded.addresses if re.match(r"(?:https?:|//)", address)] + styles


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # an advertisement of the theme's
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_it_builds_and_loads_nothing_from_elsewhere(site):
    html = sorted(site.rglob("*.html"))
    assert len(html) >= len(list((ROOT / "docs").rglob("*.md")))
    assert {str(p.relative_to(site)): a for p in html if (a := from_elsewhere(p.read_text()))} == {}
    styles = {str(p): a for p in site.rglob("*.css") if (a := re.findall(r"url\([\"']?(?:https?:)?//", p.read_text()))}
    assert styles == {}


def test_the_reference_has_the_public_names(site):
    import sumix_kernels
    import sumix_stream

    for page, module in (("kernels", sumix_kernels), ("sumix_stream", sumix_stream)):
        text = (site / "api" / f"{page}.html").read_text()
        assert [n for n in module.__all__ if not re.search(rf'<h\d id="{module.__name__}\.[\w.]*\b{n}"', text)] == []


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://unpkg.com/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/x.css">',
        "<style>@import 'https://x.example/y.css'</style>",
        '<pre class="mermaid">',
    ],
)
def test_what_comes_from_elsewhere_is_found(html):
    assert from_elsewhere(html)
    assert not from_elsewhere('<script src="a.js"></script><a href="https://x.example">x</a>')
