"""Word error rate: minimum edit alignments, a confidence interval, and a report people and programs can read.

Nothing is normalised: words are what `str.split` gives, compared exactly, case and punctuation included. Normalise
references and hypotheses before scoring if the comparison asks for it.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import kaldialign

from sumix_stream.search.words import GAP

Pair = tuple[str | None, str | None]


@dataclass(frozen=True)
class UtteranceErrors:
    """One utterance: its minimum edit alignment as (reference, hypothesis) pairs, None on the empty side."""

    id: str
    pairs: tuple[Pair, ...]

    @property
    def reference(self) -> str:
        return " ".join(word for word, _ in self.pairs if word is not None)

    @property
    def hypothesis(self) -> str:
        return " ".join(word for _, word in self.pairs if word is not None)

    @cached_property
    def num_words(self) -> int:
        return sum(word is not None for word, _ in self.pairs)

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

    def format(self) -> str:
        """Three lines: counts, then reference over hypothesis in columns, errors in capitals and gaps as stars."""
        columns = []
        for ref, hyp in self.pairs:
            wrong = ref != hyp
            width = max(len(ref or ""), len(hyp or ""))
            sides = ("*" * width if word is None else word.upper() if wrong else word for word in (ref, hyp))
            columns.append([side.ljust(width) for side in sides])
        ref_line, hyp_line = ("  ".join(column[side] for column in columns).rstrip() for side in (0, 1))
        counts = f"S {self.substitutions}  D {self.deletions}  I {self.insertions}"
        head = f"{self.id}: {self.errors} errors in {self.num_words} words ({counts})"
        return f"{head}\n  ref  {ref_line}\n  hyp  {hyp_line}"


@dataclass(frozen=True)
class WordErrors:
    """Word errors of a test set."""

    utterances: tuple[UtteranceErrors, ...]

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
        """Errors a reference word, as a fraction. Without any reference word: 0 if nothing was inserted, else inf."""
        if self.num_words == 0:
            return math.inf if self.errors else 0.0
        return self.errors / self.num_words

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the WER by bootstrap over utterances (Bisani and Ney, ICASSP 2004); None below 2 utterances
        with words. Utterances without reference words are left out of it."""
        spoken = [u for u in self.utterances if u.num_words]
        if len(spoken) < 2:
            return None
        result = kaldialign.bootstrap_wer_ci(
            [u.reference.split() for u in spoken], [u.hypothesis.split() for u in spoken], replications=1000
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
        """One line: WER with its interval, and the counts it is made of."""
        low_high = "" if self.interval is None else f" [{self.interval[0]:.2%}, {self.interval[1]:.2%}]"
        return (
            f"WER {self.wer:.2%}{low_high}  S {self.substitutions}  D {self.deletions}  I {self.insertions}  "
            f"of {self.num_words} words in {len(self.utterances)} utterances"
        )

    def report(self) -> str:
        """The whole report as text: summary, worst utterances, confusions, every alignment."""
        lines = [self.summary(), "", "Worst utterances", ""]
        lines += [u.format() for u in self.worst()] or ["none has an error"]
        lines += ["", "Most frequent errors (times, reference -> hypothesis)", ""]
        lines += [f"{times:6d}  {ref or '***'} -> {hyp or '***'}" for (ref, hyp), times in self.confusions()] or [
            "none"
        ]
        lines += ["", "Alignments", ""]
        lines += [u.format() for u in self.utterances]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict:
        """Plain values for JSON; a WER that is no number is None."""
        return {
            "wer": self.wer if math.isfinite(self.wer) else None,
            "interval95": self.interval,
            "substitutions": self.substitutions,
            "deletions": self.deletions,
            "insertions": self.insertions,
            "words": self.num_words,
            "utterances": [
                {"id": u.id, "reference": u.reference, "hypothesis": u.hypothesis, "errors": u.errors, "pairs": u.pairs}
                for u in self.utterances
            ],
        }


def align(id: str, reference: str, hypothesis: str) -> UtteranceErrors:
    """Minimum edit alignment of two texts, word by word."""
    pairs = kaldialign.align(reference.split(), hypothesis.split(), GAP)
    return UtteranceErrors(id, tuple((None if r == GAP else r, None if h == GAP else h) for r, h in pairs))


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
