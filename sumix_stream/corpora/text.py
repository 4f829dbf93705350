"""Transcripts in one spelling: what is changed is counted, with examples, so that nothing happens unseen."""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field

CASES = ("keep", "lower", "upper")
PUNCTUATIONS = ("keep", "remove")
EXAMPLES = 5  # of each kind of change
APOSTROPHES = dict.fromkeys(map(ord, "’‘ʼ`´"), "'")
_JOINERS = "\u200c\u200d"  # between letters of the scripts below they are part of the spelling
_JOINED = frozenset(
    "ARABIC DEVANAGARI BENGALI GURMUKHI GUJARATI ORIYA TAMIL TELUGU KANNADA MALAYALAM SINHALA KHMER MYANMAR "
    "MONGOLIAN".split()
)
_PLAIN = re.compile(r"[ -~]*")
_TURKIC = {"lower": str.maketrans({"I": "ı", "İ": "i"}), "upper": str.maketrans({"i": "İ", "ı": "I"})}


@dataclass
class TextCounts:
    """How many transcripts each kind of change touched, examples (before, after), and characters taken out."""

    texts: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    removed: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, before: str, after: str) -> None:
        self.changed[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append((before[:200], after[:200]))


class TextNormaliser:
    """Writes every transcript alike; `counts` tells what it did.

    Always: Unicode NFC; every run of white space (tabs, no-break and ideographic spaces) one space; control characters,
    byte order marks and zero-width characters out. Zero-width joiners stay where they are spelling (Persian, Hindi).

    Args:
        case: keep, lower or upper; Turkish and Azerbaijani dotted and dotless i by the utterance's language.
        punctuation: keep, or remove: see `remove_punctuation`.
    """

    def __init__(self, case: str = "keep", punctuation: str = "keep") -> None:
        if case not in CASES:
            raise ValueError(f"--case {case}: must be one of {', '.join(CASES)}")
        if punctuation not in PUNCTUATIONS:
            raise ValueError(f"--punctuation {punctuation}: must be one of {', '.join(PUNCTUATIONS)}")
        self.case, self.punctuation = case, punctuation
        self.counts = TextCounts()

    def __call__(self, text: str, language: str = "") -> str:
        counts, given = self.counts, text
        counts.texts += 1
        if not (_PLAIN.fullmatch(text) and text.isascii()):
            if (composed := unicodedata.normalize("NFC", text)) != text:
                counts.note("composed (NFC)", given, composed)
            visible = _visible(composed)
            if visible != composed:
                counts.removed.update(_lost(composed, visible))
                counts.note("invisible characters removed", given, " ".join(visible.split()))
            text = visible
        if (spaced := " ".join(text.split())) != text.strip():
            counts.note("white space made one space", given, spaced)
        text = spaced
        if self.punctuation == "remove" and (plain := remove_punctuation(text)) != text:
            counts.removed.update(_lost(text, plain))
            counts.note("punctuation removed", text, plain)
            text = plain
        if self.case != "keep" and (cased := _cased(text, self.case, language)) != text:
            counts.note(f"{self.case} case", text, cased)
            text = cased
        return text


def remove_punctuation(text: str) -> str:
    """Letters, digits and their marks, with one space for everything else.

    Apostrophes between letters stay, as the plain one (l'homme). U+FFFD stays, for the check that names it.
    """
    text = text.translate(APOSTROPHES)
    text = "".join(c if c.isalnum() or c in "'\ufffd" or _is_mark(c) else " " for c in text)
    return " ".join(re.sub(r"(?<!\w)'+|'+(?!\w)", " ", text).split())


def _is_mark(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character)[0] == "M"


def _visible(text: str) -> str:
    """Without control and format characters, but for white space and for joiners that are spelling."""
    kept = []
    for place, character in enumerate(text):
        category = unicodedata.category(character)
        if category not in ("Cc", "Cf") or character.isspace():
            kept.append(character)
        elif character in _JOINERS and 0 < place < len(text) - 1 and _joins(text[place - 1], text[place + 1]):
            kept.append(character)
    return "".join(kept)


def _joins(before: str, after: str) -> bool:
    """Whether a joiner between these two is spelling."""
    return all(unicodedata.name(character, "").split(" ")[0] in _JOINED for character in (before, after))


def _lost(before: str, after: str) -> Counter[str]:
    lost = Counter(before) - Counter(after)
    return Counter({character: number for character, number in lost.items() if not character.isspace()})


def _cased(text: str, case: str, language: str) -> str:
    if language.lower()[:2] in ("tr", "az"):
        text = text.translate(_TURKIC[case])
    return unicodedata.normalize("NFC", text.lower() if case == "lower" else text.upper())
