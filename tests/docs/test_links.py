"""Links, file names and quotations of the pages are true, read as GitHub and a person with a checkout read them."""

import ast
import re

import markdown_pages
import pytest
from conftest import ROOT

PAGES = markdown_pages.pages()
# Names of files and folders of the project, perhaps with a test in them: `tests/test_audio.py::test_resampling`.
NAMED = re.compile(r"(?:sumix_stream|kernels|tests|bin|egs|docs|\.ci)/[\w./-]*(?:::\w+)?$")
NOT_FILES = re.compile(r"egs/\w+/(data|exp)\b|.*\bNAME\b")  # what commands write; placeholders
# Not the changelog, which names what was, nor the recipes, which name files of other projects.
OURS = [p for p in PAGES if p.name != "CHANGELOG.md" and p.relative_to(ROOT).parts[0] != "egs"]


def broken(page) -> list[str]:
    found = []
    for link in markdown_pages.links(page):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            found.append(f"{link}: no such file")
        elif anchor and anchor not in markdown_pages.anchors(target):
            found.append(f"{link}: no such heading")
    return found


def missing(page) -> list[str]:
    found = []
    for name in markdown_pages.names_in_code(page):
        if not NAMED.match(name) or NOT_FILES.match(name):
            continue
        path, _, test = name.partition("::")
        if not (ROOT / path).exists():
            found.append(f"{name}: no such file")
        elif test and f"def {test}(" not in (ROOT / path).read_text():
            found.append(f"{name}: no such test")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken(page) == []


@pytest.mark.parametrize("page", OURS, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page):
    assert missing(page) == []


def test_faults_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](#a-title) [b](#b) [c](no.md)\n\n```\n[d](none.md)\n```\n`docs/no.md` `bin/test`\n")
    assert broken(page) == ["#b: no such heading", "no.md: no such file"]
    assert missing(page) == ["docs/no.md: no such file"]
    page.write_text("`tests/docs/test_links.py::test_faults_are_found` `tests/docs/test_links.py::test_none`")
    assert missing(page) == ["tests/docs/test_links.py::test_none: no such test"]


def test_the_layers_are_those_of_the_imports():
    """The table of docs/architecture.md is the one that test_layering.py holds."""
    source = (ROOT / "tests" / "test_layering.py").read_text()
    layer, foundation = (
        ast.literal_eval(re.search(rf"^{name} = ([({{].*?[)}}])$", source, re.M | re.S)[1])
        for name in ("LAYER", "FOUNDATION")
    )
    text, said = (ROOT / "docs" / "architecture.md").read_text(), {}
    for height, parts in re.findall(r"^\| (-?\d) \| (.*?) \|", text, re.M):
        said |= {name: int(height) for name in re.findall(r"`(?:sumix_stream/)?(\w+)/?`", parts)}
    assert {name: said.pop(name, None) for name in (*foundation, "bin", "egs")} == {
        **dict.fromkeys(foundation, layer["foundation"]),
        **dict.fromkeys(("bin", "egs"), layer["command"]),
    }
    said = {name: height for name, height in said.items() if name != "sumix_stream"}  # the folder itself
    assert said == {name: height for name, height in layer.items() if name not in ("foundation", "facade", "command")}


def test_versions_of_formats_are_those_of_the_code():
    rows = re.findall(r"^\| [^|]+ \| (\d+) \| `(\w+)` in `([\w/.]+)`", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert len(rows) >= 5
    for version, name, file in rows:
        assert re.search(rf"^{name} = {version}\b", (ROOT / file).read_text(), re.M), f"{file}: {name} is not {version}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_files_named_in_drawings_exist():
    drawings = sorted((ROOT / "docs" / "img").glob("*.svg"))
    named = [drawing for drawing in drawings if "ui-monospace" in drawing.read_text()]
    assert len(named) >= 2
    for drawing in named:
        texts = re.findall(r'font-family="ui-monospace, monospace">([^<]+)<', drawing.read_text())
        assert len(texts) > 10, drawing
        for text in texts:
            first, *others = text.split(", ")
            files = [first, *(name if "/" in name else f"{first.rpartition('/')[0]}/{name}" for name in others)]
            assert [name for name in files if not (ROOT / "sumix_stream" / name).exists()] == [], drawing
    assert all(drawing.stat().st_size < 100_000 for drawing in drawings)
