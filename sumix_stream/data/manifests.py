"""Manifests of utterances: lazily read, checked, filtered, loaded.

Manifests are written by others. A recording may be the output of a shell command, or lie behind a URL; neither is run
or fetched unless `allow_commands` was called, and all that reads cuts or their audio asks here.
"""

import logging
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet, Recording
from lhotse.cut import Cut
from lhotse.lazy import LazyManifestIterator
from lhotse.shar import LazySharIterator

from sumix_stream.config import DataConfig
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import Tokenizer, clean_text, name_characters

SAMPLE_RATE = Timebase().sample_rate
ALLOW_COMMANDS = "SUMIX_ALLOW_COMMANDS"  # in the environment, so that worker processes know it too
OVERLAP = 0.2  # seconds by which supervisions may overlap or leave their cut: times are rounded, speakers interrupt
_SAFE_SOURCES = ("file", "memory", "shar")
_LEADS_ELSEWHERE = re.compile(r"pipe:|[a-z][a-z0-9+.-]+://", re.IGNORECASE)
log = logging.getLogger(__name__)


class ManifestError(ValueError):
    """A cut manifest that is missing, unreadable or empty; the message names the file and the remedy."""


class UtteranceError(ValueError):
    """An utterance whose audio cannot be used; the message names its id and its file."""


@dataclass(frozen=True)
class Utterance:
    """Samples (S,) float32 at 16 kHz with their transcript; `duration` in seconds."""

    id: str
    samples: np.ndarray
    text: str
    duration: float


def allow_commands() -> None:
    """Let this process and its children run the commands and fetch the URLs that manifests name as audio."""
    os.environ[ALLOW_COMMANDS] = "1"


def check_sources(cut: Cut | Recording) -> None:
    """Raises ManifestError for audio that is a command's output or behind a URL, unless that is allowed."""
    if os.environ.get(ALLOW_COMMANDS) == "1":
        return
    for recording in _recordings(cut):
        for source in recording.sources:
            leads_elsewhere = isinstance(source.source, str) and _LEADS_ELSEWHERE.match(source.source)
            if source.type not in _SAFE_SOURCES or leads_elsewhere:
                _refuse(cut.id, source.type, source.source)
        _check_plain(cut.id, recording.transforms)
    _check_plain(cut.id, getattr(cut, "transforms", None))


def _check_plain(id: str, part: Any) -> None:
    """The same of transforms, whose impulse responses are recordings too."""
    if hasattr(part, "to_dict"):
        part = part.to_dict()
    if isinstance(part, dict):
        if "source" in part and isinstance(part.get("type"), str) and part["type"] not in _SAFE_SOURCES:
            _refuse(id, part["type"], part["source"])
        part = list(part.values())
    if isinstance(part, list | tuple):
        for item in part:
            _check_plain(id, item)


def _refuse(id: str, kind: str, source: Any) -> None:
    what = "the output of a command" if kind == "command" else "fetched from elsewhere"
    raise ManifestError(
        f"{id}: its audio is {what} ({str(source)[:100]!r}): where you trust who made this manifest, allow it by "
        f"--allow-commands (or {ALLOW_COMMANDS}=1 in the environment)"
    )


def _tracks(cut: Cut) -> list[Cut]:
    return [track.cut for track in cut.tracks] if hasattr(cut, "tracks") else [cut]


def _recordings(cut: Cut | Recording) -> list[Recording]:
    if isinstance(cut, Recording):
        return [cut]
    return [track.recording for track in _tracks(cut) if getattr(track, "recording", None) is not None]


def settle(cut: Any, folder: Path | None = None) -> Any:
    """A cut (or recording) just read, made ready: numbers as ids, speakers and transcripts become text.

    Args:
        folder: of its manifest: where audio with a relative path is looked for first, then the current directory.
    Raises:
        ManifestError: its audio would have to be run or fetched (`check_sources`).
        ValueError: an id or a transcript that is neither text nor a number.
    """
    if not isinstance(cut, Cut | Recording):
        return cut
    cut.id = _as_text(cut.id, "an id")
    for track in _tracks(cut) if isinstance(cut, Cut) else []:
        track.id = _as_text(track.id, "an id")
        for supervision in getattr(track, "supervisions", None) or ():
            supervision.id = _as_text(supervision.id, "a supervision's id")
            for name in ("text", "speaker"):
                value = getattr(supervision, name)
                if value is not None and type(value) is not str:
                    setattr(supervision, name, _as_text(value, f"a supervision's {name}"))
    check_sources(cut)
    if folder is not None:
        for source in chain.from_iterable(recording.sources for recording in _recordings(cut)):
            if source.type == "file" and not os.path.isabs(source.source):
                beside = folder / source.source
                source.source = str(beside if beside.exists() else source.source)
    return cut


