"""Word and character error rates: minimum edit alignments, confidence intervals, a report for people and programs.

Nothing is normalised: words are what `str.split` gives, compared exactly, case and punctuation included. Normalise
references and hypotheses before scoring if the comparison asks for it. Characters are code points of composed text
(NFC), white space left out: the same measure for scripts that write spaces and those that write none, where it comes
first.
"""

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import kaldialign

from sumix_stream.evaluate.marks import BRACKETS, Marks, columns
from sumix_stream.search.word_starts import is_spaceless
from sumix_stream.search.words import GAP

Pair = tuple[str | None, str | None]
WORDS, CHARACTERS = "words", "characters"


class _Counts:
    """What an alignment's pairs are counted as; `pairs` and `unit` are given."""

    pairs: tuple[Pair, ...]

    @cached_property
    def num_words(self) -> int:
        """Units of the reference."""
        return sum(unit is not None for unit, _ in self.pairs)

    @cached_property
    def substitutions(self) -> int:
        return sum(ref is not None and hyp is not None and ref != hyp for ref, hyp in self.pairs)

    @cached_property
    def deletions(self) -> int:
        return sum(hyp is None for _, hyp in self.pairs)

    @cached_property
    def insertions(self) -> int:
        return sum(ref is None for ref, _ in self.pairs)

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class UtteranceErrors(_Counts):
    """One utterance: its minimum edit alignment as (reference, hypothesis) pairs, None on the empty side.

    unit: what the pairs and the counts are of, `words` or `characters`.
    """

    id: str
    pairs: tuple[Pair, ...]
    unit: str = WORDS

    @property
    def reference(self) -> str:
        return self._joined(0)

    @property
    def hypothesis(self) -> str:
        return self._joined(1)

    def _joined(self, side: int) -> str:
        return ("" if self.unit == CHARACTERS else " ").join(
            pair[side] for pair in self.pairs if pair[side] is not None
        )

    @cached_property
    def characters(self) -> "UtteranceErrors":
        """The same texts aligned by characters."""
        if self.unit == CHARACTERS:
            return self
        return align(self.id, self.reference, self.hypothesis, CHARACTERS)

    def format(self, marks: Marks = BRACKETS) -> str:
        """Three lines: counts, then reference over hypothesis in columns, errors marked and gaps as stars."""
        counts = f"S {self.substitutions}  D {self.deletions}  I {self.insertions}"
        head = f"{self.id}: {self.errors} errors in {self.num_words} {self.unit} ({counts})"
        ref_line, hyp_line = columns(self.pairs, marks, "" if self.unit == CHARACTERS else "  ")
        return f"{head}\n  ref  {ref_line}\n  hyp  {hyp_line}"


