"""From checked utterances to `cuts_train`, `cuts_valid` and `cuts_test`, with a summary of what is in them."""

import heapq
import json
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sumix_stream.corpora.checking import Measures
from sumix_stream.corpora.faults import Fault
from sumix_stream.corpora.preparation import write_lines
from sumix_stream.corpora.splitting import PARTS, split

# Characters a second are judged beside the median of the corpus: scripts and readers differ, utterances of one corpus
# by less. Short texts say nothing.
TOO_FAST, MIN_CHARACTERS = 3.5, 10
TOO_SLOW, UNHEARD_SECONDS = 6.0, 8.0  # ... and so many seconds of sound more than the text needs
MIN_UTTERANCES = 20  # below, there is no median to speak of
ODD_FAST, ODD_SLOW, ODD_CLIPPED, ODD_LEVEL = 1.9, 3.0, 0.001, -45.0  # kept, but shown
SHOWN = 6  # of each kind of odd utterances
MOST_WORDS = 10_000  # different ones that are counted
EDGES = {
    "seconds": [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 60],
    "rate": [0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 25, 30, 40, 100],
    "level": [-90, -60, -50, -45, -40, -35, -30, -25, -20, -15, -10, -5, 0],
}


class _Columns(NamedTuple):
    """What is known of each of N checked utterances; NaN seconds: it cannot be used."""

    offset: array  # of its line
    seconds: array
    active: array
    characters: array
    speaker: array  # number, -1: not known
    given: array  # index into PARTS, -1: nothing


def write_parts(
    checked: Path, out_dir: Path, *, valid: float, test: float, seed: int
) -> tuple[dict[str, Any], list[Fault]]:
    """Write the manifests of `checked` (see `own_data.check`) to `out_dir`; the summary, and what was left out.

    The training manifest is in a random order. Memory grows by some tens of bytes for each utterance.

    Raises:
        ValueError: nothing can be used, or nothing is left to train on.
    """
    columns, faults, names = _read(checked)
    usable = np.flatnonzero(~np.isnan(np.array(columns.seconds)))
    if not len(usable):
        reasons = Counter(fault.fault for fault in faults)
        raise ValueError(f"no utterance can be used: {', '.join(f'{n} {fault}' for fault, n in reasons.most_common())}")
    rate, misaligned = _misaligned(columns, usable)
    kept = np.array([number for number in usable if number not in misaligned])
    seconds = np.array(columns.seconds)[kept]
    given = np.array(columns.given)[kept]
    division = split(seconds, np.array(columns.speaker)[kept], given, valid=valid, test=test, seed=seed)
    summary = _Summary(rate)
    with open(checked, "rb") as file:

        def line(number: int) -> dict:
            file.seek(columns.offset[number])
            return json.loads(file.readline())

        for number, detail in sorted(misaligned.items()):
            faults.append(_fault(line(number), "misaligned", detail))
        for part, name in enumerate(PARTS):
            members = kept[division.parts == part]
            path = out_dir / f"cuts_{name}.jsonl.gz"
            if not len(members):
                path.unlink(missing_ok=True)
                continue
            if name == "train":
                members = np.random.default_rng(seed).permutation(members)
            write_lines(_cuts(map(line, map(int, members)), name, summary), path)
    return summary.result(division.notes, names), faults


def _cuts(lines: Iterator[dict], part: str, summary: "_Summary") -> Iterator[str]:
    for line in lines:
        summary.add(part, line["cut"], Measures(*line["measures"]))
        yield json.dumps(line["cut"], ensure_ascii=False)


def _read(path: Path) -> tuple[_Columns, list[Fault], int]:
    columns = _Columns(array("q"), array("d"), array("d"), array("l"), array("l"), array("b"))
    speakers: dict[str, int] = {}
    faults = []
    offset = 0
    with open(path, "rb") as file:
        for text in file:
            line = json.loads(text)
            values = (float("nan"), 0.0, 0, -1, -1)
            if "cut" in line:
                measures, supervision = Measures(*line["measures"]), line["cut"]["supervisions"][0]
                name = supervision.get("speaker")
                speaker = speakers.setdefault(name, len(speakers)) if name else -1
                given = PARTS.index(line["split"]) if line["split"] else -1
                values = (measures.seconds, measures.active, num_characters(supervision["text"]), speaker, given)
            else:
                faults.append(_fault(line, *line["fault"]))
            for column, value in zip(columns, (offset, *values), strict=True):
                column.append(value)
            offset += len(text)
    return columns, faults, len(speakers)


def _fault(line: dict, fault: str, detail: str) -> Fault:
    return Fault(line["split"], line["id"], fault, detail, False, line["file"], line["line"])


def num_characters(text: str) -> int:
    """Without white space."""
    return sum(map(len, text.split()))


