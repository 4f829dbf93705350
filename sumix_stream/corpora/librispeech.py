"""LibriSpeech (Panayotov and others, ICASSP 2015, CC BY 4.0) and Mini LibriSpeech (OpenSLR 12 and 31)."""

import logging
from collections import Counter
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from lhotse import MonoCut
from lhotse.utils import resumable_download

from sumix_stream.checksums import require_sum
from sumix_stream.corpora.checking import Checks, check_items
from sumix_stream.corpora.faults import (
    Fault,
    FaultyUtterance,
    check_text,
    log_faults,
    print_summary,
    read_report,
    write_report,
)
from sumix_stream.corpora.preparation import finish, join_manifests, write_cuts, write_tokenizer
from sumix_stream.corpora.readers import transcripts
from sumix_stream.corpora.readers.base import Item, ReadOptions, Skipped
from sumix_stream.corpora.shar import write_shar
from sumix_stream.corpora.stages import Stages, parallel

log = logging.getLogger(__name__)

_UNLIMITED = 1e6  # seconds

# Utterances of each part as published.
NUM_UTTERANCES = {
    "train-clean-5": 1519,
    "dev-clean-2": 1089,
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}


BASE_URL = "https://www.openslr.org/resources"


class Archive(NamedTuple):
    """Where a part is fetched, and the sum of its .tar.gz."""

    resource: int  # of OpenSLR
    sum: str  # SHA-256, or MD5 by its length


