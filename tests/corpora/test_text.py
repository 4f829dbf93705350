"""Transcripts in one spelling."""

import unicodedata

import pytest

from sumix_stream.corpora.text import TextNormaliser, remove_punctuation


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (" one\ttwo\u00a0three\u3000four\r\nfive ", "one two three four five"),
        ("\ufeffone two\u200b th\u00adree", "one two three"),
        ("\u200eone \u202btwo\u202c", "one two"),
        (unicodedata.normalize("NFD", "café Ὀδυσσεύς"), unicodedata.normalize("NFC", "café Ὀδυσσεύς")),
        ("می\u200cخواهم", "می\u200cخواهم"),  # Persian: the joiner is spelling
        ("one\u200ctwo", "onetwo"),
        ("क्\u200dष", "क्\u200dष"),
        ("I'm 5% “sure”, Ünal!", "I'm 5% “sure”, Ünal!"),
    ],
)
def test_always(given, expected):
    normalise = TextNormaliser()
    assert normalise(given) == expected and normalise(expected) == expected


def test_case():
    assert TextNormaliser("lower")("Straße ÉCOLE 5") == "straße école 5"
    assert TextNormaliser("upper")("straße école") == "STRASSE ÉCOLE"
    assert TextNormaliser("lower")("ISPARTA İZMİR", "tr") == "ısparta izmir"
    assert TextNormaliser("upper")("ısparta izmir", "tr-TR") == "ISPARTA İZMİR"
    assert TextNormaliser("lower")("ISPARTA") == "isparta"


def test_punctuation():
    assert remove_punctuation("L’homme, 'quoted' – well-known… 5%") == "L'homme quoted well known 5"
    assert remove_punctuation("हिन्दी, तमिऴ் (தமிழ்)!") == "हिन्दी तमिऴ் தமிழ்"
    assert TextNormaliser("lower", "remove")("¿Qué?  No, ") == "qué no"
    assert TextNormaliser(punctuation="remove")("...") == ""


def test_changes_are_counted_with_examples():
    normalise = TextNormaliser("lower", "remove")
    for text in ("plain", "One,  two!", "\ufeffone", "cafe\u0301", *["A."] * 10):
        normalise(text)
    counts = normalise.counts
    assert counts.texts == 14
    assert dict(counts.changed) == {
        "white space made one space": 1,
        "punctuation removed": 11,
        "lower case": 11,
        "invisible characters removed": 1,
        "composed (NFC)": 1,
    }
    assert counts.removed == {",": 1, "!": 1, ".": 10, "\ufeff": 1}
    assert counts.examples["lower case"][0] == ("One two", "one two") and len(counts.examples["lower case"]) == 5


def test_unknown_choices():
    with pytest.raises(ValueError, match="--case title: must be one of keep, lower, upper"):
        TextNormaliser("title")
    with pytest.raises(ValueError, match="--punctuation drop"):
        TextNormaliser(punctuation="drop")