def _misaligned(columns: _Columns, usable: np.ndarray) -> tuple[float, dict[int, str]]:
    """The median of characters a second, and which utterances cannot be what their transcript says, with the reason."""
    seconds, active = (np.array(column)[usable] for column in (columns.seconds, columns.active))
    characters = np.array(columns.characters)[usable]
    rate = float(np.median(characters / seconds))
    if len(usable) < MIN_UTTERANCES:
        return rate, {}
    fast = (characters > TOO_FAST * rate * seconds) & (characters >= MIN_CHARACTERS)
    slow = (characters * TOO_SLOW < rate * seconds) & (active - characters / rate > UNHEARD_SECONDS)
    return rate, {
        int(usable[n]): f"{characters[n] / seconds[n]:.1f} characters a second, the corpus's median is {rate:.1f}"
        for n in np.flatnonzero(fast | slow)
    }


class _Summary:
    """Counts of everything that a page and a recipe want to know, made while the manifests are written."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.parts = {name: Counter() for name in PARTS}
        self.speakers: dict[str, Counter[str]] = {name: Counter() for name in PARTS}
        self.characters: Counter[str] = Counter()
        self.words: Counter[str] = Counter()
        self.formats: dict[str, list[float]] = {}
        self.histograms = {name: np.zeros(len(edges) - 1, int) for name, edges in EDGES.items()}
        self.texts: set[int] = set()
        self.longest = 0.0
        self.odd: dict[str, list] = {"fast": [], "slow": [], "clipped": [], "quiet": []}
        self.num_odd: Counter[str] = Counter()
        self._tie = 0

    def add(self, part: str, cut: dict, measures: Measures) -> None:
        supervision = cut["supervisions"][0]
        text, speaker = supervision["text"], supervision.get("speaker")
        count, seconds = self.parts[part], measures.seconds
        length = num_characters(text)
        count.update(utterances=1, seconds=seconds, characters=length, words=len(text.split()))
        count["digits"] += any(map(str.isdigit, text))
        if part == "train":
            self.texts.add(hash(text))
        else:
            count["texts in train"] += hash(text) in self.texts
        if speaker:
            self.speakers[part][speaker] += seconds
        self.characters.update(text)
        if len(self.words) <= MOST_WORDS:
            self.words.update(text.split())
        number = self.formats.setdefault(f"{measures.sample_rate} Hz, {measures.num_channels} ch", [0, 0.0])
        number[0] += 1
        number[1] += seconds
        self.longest = max(self.longest, seconds)
        for name, value in (("seconds", seconds), ("rate", length / seconds), ("level", measures.level)):
            edges = EDGES[name]
            place = int(np.searchsorted(edges, value, side="right")) - 1
            self.histograms[name][min(max(place, 0), len(edges) - 2)] += 1
        self._note_odd(cut, length, measures)

    def _note_odd(self, cut: dict, length: int, measures: Measures) -> None:
        rate = length / measures.seconds
        said = f"{rate:.1f} characters a second"
        if rate > ODD_FAST * self.rate and length >= MIN_CHARACTERS:
            self._keep("fast", rate, said, cut)
        surplus = measures.active - length / self.rate
        if rate * ODD_SLOW < self.rate and surplus > 2:
            self._keep("slow", surplus, f"{said}, {surplus:.1f} s of sound more than the text needs", cut)
        if measures.clipped > ODD_CLIPPED:
            self._keep("clipped", measures.clipped, f"{100 * measures.clipped:.2f} % of it at full scale", cut)
        if measures.level < ODD_LEVEL:
            self._keep("quiet", -measures.level, f"speech at {measures.level:.0f} dB below full scale", cut)

    def _keep(self, kind: str, how: float, why: str, cut: dict) -> None:
        self.num_odd[kind] += 1
        self._tie += 1
        entry = (how, self._tie, why, cut)
        (heapq.heappush if len(self.odd[kind]) < SHOWN else heapq.heappushpop)(self.odd[kind], entry)

    def result(self, notes: list[str], num_speakers: int) -> dict[str, Any]:
        """Plain values."""
        train = self.speakers["train"]
        heard = {name: len(set(self.speakers[name]) & set(train)) for name in PARTS[1:]}
        return {
            "parts": {
                name: dict(count) | {"speakers": len(self.speakers[name]), "speakers in train": heard.get(name, 0)}
                for name, count in self.parts.items()
            },
            "notes": notes,
            "rate": self.rate,
            "longest": self.longest,
            "speakers": [num_speakers, sum(self.speakers.values(), Counter()).most_common(20)],
            "characters": self.characters.most_common(),
            "words": len(self.words),
            "word uses": self.words.total(),
            "formats": self.formats,
            "histograms": {name: [EDGES[name], counts.tolist()] for name, counts in self.histograms.items()},
            "odd": {
                kind: [[why, cut] for _, _, why, cut in sorted(found, reverse=True)] for kind, found in self.odd.items()
            },
            "odd counts": dict(self.num_odd),
        }