@dataclass(frozen=True)
class WordErrors:
    """Word errors of a test set, and its errors by characters."""

    utterances: tuple[UtteranceErrors, ...]

    @cached_property
    def unit(self) -> str:
        """What comes first: `characters` where the references' script writes no spaces, else `words`."""
        if any(u.unit == CHARACTERS for u in self.utterances):
            return CHARACTERS
        return CHARACTERS if is_spaceless([u.reference for u in self.utterances]) else WORDS

    @cached_property
    def characters(self) -> "WordErrors":
        """The same texts aligned by characters."""
        if self.utterances and all(u.unit == CHARACTERS for u in self.utterances):
            return self
        return WordErrors(tuple(u.characters for u in self.utterances))

    @property
    def first(self) -> "WordErrors":
        """In the unit that comes first."""
        return self.characters if self.unit == CHARACTERS else self

    @property
    def cer(self) -> float:
        """Errors a reference character, as `wer`."""
        return self.characters.wer

    @property
    def metrics(self) -> dict[str, float]:
        """Both rates by name, first the one to go by."""
        rates = {"cer": self.cer, "wer": self.wer}
        return rates if self.unit == CHARACTERS else {"wer": self.wer, "cer": self.cer}

    @cached_property
    def num_words(self) -> int:
        return sum(u.num_words for u in self.utterances)

    @cached_property
    def substitutions(self) -> int:
        return sum(u.substitutions for u in self.utterances)

    @cached_property
    def deletions(self) -> int:
        return sum(u.deletions for u in self.utterances)

    @cached_property
    def insertions(self) -> int:
        return sum(u.insertions for u in self.utterances)

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Errors a word of the reference, as a fraction. Without any: 0 if nothing was inserted, else inf."""
        if self.num_words == 0:
            return math.inf if self.errors else 0.0
        return self.errors / self.num_words

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the rate by bootstrap over utterances (Bisani and Ney, ICASSP 2004); None below 2 utterances
        with words. Utterances without reference words are left out of it."""
        spoken = [u for u in self.utterances if u.num_words]
        if len(spoken) < 2:
            return None
        result = kaldialign.bootstrap_wer_ci(
            [[ref for ref, _ in u.pairs if ref is not None] for u in spoken],
            [[hyp for _, hyp in u.pairs if hyp is not None] for u in spoken],
            replications=1000,
        )
        return max(0.0, result["ci95min"]), result["ci95max"]

    def worst(self, count: int = 20) -> list[UtteranceErrors]:
        """Utterances with most errors, at most `count`, none without an error."""
        wrong = [u for u in self.utterances if u.errors]
        return sorted(wrong, key=lambda u: (-u.errors, u.num_words, u.id))[:count]

    def confusions(self, count: int = 20) -> list[tuple[Pair, int]]:
        """Most frequent errors as ((reference, hypothesis), times), None on the empty side."""
        wrong = Counter(pair for u in self.utterances for pair in u.pairs if pair[0] != pair[1])
        return sorted(wrong.items(), key=lambda item: (-item[1], str(item[0])))[:count]

    def summary(self) -> str:
        """One line: the rate that comes first with its interval, the counts it is made of, and the other rate."""
        first = self.first
        low_high = "" if first.interval is None else f" [{first.interval[0]:.2%}, {first.interval[1]:.2%}]"
        name, other = ("CER", f"WER {self.wer:.2%}") if self.unit == CHARACTERS else ("WER", f"CER {self.cer:.2%}")
        if self.utterances and all(u.unit == CHARACTERS for u in self.utterances):
            other = ""  # nobody counted words
        return (
            f"{name} {first.wer:.2%}{low_high}  S {first.substitutions}  D {first.deletions}  I {first.insertions}  "
            f"of {first.num_words} {self.unit} in {len(self.utterances)} utterances" + (f"  {other}" if other else "")
        )

    def report(self, marks: Marks = BRACKETS) -> str:
        """The whole report as text: summary, worst utterances, confusions, every alignment."""
        first = self.first
        lines = [self.summary(), "", "Worst utterances", ""]
        lines += [u.format(marks) for u in first.worst()] or ["none has an error"]
        lines += ["", "Most frequent errors (times, reference -> hypothesis)", ""]
        lines += [f"{times:6d}  {ref or '***'} -> {hyp or '***'}" for (ref, hyp), times in first.confusions()] or [
            "none"
        ]
        lines += ["", "Alignments", ""]
        lines += [u.format(marks) for u in first.utterances]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict:
        """Plain values for JSON; a rate that is no number is None. Counts, interval and pairs are of `unit`."""
        first = self.first
        return {
            "wer": _finite(self.wer),
            "cer": _finite(self.cer),
            "unit": self.unit,
            "interval95": first.interval,
            "substitutions": first.substitutions,
            "deletions": first.deletions,
            "insertions": first.insertions,
            "words": self.num_words,
            "characters": self.characters.num_words,
            "utterances": [
                {
                    "id": u.id,
                    "reference": u.reference,
                    "hypothesis": u.hypothesis,
                    "errors": shown.errors,
                    "pairs": shown.pairs,
                }
                for u, shown in zip(self.utterances, first.utterances, strict=True)
            ],
        }


def _finite(rate: float) -> float | None:
    return rate if math.isfinite(rate) else None


def units_of(text: str, unit: str = WORDS) -> list[str]:
    """The words of a text, or its characters."""
    if unit == CHARACTERS:
        return list("".join(unicodedata.normalize("NFC", text).split()))
    return text.split()


def align(id: str, reference: str, hypothesis: str, unit: str = WORDS) -> UtteranceErrors:
    """Minimum edit alignment of two texts, word by word or character by character."""
    return align_units(id, units_of(reference, unit), units_of(hypothesis, unit), unit)


def align_units(id: str, reference: Sequence[str], hypothesis: Sequence[str], unit: str) -> UtteranceErrors:
    """The same of units."""
    pairs = kaldialign.align(list(reference), list(hypothesis), GAP)
    return UtteranceErrors(id, tuple((None if r == GAP else r, None if h == GAP else h) for r, h in pairs), unit)


def score(results: Iterable[tuple[str, str, str]]) -> WordErrors:
    """Word errors of (id, reference text, hypothesis text) triples."""
    return WordErrors(tuple(align(*result) for result in results))


def write_report(directory: Path | str, word_errors: WordErrors, extra: dict | None = None) -> Path:
    """Write report.txt and report.json (with `extra` beside the word errors) into `directory`; the text file's path."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = directory / "report.txt"
    text.write_text(word_errors.report(), encoding="utf-8")
    content = {**(extra or {}), **word_errors.to_dict()}
    (directory / "report.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return text
