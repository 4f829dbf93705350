"""Links to pages outside docs/ are turned; one to nothing is a warning, which strict mode refuses."""

import logging
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from types import SimpleNamespace

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(find_spec("mkdocs") is None, reason="the extra `docs` is not installed")
KNOWN = {"index.md", "kernels/rnnt.md", "repository/egs/mini/RESULTS.md", "repository/kernels/results/a.png"}


@pytest.fixture(scope="module")
def turned():
    spec = spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    hooks = module_from_spec(spec)
    spec.loader.exec_module(hooks)
    files = SimpleNamespace(get_file_from_path=lambda uri: uri if uri in KNOWN else None)
    return lambda uri, text: hooks.on_page_markdown(
        text, SimpleNamespace(file=SimpleNamespace(src_uri=uri)), SimpleNamespace(), files
    )


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("index.md", "[a](kernels/rnnt.md)", "[a](kernels/rnnt.md)"),
        ("kernels/rnnt.md", "[a](../../egs/mini/RESULTS.md#b)", "[a](../repository/egs/mini/RESULTS.md#b)"),
        ("repository/egs/mini/RESULTS.md", "[a](../../docs/index.md)", "[a](../../../index.md)"),
        ("repository/kernels/RESULTS.md", "![a](results/a.png)", "![a](results/a.png)"),
        ("index.md", "[the test](../tests/conftest.py) runs", "the test runs"),
        (
            "index.md",
            "`[a](../setup.py)` [b](https://x.example) [c](#d)",
            "`[a](../setup.py)` [b](https://x.example) [c](#d)",
        ),
    ],
)
def test_links(page, text, expected, turned, caplog):
    assert turned(page, text) == expected
    assert not caplog.records


def test_a_link_to_nothing_is_a_warning(turned, caplog):
    with caplog.at_level(logging.WARNING):
        assert turned("index.md", "[a](../none.md)") == "a"
    assert "no file none.md" in caplog.text
