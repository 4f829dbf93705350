"""The page of prepared data, `report.html`: what there is, what was changed, what was left out, what sounds odd."""

import csv
import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterator
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from lhotse.serialization import deserialize_item

from sumix_stream.corpora.own_data import LEFT_OUT, PAGE, SUMMARY
from sumix_stream.corpora.stages import replace_text
from sumix_stream.data.manifests import UtteranceError, load_samples
from sumix_stream.report.bars import histogram
from sumix_stream.report.page import details, facts, page, section, table
from sumix_stream.report.players import data_uri

EXAMPLES = 5  # of each reason, in the page
MOST_CHARACTERS = 200  # in its table
ODD = {
    "fast": "More text than the sound seems to hold: a wrong transcript, or audio that was cut",
    "slow": "More sound than the text needs: words that nobody wrote down",
    "clipped": "Clipped: flat tops at full scale",
    "quiet": "Very quiet",
}
log = logging.getLogger(__name__)


def write_data_page(out_dir: Path) -> Path:
    """Write PAGE into a prepared folder, self-contained, with players for what sounds odd; its path."""
    out_dir = Path(out_dir)
    summary = json.loads((out_dir / SUMMARY).read_text(encoding="utf-8"))
    parts = {
        "What there is": _contents(summary),
        "Distributions": _distributions(summary),
        "Sounds odd, but was kept": _odd(summary),
        "Left out": _left_out(out_dir / LEFT_OUT),
        "What was done to the transcripts": _texts(summary),
        "Characters": _characters(summary),
        "Speakers and formats": _speakers(summary),
    }
    sections = [(title, content) for title, made in parts.items() if (content := list(made))]
    links = "".join(f'<a href="#part{number}">{escape(title)}</a>' for number, (title, _) in enumerate(sections))
    body = [f"<h1>{escape(out_dir.resolve().name)}</h1>", f"<nav>{links}</nav>"]
    body += [section(f"part{number}", title, content) for number, (title, content) in enumerate(sections)]
    replace_text(out_dir / PAGE, page(f"{out_dir.resolve().name}: data", body))
    return out_dir / PAGE


def _contents(summary: dict[str, Any]) -> Iterator[str]:
    used = {name: part for name, part in summary["parts"].items() if part.get("utterances")}
    yield facts((f"{name}, hours", f"{part['seconds'] / 3600:.2f}") for name, part in used.items())
    head = ("part", "utterances", "hours", "mean s", "speakers", "heard in train", "words", "texts also in train")
    rows = []
    for name, part in used.items():
        mean, also = part["seconds"] / part["utterances"], part.get("texts in train", 0)
        known = str(part["speakers"] or "not known")
        numbers = (f"{part['seconds'] / 3600:.2f}", f"{mean:.1f}", known)
        train = name == "train"
        shared = ("", "") if train else (str(part["speakers in train"]), str(also))
        rows.append((name, str(part["utterances"]), *numbers, shared[0], str(part["words"]), shared[1]))
    yield table(head, rows)
    yield "".join(f"<p>{escape(note)}</p>" for note in summary["notes"])
    rows = [(source["path"], source["kind"], str(source["utterances"])) for source in summary["sources"]]
    yield table(("source", "kind", "utterances"), rows, text_columns=2, wrap=True)


def _distributions(summary: dict[str, Any]) -> Iterator[str]:
    made = summary["histograms"]
    charts = (
        histogram("Durations", *made["seconds"], unit="seconds", about="utterances of all parts"),
        histogram("Speaking rate", *made["rate"], unit="characters a second", about=f"median {summary['rate']:.1f}"),
        histogram("Level", *made["level"], unit="dB below full scale", about="of the loud parts of each utterance"),
    )
    yield f'<div class="charts">{"".join(charts)}</div>'