# SHA-256 as torchaudio lists them. For Mini LibriSpeech OpenSLR gives MD5 (md5sum.txt beside the archives), which tells
# damage and not ill will; so that is left to https.
ARCHIVES = {
    "train-clean-5": Archive(31, "5df7d4e78065366204ca6845bb08f490"),
    "dev-clean-2": Archive(31, "6d7ab67ac6a1d2c993d050e16d61080d"),
    "dev-clean": Archive(12, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": Archive(12, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": Archive(12, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": Archive(12, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
    "train-clean-100": Archive(12, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
    "train-clean-360": Archive(12, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
    "train-other-500": Archive(12, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
}


class Selection(NamedTuple):
    """Parts of one training set. Of `valid` and `test`, those that are there are used."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    download: tuple[str, ...]


_DEV, _TEST = ("dev-clean", "dev-other"), ("test-clean", "test-other")
_CLEAN = ("train-clean-100", "train-clean-360")
SELECTIONS = {
    "mini": Selection(("train-clean-5",), ("dev-clean-2",), ("test-clean",), ("train-clean-5", "dev-clean-2")),
    "100h": Selection(_CLEAN[:1], _DEV, _TEST, (*_CLEAN[:1], *_DEV, *_TEST)),
    "960h": Selection((*_CLEAN, "train-other-500"), _DEV, _TEST, (*_CLEAN, "train-other-500", *_DEV, *_TEST)),
}


def read_librispeech_part(
    part_dir: Path, *, max_seconds: float | None = None, jobs: int | None = None
) -> tuple[list[MonoCut], list[Fault]]:
    """Cuts of one part, sorted by id: `<speaker>/<chapter>/<id>.flac` beside `<speaker>-<chapter>.trans.txt`.

    Every file is decoded. What cannot be used is named in the log and in the faults and left out: a file that is
    missing, damaged or silent or has no transcript, a transcript that is empty or not Latin, an id that was there
    before, and, with `max_seconds`, what is longer.
    """
    part, checks = part_dir.name, Checks("", max_seconds or _UNLIMITED, 0.0)
    items: list[Item] = []
    faults: list[Fault] = []
    for found in transcripts.read(part_dir, ReadOptions()):
        if isinstance(found, Skipped):
            faults.append(Fault(part, found.id, found.fault, found.detail, False, found.file, found.line))
            continue
        try:
            check_text(found.text)
        except FaultyUtterance as error:
            faults.append(Fault(part, found.id, error.fault, error.detail, False, found.file, found.line))
            continue
        items.append(found._replace(text=found.text.strip(), language="English"))
    cuts: dict[str, MonoCut] = {}
    chapters = [list(chapter) for _, chapter in groupby(items, key=lambda item: item.file)]
    checked = parallel(partial(check_items, checks=checks), chapters, jobs, part, "chapter")
    for chapter, outcomes in zip(chapters, checked, strict=True):
        for item, outcome in zip(chapter, outcomes, strict=True):
            origin = (item.file, item.line)
            if isinstance(outcome, FaultyUtterance):
                faults.append(Fault(part, item.id, outcome.fault, outcome.detail, False, *origin))
            elif item.id in cuts:
                faults.append(Fault(part, item.id, "id occurs twice", item.audio, False, *origin))
            else:
                cuts[item.id] = MonoCut.from_dict(outcome.cut)
    log_faults(faults)
    return [cuts[id] for id in sorted(cuts)], faults


def _find_corpus(corpus: Path, parts: str) -> Path:
    """The folder that holds the training parts: `corpus` or `corpus/LibriSpeech`."""
    needed = SELECTIONS[parts].train
    missing = needed
    for folder in (corpus / "LibriSpeech", corpus):
        found = [part for part in needed if (folder / part).is_dir()]
        if len(found) == len(needed):
            return folder
        if found:
            missing = tuple(part for part in needed if part not in found)
    raise ValueError(
        f"--corpus {corpus}: neither it nor its folder LibriSpeech holds {', '.join(missing)}; "
        f"name the folder that does, or leave --corpus out to download what --parts {parts} needs"
    )


def prepare_librispeech(
    out_dir: str | Path,
    *,
    parts: str = "mini",
    corpus: str | Path | None = None,
    download_dir: str | Path | None = None,
    vocab_size: int = 500,
    max_seconds: float = 30.0,
    num_valid: int = 600,
    seed: int = 0,
    jobs: int | None = None,
    shar: str | Path | None = None,
) -> None:
    """Prepare the recipe `egs/librispeech` under `out_dir`: manifests, BPE tokenizer, feature statistics.

    Each part gets `cuts_<part>.jsonl.gz`; `cuts_train` is all training parts shuffled, `cuts_valid` a sample of the dev
    parts (mini: all of dev-clean-2), `cuts_test` is test-clean. A part that is not there is replaced by the other kind:
    Mini LibriSpeech has no test part, and some copies have no dev part. `left_out.tsv` names what cannot be used.

    Args:
        parts: `mini` (5 hours), `100h` or `960h`.
        corpus: folder that holds `LibriSpeech/<part>/...`; None downloads it into `download_dir`.
        download_dir: None = `out_dir/corpus`.
        vocab_size: BPE tokens, blank included.
        max_seconds: longer training utterances are left out; dev and test parts are kept whole.
        num_valid: utterances of `cuts_valid` at most: it is decoded at every validation of a training run.
        jobs: threads.
        shar: folder for a copy of all manifests with their audio in Lhotse's Shar format.
    """
    if parts not in SELECTIONS:
        raise ValueError(f"--parts {parts}: must be one of {', '.join(SELECTIONS)}")
    if max_seconds <= 0 or num_valid < 1:
        raise ValueError(f"max_seconds must be above 0 and num_valid at least 1, got {max_seconds} and {num_valid}")
    selection, out_dir = SELECTIONS[parts], Path(out_dir).resolve()
    if corpus is None:
        root = _download(Path(download_dir or out_dir / "corpus"), selection.download)
    else:
        root = _find_corpus(Path(corpus).resolve(), parts)
    valid, test = ([part for part in wanted if (root / part).is_dir()] for wanted in (selection.valid, selection.test))
    if not valid and not test:
        raise ValueError(f"{root}: validation needs {' or '.join(selection.valid + selection.test)} there")
    valid, test = valid or test[:1], test or valid
    every = list(dict.fromkeys([*selection.train, *valid, *test]))
    stages = Stages(out_dir)

    def cuts_file(name: str) -> str:
        return f"cuts_{name}.jsonl.gz"

    def read_part(part: str) -> None:
        limit = max_seconds if part in selection.train else None
        cuts, faults = read_librispeech_part(root / part, max_seconds=limit, jobs=jobs)
        write_report(out_dir / f"left_out_{part}.tsv", faults)
        write_cuts(cuts, out_dir / cuts_file(part))
        _compare_with_published(part, len(cuts), faults)

    def join() -> None:
        files = {part: out_dir / cuts_file(part) for part in every}
        join_manifests([files[part] for part in selection.train], out_dir / cuts_file("train"), seed=seed)
        limit = None if parts == "mini" else num_valid
        join_manifests([files[part] for part in valid], out_dir / cuts_file("valid"), limit=limit)
        join_manifests([files[test[0]]], out_dir / cuts_file("test"))
        faults = [fault for part in every for fault in read_report(out_dir / f"left_out_{part}.tsv")]
        write_report(out_dir / "left_out.tsv", faults)

    for part in every:
        made = [cuts_file(part), f"left_out_{part}.tsv"]
        settings = {"corpus": root, "max_seconds": max_seconds if part in selection.train else None}
        stages.run(part, settings, partial(read_part, part), made, independent=True)
    settings = {"train": selection.train, "valid": valid, "test": test, "num_valid": num_valid, "seed": seed}
    stages.run("manifests", settings, join, [cuts_file("train"), cuts_file("valid"), cuts_file("test"), "left_out.tsv"])
    finish(stages, {"type": "bpe", "size": vocab_size}, lambda: write_tokenizer(out_dir, vocab_size, "bpe"))
    if shar is not None:
        for name in ("train", *dict.fromkeys(["valid", *valid, *test])):
            write_shar(out_dir / cuts_file(name), Path(shar) / name, jobs=jobs)
    print_summary(read_report(out_dir / "left_out.tsv"), out_dir / "left_out.tsv")


def _compare_with_published(part: str, num_kept: int, faults: list[Fault]) -> None:
    """Say it where a part is not whole: error rates on it cannot be compared with others'."""
    published = NUM_UTTERANCES.get(part)
    if published is not None and num_kept != published:
        reasons = Counter(fault.fault for fault in faults)
        why = ", ".join(f"{number} {fault}" for fault, number in sorted(reasons.items())) or "the corpus holds no more"
        log.warning("%s: %d of the %d published utterances (%s)", part, num_kept, published, why)


def _download(folder: Path, parts: tuple[str, ...]) -> Path:
    from lhotse.recipes import download_librispeech

    try:
        for part, (resource, expected) in ARCHIVES.items():
            archive, done = folder / f"{part}.tar.gz", folder / "LibriSpeech" / part / ".completed"
            if part in parts and not done.exists():
                folder.mkdir(parents=True, exist_ok=True)
                resumable_download(f"{BASE_URL}/{resource}/{archive.name}", archive)
                require_sum(archive, expected)  # before anything of it is unpacked
        return Path(download_librispeech(folder, dataset_parts=parts))
    except OSError as error:
        raise ValueError(
            f"{', '.join(parts)} could not be downloaded to {folder} ({error}); try again (it goes on where it "
            "stopped), or give a copy with --corpus"
        ) from error
