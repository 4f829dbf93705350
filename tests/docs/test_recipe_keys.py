"""docs/recipe-keys.md is what the configuration says, and the configuration says something about every key."""

import re

from conftest import ROOT

from sumix_stream.config import RecipeConfig
from sumix_stream.config.keys import page, sections
from sumix_stream.config.reader import to_dict

PAGE = ROOT / "docs" / "recipe-keys.md"


def flat(values: dict, prefix: str = ""):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_the_page_is_made_of_the_configuration():
    assert PAGE.read_text() == page(), "python -m sumix_stream.config.keys > docs/recipe-keys.md"


def test_every_key_is_there_with_its_meaning():
    keys = [key for section in sections() for key in section.keys]
    assert sorted(key.name for key in keys) == sorted(flat(to_dict(RecipeConfig())))
    assert [key.name for key in keys if not key.meaning] == []
    rows = re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(), re.M)
    assert set(rows) - {"model.preset"} == {key.name for key in keys}
    assert {"`data.train_cuts[].weight`", "`data.train_cuts[].path`"} <= set(re.findall(r"`data\S+`", PAGE.read_text()))
