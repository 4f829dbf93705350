"""From what people have to a folder that trains: read, check, divide, tokens, statistics, recipe, page.

DIR gets `cuts_{train,valid,test}.jsonl.gz`, `tokenizer.model`, `stats.npz`, `train.yaml`, `left_out.tsv` and
`report.html`; FLAC files in `audio/` where audio had to be cut or converted; working files in `.prepare/`.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sumix_stream.corpora.checking import Checks, check_items
from sumix_stream.corpora.faults import Fault, FaultyUtterance, print_summary, read_report, write_report
from sumix_stream.corpora.listing import Given, Listing, item_of, pieces_of_work, write_items
from sumix_stream.corpora.parts import write_parts
from sumix_stream.corpora.preparation import finish
from sumix_stream.corpora.readers.base import ReadOptions
from sumix_stream.corpora.recipe_writer import Machine, write_recipe
from sumix_stream.corpora.splitting import PARTS
from sumix_stream.corpora.stages import Stages, in_processes, replace_text, sha256
from sumix_stream.corpora.text import TextNormaliser
from sumix_stream.corpora.tokens import choose_tokens, write_tokens

LEFT_OUT, SUMMARY, RECIPE, PAGE = "left_out.tsv", "summary.json", "train.yaml", "report.html"


@dataclass(frozen=True)
class Settings:
    """What people may choose; see `bin/prepare --help`."""

    valid: float = 0.05
    test: float = 0.05
    seed: int = 0
    use_splits: bool = True
    keep_overlaps: bool = False
    case: str = "keep"
    punctuation: str = "keep"
    min_seconds: float = 0.1
    max_seconds: float = 30.0
    channel: int | None = None
    tokenizer: str = "auto"
    vocab_size: int | None = None
    read: ReadOptions = field(default_factory=ReadOptions)


def prepare(
    sources: Sequence[Given],
    out_dir: Path,
    settings: Settings,
    *,
    learning_rate: Callable[[int, float], float],
    write_page: Callable[[Path], object],
    machine: Machine | None = None,
    jobs: int | None = None,
) -> dict[str, Any]:
    """Prepare `out_dir` from `sources`; the summary.

    What was done before with the same sources and settings is not done again.

    Args:
        learning_rate: peak for a width of the encoder and seconds of audio a step.
        write_page: writes PAGE into a folder that has SUMMARY and LEFT_OUT.
        machine: that the recipe is for; None: this one.
        jobs: processes; None: one for each core.

    Raises:
        ValueError: a source cannot be read or nothing in it can be used; names file and remedy.
    """
    out_dir = Path(out_dir).absolute()
    _refuse_own_sources(sources, out_dir)
    work, audio = out_dir / ".prepare", out_dir / "audio"
    work.mkdir(parents=True, exist_ok=True)
    audio.mkdir(exist_ok=True)
    normalise = TextNormaliser(settings.case, settings.punctuation)
    absolute = [given._replace(path=Path(given.path).absolute()) for given in sources]
    # Always read anew: that takes seconds, and what follows is as old as this list.
    kept = {"use_splits": settings.use_splits, "keep_overlaps": settings.keep_overlaps}
    listing = write_items(absolute, work / "items.jsonl", normalise, settings.read, **kept)
    for source in listing.sources:
        print(f"{source.path}: {source.kind}, {source.utterances} utterances")
    checks = Checks(str(audio), settings.max_seconds, settings.min_seconds, settings.channel)
    machine = machine or Machine.this()
    stages = Stages(out_dir)
    items = sha256(work / "items.jsonl")
    checked = work / "checked.jsonl"
    stages.run(
        "check",
        {"items": items, **checks._asdict()},
        lambda: check(work / "items.jsonl", checked, checks, listing.num_items, jobs),
        [".prepare/checked.jsonl"],
    )
    division = {"valid": settings.valid, "test": settings.test, "seed": settings.seed}

    def divide() -> None:
        summary, faults = write_parts(checked, out_dir, **division)
        summary |= {"sources": [source._asdict() for source in listing.sources], "texts": _text_report(normalise)}
        write_report(out_dir / LEFT_OUT, [*listing.faults, *faults])
        _write_json(out_dir / SUMMARY, summary)

    left_out = Counter((fault.file, fault.line, fault.fault) for fault in listing.faults)
    settings_of_division = {**division, "left out": sorted([*key, n] for key, n in left_out.items())}
    stages.run("division", settings_of_division, divide, partial(_divided, out_dir))
    summary = json.loads((out_dir / SUMMARY).read_text(encoding="utf-8"))
    tokens = choose_tokens(summary, settings.tokenizer, settings.vocab_size)
    train, model = out_dir / "cuts_train.jsonl.gz", out_dir / "tokenizer.model"
    stages.run("report", {}, lambda: write_page(out_dir), [PAGE])
    finish(stages, tokens._asdict(), lambda: write_tokens(train, model, tokens))
    described = f"{tokens.kind}: {tokens.why}"
    write = partial(write_recipe, summary=summary, tokens=described, machine=machine, learning_rate=learning_rate)
    _keep_changes(out_dir / RECIPE, partial(write, max_seconds=settings.max_seconds), work / "train.yaml")
    if not any(audio.iterdir()):
        audio.rmdir()
    _print_result(summary, out_dir)
    return summary


def _divided(out_dir: Path) -> list[str]:
    """What a division made: which parts there are is known afterwards."""
    try:
        parts = json.loads((out_dir / SUMMARY).read_text(encoding="utf-8"))["parts"]
    except (OSError, ValueError, KeyError):
        parts = {}
    return [LEFT_OUT, SUMMARY, *(f"cuts_{name}.jsonl.gz" for name, part in parts.items() if part.get("utterances"))]


def check(items: Path, path: Path, checks: Checks, total: int, jobs: int | None = None) -> None:
    """Check every item of a list (`listing.write_items`): a line of JSON for each, in their order.

    A line has `cut` and `measures`, or `fault` and `id`; and `split`, `file`, `line` of its origin. Interrupted, it
    goes on after the last piece of work that is complete.
    """
    aside, key = path.with_name(path.name + ".part"), path.with_name(path.name + ".key")
    wanted = json.dumps([sha256(items), *checks])
    if not key.is_file() or key.read_text(encoding="utf-8") != wanted:
        aside.unlink(missing_ok=True)
        replace_text(key, wanted)
    done = _count_lines(aside)
    work = partial(_check_lines, checks=checks)
    rest, skipped = _without(pieces_of_work(items), done)
    _truncate(aside, skipped)
    with open(aside, "a", encoding="utf-8") as file:
        with tqdm(desc="checking audio", unit="utt", total=total, initial=skipped, disable=None) as bar:
            for number, text in in_processes(work, rest, jobs):
                file.write(text)
                bar.update(number)
    aside.replace(path)
    key.unlink()


def _check_lines(lines: list[str], checks: Checks) -> tuple[int, str]:
    items = [item_of(line) for line in lines]
    found = []
    for item, outcome in zip(items, check_items(items, checks), strict=True):
        origin = {"split": item.split, "file": item.file, "line": item.line}
        if isinstance(outcome, FaultyUtterance):
            found.append({"fault": [outcome.fault, outcome.detail], "id": item.id, **origin})
        else:
            found.append({"cut": outcome.cut, "measures": outcome.measures, "id": item.id, **origin})
    return len(items), "".join(json.dumps(line) + "\n" for line in found)


def _without(pieces: Iterator[list[str]], done: int) -> tuple[Iterator[list[str]], int]:
    """The pieces after the first `done` lines, and how many lines the complete ones before have."""
    skipped = 0
    while done > skipped:
        piece = next(pieces, None)
        if piece is None:
            break
        if skipped + len(piece) > done:
            return _chain(piece, pieces), skipped
        skipped += len(piece)
    return pieces, skipped


def _chain(first: list[str], rest: Iterator[list[str]]) -> Iterator[list[str]]:
    yield first
    yield from rest


def _count_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(partial(file.read, 1 << 20), b""))


def _truncate(path: Path, lines: int) -> None:
    """Keep the first `lines`."""
    if not path.is_file():
        return
    with open(path, "r+b") as file:
        for _ in range(lines):
            file.readline()
        file.truncate(file.tell())


def _refuse_own_sources(sources: Sequence[Given], out_dir: Path) -> None:
    for path, _, _ in sources:
        if out_dir == Path(path).absolute() or out_dir in Path(path).absolute().parents:
            raise ValueError(f"--out {out_dir}: {path} lies in it; name another folder, so that nothing is overwritten")


def _keep_changes(path: Path, write: Callable[[Path], object], reference: Path) -> None:
    """Write the recipe, but not over one that was changed by hand: then the new one is `train.proposed.yaml`."""
    proposed = path.with_name("train.proposed.yaml")
    write(proposed)
    new, before, now = (p.read_text(encoding="utf-8") if p.is_file() else None for p in (proposed, reference, path))
    if now is not None and now not in (before, new):
        print(f"{path}: changed by hand, left as it is; what would be written is in {proposed.name}")
    elif now == before == new:
        proposed.unlink()
    else:
        proposed.replace(path)
        shutil.copyfile(path, reference)


def _text_report(normalise: TextNormaliser) -> dict[str, Any]:
    counts = normalise.counts
    kinds = {"changed": dict(counts.changed), "examples": counts.examples}
    return {"texts": counts.texts, **kinds, "removed": counts.removed.most_common(50)}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    replace_text(path, json.dumps(content, indent=1) + "\n")


def _print_result(summary: dict[str, Any], out_dir: Path) -> None:
    for name in PARTS:
        part = summary["parts"][name]
        if part.get("utterances"):
            speakers = f", {part['speakers']} speakers" if part["speakers"] else ""
            print(f"{name}: {part['utterances']} utterances, {part['seconds'] / 3600:.2f} hours{speakers}")
    for note in summary["notes"]:
        print(f"  {note}")
    for kind, number in summary["texts"]["changed"].items():
        before, after = summary["texts"]["examples"][kind][0]
        print(f"texts: {number} times {kind}: {before!r} -> {after!r}")
    digits = sum(part.get("digits", 0) for part in summary["parts"].values())
    if digits:
        print(f"texts: {digits} hold digits; spelt out as they are spoken, they are learnt better")
    faults: list[Fault] = read_report(out_dir / LEFT_OUT)
    print_summary(faults, out_dir / LEFT_OUT)
    for kind, number in summary["odd counts"].items():
        print(f"{number} kept, but {kind}: listen to some in {out_dir / PAGE}")


__all__ = ["Given", "Listing", "Settings", "check", "prepare"]
