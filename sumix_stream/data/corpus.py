"""What every corpus preparation shares: stages done once, audio files, manifests, tokenizer, feature statistics.

A prepared folder holds `cuts_{train,valid,test}.jsonl.gz` (Lhotse cuts), `tokenizer.model` and `stats.npz`.
"""

import gzip
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment
from tqdm.auto import tqdm

from sumix_stream.audio import read_audio
from sumix_stream.features import NUM_BINS, fbank
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import train_tokenizer

SAMPLE_RATE = Timebase().sample_rate
log = logging.getLogger(__name__)


class Stages:
    """Named steps of a preparation, each done once: a marker file keeps the settings a step was completed with.

    A step runs when its marker is missing or holds other settings, and whenever a step before it ran. What it
    leaves half done is not marked, so an interrupted preparation goes on where it stopped.
    """

    def __init__(self, out_dir: Path):
        self.out_dir = out_dir
        self._stale = False
        out_dir.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, settings: Mapping[str, object], action: Callable[[], object]) -> bool:
        """Do `action` unless it was completed with these settings before; True when it was done now."""
        marker = self.out_dir / f".{name}.completed"
        wanted = json.dumps(settings, sort_keys=True, default=str)
        if not self._stale and marker.exists() and marker.read_text() == wanted:
            print(f"{name}: already done")
            return False
        self._stale = True
        marker.unlink(missing_ok=True)
        action()
        marker.write_text(wanted)
        return True


def empty_folder(path: Path) -> Path:
    """`path` as a new empty folder."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def write_flac(path: Path, samples: np.ndarray) -> int:
    """Write 16 kHz mono samples (S,) in [-1, 1] as 16-bit FLAC; louder ones are scaled to fit. Returns S."""
    peak = np.abs(samples).max(initial=0.0)
    if peak > 0.99:
        samples = samples * np.float32(0.99 / peak)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16", compression_level=0.2)
    return len(samples)


def make_cut(id: str, path: Path, num_samples: int, text: str, speaker: str) -> MonoCut:
    """A cut that is the whole of one 16 kHz mono file, with one transcript."""
    duration = num_samples / SAMPLE_RATE
    source = AudioSource(type="file", channels=[0], source=str(path))
    recording = Recording(
        id=id, sources=[source], sampling_rate=SAMPLE_RATE, num_samples=num_samples, duration=duration
    )
    supervision = SupervisionSegment(
        id=id, recording_id=id, start=0.0, duration=duration, text=text, language="English", speaker=speaker
    )
    return MonoCut(id=id, start=0.0, duration=duration, channel=0, recording=recording, supervisions=[supervision])


def write_cuts(cuts: Iterable[MonoCut], path: Path) -> float:
    """Write a manifest (`.jsonl.gz`); returns its hours of audio."""
    cuts = list(cuts)
    if not cuts:
        raise ValueError(f"no utterances for {path.name}: nothing was found to put into it")
    CutSet.from_cuts(cuts).to_file(path)
    hours = sum(cut.duration for cut in cuts) / 3600
    print(f"{path}: {len(cuts)} utterances, {hours:.2f} hours")
    return hours


def cut_texts(path: Path) -> Iterator[str]:
    """The transcripts of a manifest, read without building the cuts."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            for supervision in json.loads(line)["supervisions"]:
                yield supervision["text"]


def shuffled(cuts: Iterable[MonoCut], seed: int) -> list[MonoCut]:
    """The cuts in a random order that depends on `seed` alone."""
    cuts = list(cuts)
    return [cuts[i] for i in np.random.default_rng(seed).permutation(len(cuts))]


def write_tokenizer(out_dir: Path, vocab_size: int, model_type: str) -> None:
    """Train `tokenizer.model` on the transcripts of `cuts_train.jsonl.gz`."""
    train_tokenizer(cut_texts(out_dir / "cuts_train.jsonl.gz"), out_dir / "tokenizer.model", vocab_size, model_type)


def write_stats(out_dir: Path, max_seconds: float = 3600.0) -> None:
    """Write `stats.npz`: mean and std (80,) of the log-mel frames of the first `max_seconds` of the training cuts."""
    total, squares, num_frames, seconds = np.zeros(NUM_BINS), np.zeros(NUM_BINS), 0, 0.0
    cuts = CutSet.from_jsonl_lazy(out_dir / "cuts_train.jsonl.gz")
    with tqdm(desc="feature statistics", unit="s", unit_scale=True, total=max_seconds, disable=None) as progress:
        for cut in cuts:
            feats = fbank(read_audio(cut.recording.sources[0].source)[0]).double().numpy()
            total += feats.sum(0)
            squares += np.square(feats).sum(0)
            num_frames += len(feats)
            progress.update(min(cut.duration, max_seconds - seconds))
            seconds += cut.duration
            if seconds >= max_seconds:
                break
    mean = total / num_frames
    std = np.sqrt(np.maximum(squares / num_frames - mean**2, 1e-8))
    np.savez(out_dir / "stats.npz", mean=mean.astype(np.float32), std=std.astype(np.float32))


def read_stats(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std, each (80,) float32, as `write_stats` wrote them."""
    try:
        with np.load(path, allow_pickle=False) as stats:
            mean, std = stats["mean"], stats["std"]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: no feature statistics there ({error}); run the recipe's prepare again") from error
    if mean.shape != (NUM_BINS,) or std.shape != (NUM_BINS,) or not np.isfinite(mean).all() or not (std > 0).all():
        raise ValueError(f"{path}: mean and std must be finite, of shape ({NUM_BINS},), std > 0; run prepare again")
    return mean, std


def read_librispeech_part(part_dir: Path) -> list[MonoCut]:
    """Cuts of one LibriSpeech part: `<speaker>/<chapter>/<id>.flac` beside `<speaker>-<chapter>.trans.txt`.

    Sorted by id. An utterance whose file is missing, unreadable or not 16 kHz is named in the log and left out.
    """
    transcripts = sorted(part_dir.glob("*/*/*.trans.txt"))
    if not transcripts:
        raise ValueError(f"{part_dir}: no <speaker>/<chapter>/*.trans.txt there; is this a LibriSpeech part?")
    cuts = []
    for transcript in tqdm(transcripts, desc=part_dir.name, unit="chapter", disable=None):
        for line in filter(None, map(str.strip, transcript.read_text(encoding="utf-8").splitlines())):
            id, _, text = line.partition(" ")
            path = transcript.parent / f"{id}.flac"
            try:
                info = soundfile.info(path)
            except (OSError, soundfile.SoundFileError) as error:
                log.warning("%s left out: %s cannot be read (%s)", id, path, error)
                continue
            if info.samplerate != SAMPLE_RATE or info.frames == 0:
                log.warning(
                    "%s left out: %s has %d samples at %d Hz, not %d Hz",
                    id,
                    path,
                    info.frames,
                    info.samplerate,
                    SAMPLE_RATE,
                )
                continue
            cuts.append(make_cut(id, path.resolve(), info.frames, text.strip(), id.split("-")[0]))
    return sorted(cuts, key=lambda cut: cut.id)
