"""Word errors against counts made by hand and a textbook dynamic programme."""

import io
import json
import math
import random

import pytest

from sumix_stream.evaluate.marks import BRACKETS, COLOUR, marks_for
from sumix_stream.evaluate.scoring import WordErrors, align, score, write_report


def levenshtein(reference: list[str], hypothesis: list[str]) -> int:
    row = list(range(len(hypothesis) + 1))
    for i, ref in enumerate(reference, start=1):
        previous, row = row, [i]
        for j, hyp in enumerate(hypothesis, start=1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (ref != hyp)))
    return row[-1]


def test_every_kind_of_error():
    errors = align("u", "one two three four", "one too four five")
    assert (errors.substitutions, errors.deletions, errors.insertions) == (1, 1, 1)
    assert errors.pairs[0] == ("one", "one")
    assert set(errors.pairs[1:]) == {("two", "too"), ("three", None), ("four", "four"), (None, "five")}


def test_alignment_is_minimal_and_loses_no_word():
    rng = random.Random(0)
    for _ in range(200):
        reference, hypothesis = (rng.choices("abc", k=rng.randint(0, 8)) for _ in range(2))
        errors = align("u", " ".join(reference), " ".join(hypothesis))
        assert errors.errors == levenshtein(reference, hypothesis)
        assert errors.reference.split() == reference
        assert errors.hypothesis.split() == hypothesis


def test_words_are_compared_exactly():
    assert align("u", "Don't", "dont").substitutions == 1
    assert align("u", "a  b\tc", "a b c").errors == 0


def test_wer_is_over_all_words_of_the_set():
    errors = score([("a", "one", "two"), ("b", "one two three", "one two three")])
    assert errors.wer == pytest.approx(1 / 4)
    assert errors.num_words == 4


@pytest.mark.parametrize(("hypothesis", "wer"), [("", 0.0), ("uh", math.inf)])
def test_without_any_reference_word(hypothesis, wer):
    errors = score([("silence", "", hypothesis)])
    assert errors.wer == wer
    assert errors.interval is None
    assert json.loads(json.dumps(errors.to_dict(), allow_nan=False))["wer"] == (0.0 if wer == 0 else None)


def test_insertions_into_silence_count():
    errors = score([("silence", "", "uh oh"), ("speech", "one two three four", "one two three four")])
    assert errors.insertions == 2
    assert errors.wer == pytest.approx(0.5)


def test_an_empty_set():
    errors = WordErrors(())
    assert errors.wer == 0.0
    assert "0 utterances" in errors.summary()


def test_interval_holds_the_wer_and_narrows_with_more_utterances():
    few = [(str(i), "one two three four", "one two three four" if i % 4 else "one") for i in range(12)]
    narrow, wide = score(few * 20), score(few)
    for errors in (narrow, wide):
        low, high = errors.interval
        assert 0 <= low < errors.wer < high
    assert narrow.interval[1] - narrow.interval[0] < 0.5 * (wide.interval[1] - wide.interval[0])


def test_worst_utterances_and_frequent_errors():
    errors = score([("good", "one", "one"), ("bad", "one two", "won two"), ("worst", "one two", "won too")])
    assert [u.id for u in errors.worst()] == ["worst", "bad"]
    assert errors.confusions()[0] == (("one", "won"), 2)


def test_report_files(tmp_path):
    errors = score([("a", "one two", "one three"), ("b", "four", "four five"), ("c", "six", "")])
    path = write_report(tmp_path / "new" / "folder", errors, {"rtf": 0.5})
    text = path.read_text()
    assert text.startswith(errors.summary())
    assert "S 1  D 1  I 1" in text
    assert "  ref  one  [two]\n  hyp  one  [three]" in text
    saved = json.loads(path.with_name("report.json").read_text())
    assert saved["rtf"] == 0.5
    assert saved["wer"] == pytest.approx(3 / 4)
    assert saved["utterances"][2] == {
        "id": "c",
        "reference": "six",
        "hypothesis": "",
        "errors": 1,
        "pairs": [["six", None]],
    }


def test_characters_are_counted_beside_words():
    errors = score([("a", "one two", "one tow"), ("b", "caf\u00e9", "cafe\u0301")])
    assert errors.cer == pytest.approx(levenshtein(list("onetwo"), list("onetow")) / 10)  # NFC, no spaces
    assert errors.wer == pytest.approx(2 / 3) and list(errors.metrics) == ["wer", "cer"]
    assert errors.summary().startswith("WER 66.67%") and errors.summary().endswith("CER 20.00%")
    saved = errors.to_dict()
    assert (saved["unit"], saved["cer"], saved["characters"]) == ("words", pytest.approx(0.2), 10)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "rate"),
    [("今天天气很好", "今天天汽很好", 1 / 6), ("วันนี้ดี", "วันนีดี", 1 / 8), ("おはよう 世界", "おはよう世", 1 / 6)],
)
def test_characters_come_first_where_no_spaces_are_written(reference, hypothesis, rate):
    errors = score([("a", reference, hypothesis)])
    assert errors.unit == "characters" and list(errors.metrics) == ["cer", "wer"]
    assert errors.metrics["cer"] == pytest.approx(rate) and errors.wer > rate
    assert errors.summary().startswith(f"CER {rate:.2%}") and "characters in 1 utterances  WER" in errors.summary()
    saved = errors.to_dict()
    assert saved["utterances"][0]["errors"] == 1 and saved["utterances"][0]["reference"] == reference
    assert len(saved["utterances"][0]["pairs"]) == len("".join(reference.split()))


def test_errors_are_marked_in_any_script():
    """Capitals mark nothing in a script that has none, nor in a text that is written in them."""
    lines = align("u", "HELLO BIG WORLD", "HELLO BAG WORLD OH").format().splitlines()
    assert lines[1:] == ["  ref  HELLO  [BIG]  WORLD  [**]", "  hyp  HELLO  [BAG]  WORLD  [OH]"]
    lines = score([("u", "今天天气很好", "今天天汽很")]).first.utterances[0].format().splitlines()
    assert lines[1:] == ["  ref  今天天[气]很[好]", "  hyp  今天天[汽]很[**]"]
    coloured = align("u", "a b", "a c").format(COLOUR)
    assert "a  \x1b[1;31mb\x1b[0m" in coloured and "[" not in coloured.replace("\x1b[", "")
    assert "[\u25cc\u0e49]" in align("u", "น้ำ", "นำ", "characters").format()  # a mark has something to stand upon


def test_colour_is_for_people(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert marks_for(Terminal()) is COLOUR and marks_for(io.StringIO()) is BRACKETS
    monkeypatch.setenv("NO_COLOR", "1")
    assert marks_for(Terminal()) is BRACKETS