def _odd(summary: dict[str, Any]) -> Iterator[str]:
    for kind, about in ODD.items():
        found = summary["odd"].get(kind) or []
        if not found:
            continue
        number = summary["odd counts"][kind]
        yield f"<h3>{escape(about)}</h3><p class='soft'>{_number(number)}; the oddest:</p>"
        for why, cut in found:
            yield _utterance(cut, why)


def _utterance(cut: dict[str, Any], why: str) -> str:
    text = cut["supervisions"][0]["text"]
    try:
        player = f'<audio controls preload="none" src="{data_uri(load_samples(deserialize_item(cut)))}"></audio>'
    except UtteranceError as error:
        log.info("the page lacks some audio: %s", error)
        player = ""
    head = f"<header><b>{escape(cut['id'])}</b><span>{cut['duration']:.1f} s</span><span>{escape(why)}</span>{player}"
    return f'<div class="utterance">{head}</header><div dir="auto">{escape(text)}</div></div>'


def _left_out(path: Path) -> Iterator[str]:
    counts: Counter[str] = Counter()
    examples: dict[str, list[tuple[str, ...]]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            counts[row["fault"]] += 1
            found = examples.setdefault(row["fault"], [])
            if len(found) < EXAMPLES:
                found.append((f"{row['file']}:{row['line']}".rstrip(":"), row["id"], row["detail"]))
    if not counts:
        yield "<p>Nothing.</p>"
        return
    yield f"<p>Each by file, line and reason in {escape(path.name)}.</p>"
    yield table(("reason", "utterances"), [(fault, str(number)) for fault, number in counts.most_common()])
    for fault, _ in counts.most_common():
        rows = table(("where", "id", "what"), examples[fault], text_columns=3, wrap=True)
        yield details(f"{fault}: the first {len(examples[fault])}", rows)


def _texts(summary: dict[str, Any]) -> Iterator[str]:
    texts = summary["texts"]
    if not texts["changed"]:
        yield f"<p>Nothing had to be changed in {texts['texts']} transcripts.</p>"
        return
    rows = [(kind, *map(_shown, texts["examples"][kind][0]), str(number)) for kind, number in texts["changed"].items()]
    yield table(("change", "for example", "became", "transcripts"), rows, text_columns=3, wrap=True)
    if texts["removed"]:
        rows = [(_shown(c), _name(c), str(number)) for c, number in texts["removed"]]
        yield details("Characters taken out", table(("character", "name", "times"), rows, text_columns=2))


def _characters(summary: dict[str, Any]) -> Iterator[str]:
    found = summary["characters"]
    yield f"<p>{len(found)} different ones. Rare ones are often slips; the tokenizer has to learn them all.</p>"
    shown = found[:MOST_CHARACTERS]
    common = " ".join(f"{_shown(c)}&#8239;<small>{n}</small>" for c, n in ((escape(c), n) for c, n in shown[:60]))
    yield f"<p>{common}</p>"
    rare = [(_shown(c), _name(c), str(n)) for c, n in islice(reversed(found), 40)]
    yield details("The rarest", table(("character", "name", "times"), rare, text_columns=2))


def _speakers(summary: dict[str, Any]) -> Iterator[str]:
    number, largest = summary["speakers"]
    if number:
        rows = [(name, f"{seconds / 60:.1f}") for name, seconds in largest]
        yield details(f"{number} speakers; those with most speech", table(("speaker", "minutes"), rows))
    rows = [(name, str(n), f"{seconds / 3600:.2f}") for name, (n, seconds) in sorted(summary["formats"].items())]
    yield table(("sample rate and channels", "utterances", "hours"), rows)


def _number(utterances: int) -> str:
    return f"{utterances} utterance{'s' * (utterances != 1)}"


def _shown(text: str) -> str:
    """What cannot be seen, by its name or number."""
    if text == " ":
        return "space"
    return "".join(c if c.isprintable() and (c == " " or not c.isspace()) else f"[U+{ord(c):04X}]" for c in text)


def _name(character: str) -> str:
    return unicodedata.name(character, f"U+{ord(character):04X}").lower()
