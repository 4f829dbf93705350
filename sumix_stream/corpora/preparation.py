"""What every corpus preparation shares: audio files, manifests, tokenizer, feature statistics.

A prepared folder holds `cuts_{train,valid,test}.jsonl.gz` (Lhotse cuts), `tokenizer.model` and `stats.npz`.
"""

import gzip
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment
from tqdm.auto import tqdm

from sumix_stream.audio import read_audio
from sumix_stream.features import NUM_BINS, whole_fbank
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import train_tokenizer

SAMPLE_RATE = Timebase().sample_rate


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


def make_cut(id: str, path: Path, num_samples: int, text: str, speaker: str, language: str = "English") -> MonoCut:
    """A cut that is the whole of one 16 kHz mono file, with one transcript."""
    duration = num_samples / SAMPLE_RATE
    source = AudioSource(type="file", channels=[0], source=str(path))
    recording = Recording(
        id=id, sources=[source], sampling_rate=SAMPLE_RATE, num_samples=num_samples, duration=duration
    )
    supervision = SupervisionSegment(
        id=id, recording_id=id, start=0.0, duration=duration, text=text, language=language, speaker=speaker
    )
    return MonoCut(id=id, start=0.0, duration=duration, channel=0, recording=recording, supervisions=[supervision])


def write_cuts(cuts: Iterable[MonoCut], path: Path) -> float:
    """Write a manifest (`.jsonl.gz`); returns its hours of audio."""
    cuts = list(cuts)
    hours = sum(cut.duration for cut in cuts) / 3600
    write_lines((json.dumps(cut.to_dict(), ensure_ascii=False) for cut in cuts), path)
    print(f"{path}: {len(cuts)} utterances, {hours:.2f} hours")
    return hours


def write_lines(lines: Iterable[str], path: Path) -> None:
    """Write `.jsonl.gz` whole or not at all; the same lines give the same bytes.

    Raises:
        ValueError: there are no lines.
    """
    aside, empty = path.with_name(path.name + ".part"), True
    # The time and the name would be in the header, and the checksums of equal manifests differ.
    with open(aside, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        for line in lines:
            empty = False
            file.write(line.encode("utf-8") + b"\n")
    if empty:
        aside.unlink()
        raise ValueError(f"no utterances for {path.name}: nothing was found to put into it that can be used")
    aside.replace(path)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a `.jsonl.gz`: one JSON object each."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield line.rstrip("\n")


def join_manifests(paths: Sequence[Path], path: Path, *, seed: int | None = None, limit: int | None = None) -> None:
    """Write one manifest of several, in their order, or in a random one that depends on `seed` alone.

    With `limit`, as many utterances drawn from all of them (by `seed`, or 0). Cuts are not built: 281,241 lines take
    seconds.
    """
    lines = [line for source in paths for line in read_lines(source)]
    if limit is not None and limit < len(lines):
        chosen = np.random.default_rng(seed or 0).choice(len(lines), limit, replace=False)
        lines = [lines[i] for i in sorted(chosen)]
    if seed is not None:
        lines = [lines[i] for i in np.random.default_rng(seed).permutation(len(lines))]
    write_lines(lines, path)
    hours = sum(json.loads(line)["duration"] for line in lines) / 3600
    print(f"{path}: {len(lines)} utterances, {hours:.2f} hours")


def cut_texts(path: Path) -> Iterator[str]:
    """The transcripts of a manifest, read without building the cuts."""
    for line in read_lines(path):
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
            feats = whole_fbank(read_audio(cut.recording.sources[0].source)[0]).astype(np.float64)
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