def _as_text(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{what} must be text or a number, got {value!r:.60}")


class _Manifests:
    """The cuts of manifest files, one file after the other, read as they are asked for."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __iter__(self) -> Iterator[Cut]:
        return chain.from_iterable(map(self._read, self.paths))

    @staticmethod
    def _read(path: Path) -> Iterator[Cut]:
        number = 0
        try:
            folder = path.absolute().parent
            for cut in LazySharIterator(in_dir=path) if path.is_dir() else LazyManifestIterator(path):
                yield settle(cut, folder)
                number += 1
        except ManifestError as error:
            raise ManifestError(f"{path}, cut {number + 1}: {error}") from None
        except (OSError, EOFError, AssertionError, KeyError, TypeError, ValueError, tarfile.TarError) as error:
            raise ManifestError(
                f"{path}: damaged after {number} cuts ({type(error).__name__}: {error}); {remedy(path)}"
            ) from error
        if number == 0:
            raise ManifestError(f"{path}: no cuts in it; {remedy(path)}")


def remedy(path: Path) -> str:
    """What to do about a damaged manifest."""
    recipe = path.parent.parent
    prepare = recipe / "prepare"
    return f"make it again with {prepare}" if prepare.exists() else "make it again with the recipe's prepare"


def load_cuts(paths: str | Path | Sequence[str | Path]) -> CutSet:
    """A lazy CutSet of one or several manifests (`.jsonl`, `.jsonl.gz` or a folder in Lhotse's Shar format), in order.

    Raises:
        ManifestError: a file is missing or holds no cuts; a damaged one raises where its damage is met.
    """
    paths = manifest_paths(paths)
    for path in paths:
        next(_Manifests._read(path))
    return CutSet(_Manifests(paths))


def manifest_paths(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """One or several manifests as a list; raises ManifestError for one that is missing or of no known kind."""
    paths = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not paths:
        raise ManifestError("no cut manifests given; set data.train_cuts and data.valid_cuts")
    for path in paths:
        if path.is_dir():
            if not any(path.glob("cuts.*")):
                raise ManifestError(
                    f"{path}: a folder of cuts holds cuts.000000.jsonl.gz (Lhotse Shar); {remedy(path)}"
                )
        elif not path.name.endswith((".jsonl", ".jsonl.gz")):
            raise ManifestError(f"{path}: a cut manifest is a .jsonl or .jsonl.gz file, or a folder in Shar format")
        elif not path.is_file():
            raise ManifestError(f"{path}: no such cut manifest; {remedy(path)}")
    return paths


def manifests_of(cuts: CutSet) -> list[Path] | None:
    """The manifests that `load_cuts` made this CutSet of; None: it comes from elsewhere, or was changed since."""
    return list(cuts.data.paths) if isinstance(cuts.data, _Manifests) else None


def cut_text(cut: Cut) -> str:
    """The transcript of a cut: its supervisions in order of time, cleaned (`clean_text`)."""
    supervisions = sorted(cut.supervisions, key=lambda supervision: supervision.start)
    return clean_text(" ".join(str(supervision.text or "") for supervision in supervisions))


def supervision_fault(cut: Cut) -> str | None:
    """Why what is said in a cut cannot be told from its supervisions; None = it can."""
    spoken = sorted((s for s in cut.supervisions if s.text), key=lambda supervision: supervision.start)
    for supervision in spoken:
        if supervision.start < -OVERLAP:
            return f"its supervision {supervision.id} begins {-supervision.start:.2f} s before the cut"
        if supervision.end > cut.duration + OVERLAP:
            return f"its supervision {supervision.id} ends {supervision.end - cut.duration:.2f} s after the cut"
    for first, second in pairwise(spoken):
        if first.end > second.start + OVERLAP:
            return (
                f"its supervisions {first.id} and {second.id} overlap by {first.end - second.start:.2f} s: the order "
                "of their words is not known"
            )
    return None


class CutFilter:
    """Which cuts can be trained on. Each one left out is named in the log, with the reason, once."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, timebase: Timebase):
        self.config, self.tokenizer, self.timebase = config, tokenizer, timebase
        self._logged: set[str] = set()

    def reason(self, cut: Cut) -> str | None:
        """Why a cut is left out; None = it is kept.

        A transducer path that emits at most one token a frame, and the CTC head, need U <= T: encoder frames after
        subsampling.
        """
        config = self.config
        if not config.min_utterance <= cut.duration <= config.max_utterance:
            several = len(cut.supervisions) > 1 and cut.duration > config.max_utterance
            trim = (
                f"; it has {len(cut.supervisions)} supervisions: make a cut of each with `lhotse cut "
                "trim-to-supervisions --discard-overlapping OLD.jsonl.gz NEW.jsonl.gz`"
            )
            return (
                f"{cut.duration:.2f} s is outside {config.min_utterance} to {config.max_utterance} s "
                f"(data.min_utterance, data.max_utterance){trim if several else ''}"
            )
        text = cut_text(cut)
        if not text:
            return "its transcript is empty"
        if fault := supervision_fault(cut):
            return fault
        tokens = self.tokenizer.encode(text)
        if self.tokenizer.unk_id in tokens:
            unknown = name_characters(self.tokenizer.unknown_characters(text))
            return f"its transcript has what the tokenizer does not know: {unknown}"
        num_samples = self.timebase.num_samples(cut.duration)
        num_frames = self.timebase.num_encoder_frames(self.timebase.num_feature_frames(num_samples))
        if len(tokens) > num_frames:
            return f"no path: {len(tokens)} tokens do not fit into {num_frames} encoder frames ({cut.duration:.2f} s)"
        return None

    def __call__(self, cut: Cut) -> bool:
        reason = self.reason(cut)
        if reason is not None and cut.id not in self._logged:
            self._logged.add(cut.id)
            log.warning("%s left out: %s", cut.id, reason)
        return reason is None


def filter_cuts(cuts: CutSet, config: DataConfig, tokenizer: Tokenizer, timebase: Timebase) -> CutSet:
    """The cuts that can be trained on, lazily: see `CutFilter`."""
    return cuts.filter(CutFilter(config, tokenizer, timebase))


def load_samples(cut: Cut) -> np.ndarray:
    """Samples (S,) float32 at 16 kHz of a cut; channels are averaged.

    Raises:
        UtteranceError: the audio is missing, corrupt, empty, or holds NaN or infinite samples.
        ManifestError: it would have to be run or fetched (`check_sources`).
    """
    check_sources(cut)
    try:
        audio = (cut if cut.sampling_rate == SAMPLE_RATE else cut.resample(SAMPLE_RATE)).load_audio()
    except Exception as error:  # whatever the decoders raise: one bad file must not end a training run
        raise UtteranceError(f"{cut.id}: {_files(cut)} cannot be read ({_cause(cut, error)})") from error
    samples = audio[0] if audio.shape[0] == 1 else audio.mean(0)
    if samples.size == 0:
        raise UtteranceError(f"{cut.id}: {_files(cut)} is empty")
    if not np.isfinite(samples).all():
        raise UtteranceError(f"{cut.id}: {_files(cut)} holds NaN or infinite samples")
    return samples.astype(np.float32, copy=False)


def _cause(cut: Cut, error: Exception) -> str:
    """In a line: a file that is not there, else what the first of Lhotse's decoders said."""
    for source in chain.from_iterable(recording.sources for recording in _recordings(cut)):
        if source.type == "file" and not os.path.exists(source.source):
            beside = "" if os.path.isabs(source.source) else ", nor in the folder of its manifest"
            return f"no such file: sought as {os.path.abspath(source.source)}{beside}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = next((line.split("'>: ")[-1] for line in lines if line.startswith("Exception #0")), lines[0])
    return said[:300]


def _files(cut: Cut) -> str:
    sources = chain.from_iterable(recording.sources for recording in _recordings(cut))
    return ", ".join(dict.fromkeys(str(source.source) for source in sources if source.type != "memory")) or "its audio"


def read_valid(cuts: Iterable[Cut]) -> Iterator[Utterance]:
    """Utterances one after the other, each loaded when it is asked for; an unusable one is logged and left out, and one
    whose supervisions do not tell what was said is logged."""
    for cut in cuts:
        if fault := supervision_fault(cut):
            log.warning("%s is scored although %s", cut.id, fault)
        try:
            samples = load_samples(cut)
        except UtteranceError as error:
            log.warning("left out: %s", error)
            continue
        yield Utterance(cut.id, samples, cut_text(cut), len(samples) / SAMPLE_RATE)
