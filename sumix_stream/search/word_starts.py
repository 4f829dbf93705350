"""Which tokens begin a word, in scripts with spaces and without.

Where spaces are written, a word begins at a piece with the mark ▁. Han, kana, Thai, Lao, Khmer, Myanmar and others
write none between words: there each piece stands for itself, with the marks, small kana and closing punctuation that
follow it. A run of Latin letters or digits among them is one word.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

SPACE = "▁"
# By the first word of their characters' names.
_SCRIPTS = frozenset(
    "CJK HIRAGANA KATAKANA BOPOMOFO THAI LAO KHMER MYANMAR TIBETAN YI JAVANESE BALINESE TAI NEW NUSHU TANGUT".split()
)
_FOLLOW = frozenset("ぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶーｰ々ゝゞヽヾ〻ๆໆะาำະາຳ")  # never first in a line
_JOINERS = frozenset("\u17d2\u1039\u0f84\u200d")  # what follows is written below, or into, what precedes
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@lru_cache(maxsize=1 << 14)
def writes_no_spaces(character: str) -> bool:
    """Whether a character is of a script without spaces between words."""
    name = unicodedata.name(character, "").split(" ")[0].split("-")[0]
    return name in _SCRIPTS and (unicodedata.category(character)[0] in "LMN")


@lru_cache(maxsize=1 << 14)
def _follows(character: str) -> bool:
    """Whether a character belongs to the one before it: marks, small kana, closing punctuation."""
    return character in _FOLLOW or unicodedata.category(character) in ("Mn", "Mc", "Me", "Pe", "Pf", "Po", "Pd", "Pc")


def _opens(text: str) -> bool:
    """Whether a text is nothing but opening brackets and quotes."""
    return all(unicodedata.category(character) in ("Ps", "Pi") for character in text)


def surfaces(pieces: Sequence[str]) -> list[str]:
    """What each piece shows; bytes show their character where it begins, and nothing where it is not whole yet."""
    shown = list(pieces)
    n = 0
    while n < len(pieces):
        if not (found := _BYTE.fullmatch(pieces[n])):
            n += 1
            continue
        lead = int(found[1], 16)
        length = 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        parts = [_BYTE.fullmatch(piece) for piece in pieces[n : n + length]]
        try:
            shown[n] = bytes(int(part[1], 16) for part in parts if part).decode()
        except UnicodeDecodeError:
            shown[n] = ""
            length = 1
        else:
            shown[n + 1 : n + length] = [""] * (len(parts) - 1)
        n += length
    return shown


def word_starts(pieces: Sequence[str]) -> list[bool]:
    """Whether each piece begins a word; the first always does. Marks without text belong to the word after them."""
    starts: list[bool] = []
    word = ""  # so far
    for text in surfaces(pieces):
        plain = text.lstrip(SPACE)
        begins = not starts or text.startswith(SPACE) or _begins(word, plain)
        starts.append(begins)
        word = plain if begins else word + plain
    return starts


def _begins(word: str, text: str) -> bool:
    """Whether a piece without a mark begins a word after the letters of `word`."""
    if not word or not text or _opens(word):
        return False
    before, first = word[-1], text[0]
    if _follows(first) or before in _JOINERS:
        return False
    if writes_no_spaces(first):
        return True
    after = next((c for c in reversed(word) if not _follows(c)), before)
    return writes_no_spaces(after)  # Latin letters or digits after a character of such a script


def last_start(pieces: Sequence[str]) -> int:
    """Place of the last piece that begins a word; 0 where there is none."""
    return max((n for n, begins in enumerate(word_starts(pieces)) if begins), default=0)


def is_spaceless(texts: Sequence[str] | str) -> bool:
    """Whether most letters are of scripts without spaces: then characters are counted, not words."""
    letters = [c for text in ([texts] if isinstance(texts, str) else texts) for c in text if c.isalpha()]
    return 2 * sum(map(writes_no_spaces, letters)) > len(letters)
