"""Where words begin, in scripts with spaces and without."""

from itertools import pairwise

import pytest

from sumix_stream.search.hypothesis import Hypothesis, join_words
from sumix_stream.search.word_starts import is_spaceless, surfaces, word_starts
from sumix_stream.search.words import words_of
from sumix_stream.tokenizer import train_tokenizer


def grouped(pieces: list[str]) -> str:
    shown = zip(surfaces(pieces), word_starts(pieces), strict=True)
    return "".join(("|" if begins else "") + text for text, begins in shown).removeprefix("|")


def by_bytes(text: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in text.encode()]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["▁HE", "LLO", "▁WORLD", "'S", "-", "END"], "▁HELLO|▁WORLD'S-END"),
        (list("한국어▁문장"), "한국어|▁문장"),
        (list("▁今天5G网络iPhone很好。「我」说"), "▁今|天|5G|网|络|iPhone|很|好。|「我」|说"),
        (["▁今天", "天气", "很好"], "▁今天|天气|很好"),
        (list("▁ちょっとラーメン人々"), "▁ちょっ|と|ラー|メ|ン|人々"),
        (list("▁สวัสดีน้ำ"), "▁ส|วั|ส|ดี|น้ำ"),
        (list("ខ្ញុំស្រឡាញ់"), "ខ្ញុំ|ស្រ|ឡា|ញ់"),
        (list("မြန်မာ"), "မြ|န်|မာ"),
        (["▁", *by_bytes("爿今a")], "▁爿|今|a"),
        (["▁A", *by_bytes("今")[:2]], "▁A"),
        ([], ""),
    ],
)
def test_words_of_scripts(pieces, expected):
    assert grouped(pieces) == expected


TEXTS = {"zh": "今天天气很好我们去北京", "ja": "今日はちょっとラーメンを食べた", "th": "วันนี้อากาศดีมาก"}


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_words_have_times_of_their_own(tmp_path, language, kind):
    """With a tokenizer trained on the script; before, a sentence was one word."""
    text = TEXTS[language]
    tokenizer = train_tokenizer(
        [text, *text] * 4, tmp_path / "t.model", len({*text}) + 6 if kind == "bpe" else None, kind
    )
    ids = tokenizer.encode(text)
    times = [0.2 * n for n in range(len(ids))]
    words = words_of(Hypothesis(text, ids, times, [0.9] * len(ids)), tokenizer, 0.04)
    assert join_words(words) == text
    assert len(words) > (5 if kind == "char" else 1) and len({word.start for word in words}) == len(words)
    assert all(a.end <= b.start for a, b in pairwise(words))
    assert words[0].space and not any(word.space for word in words[1:])


def test_spaces_between_such_words_are_kept(tmp_path):
    text = "今天 5G 网络 good"
    tokenizer = train_tokenizer([text], tmp_path / "t.model", None, "char")
    ids = tokenizer.encode(text)
    words = words_of(Hypothesis(text, ids, [0.1 * n for n in range(len(ids))], [1.0] * len(ids)), tokenizer, 0.04)
    assert [word.text for word in words] == ["今", "天", "5G", "网", "络", "good"] and join_words(words) == text


def test_which_scripts_count_characters():
    assert is_spaceless("今天 5G") and is_spaceless(["วันนี้", "ok"]) and is_spaceless("ລາວ") and is_spaceless("ខ្មែរ")
    assert not any(map(is_spaceless, ["hello", "한국어", "привет", "नमस्ते", "", "123"]))
