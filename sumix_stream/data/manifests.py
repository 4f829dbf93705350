"""Manifests of utterances: lazily read, checked, filtered, loaded."""

import logging
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.lazy import LazyManifestIterator
from lhotse.shar import LazySharIterator

from sumix_stream.config import DataConfig
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import Tokenizer

SAMPLE_RATE = Timebase().sample_rate
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
            for cut in LazySharIterator(in_dir=path) if path.is_dir() else LazyManifestIterator(path):
                yield cut
                number += 1
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
    """The transcript of a cut: its supervisions in order of time."""
    supervisions = sorted(cut.supervisions, key=lambda supervision: supervision.start)
    return " ".join((supervision.text or "").strip() for supervision in supervisions).strip()


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
            return (
                f"{cut.duration:.2f} s is outside {config.min_utterance} to {config.max_utterance} s "
                "(data.min_utterance, data.max_utterance)"
            )
        text = cut_text(cut)
        if not text:
            return "its transcript is empty"
        tokens = self.tokenizer.encode(text)
        if self.tokenizer.unk_id in tokens:
            unknown = " ".join(sorted(self.tokenizer.unknown_characters(text)))
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
    """
    try:
        audio = (cut if cut.sampling_rate == SAMPLE_RATE else cut.resample(SAMPLE_RATE)).load_audio()
    except Exception as error:  # whatever the decoders raise: one bad file must not end a training run
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UtteranceError(f"{cut.id}: {_files(cut)} cannot be read ({cause})") from error
    samples = audio[0] if audio.shape[0] == 1 else audio.mean(0)
    if samples.size == 0:
        raise UtteranceError(f"{cut.id}: {_files(cut)} is empty")
    if not np.isfinite(samples).all():
        raise UtteranceError(f"{cut.id}: {_files(cut)} holds NaN or infinite samples")
    return samples.astype(np.float32, copy=False)


def _files(cut: Cut) -> str:
    tracks = [track.cut for track in cut.tracks] if hasattr(cut, "tracks") else [cut]
    sources = chain.from_iterable(track.recording.sources for track in tracks if getattr(track, "recording", None))
    return ", ".join(dict.fromkeys(str(source.source) for source in sources if source.type != "memory")) or "its audio"


def read_valid(cuts: Iterable[Cut]) -> Iterator[Utterance]:
    """Utterances one after the other, each loaded when it is asked for; an unusable one is logged and left out."""
    for cut in cuts:
        try:
            samples = load_samples(cut)
        except UtteranceError as error:
            log.warning("left out: %s", error)
            continue
        yield Utterance(cut.id, samples, cut_text(cut), len(samples) / SAMPLE_RATE)
