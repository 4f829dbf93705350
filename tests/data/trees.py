"""Small corpora made of tones, in the layouts of the real ones: ``from data.trees import ...``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from lhotse import CutSet

from sumix_stream.data.corpus import make_cut
from sumix_stream.tokenizer import Tokenizer, train_tokenizer

WORDS = ("ALPHA", "BRAVO", "DELTA", "ECHO", "GOLF", "HOTEL", "INDIA", "KILO")


def tone(seconds: float, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """A tone with a little noise, float32 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    samples = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 1000) * time) + 0.01 * rng.standard_normal(len(time))
    return samples.astype(np.float32)


def sentence(seed: int, num_words: int = 3) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, num_words))


def write_cuts_and_tokenizer(folder: Path, durations: Sequence[float]) -> tuple[CutSet, Path, Tokenizer]:
    """Utterances utt-00, utt-01, ... of these seconds: their cuts, the manifest of them, a character tokenizer."""
    cuts = []
    for i, seconds in enumerate(durations):
        path = folder / f"utt-{i:02d}.flac"
        soundfile.write(path, tone(seconds, seed=i), 16_000)
        cuts.append(make_cut(path.stem, path, int(seconds * 16_000), sentence(i), speaker=f"s{i % 3}"))
    manifest = folder / "cuts_train.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(manifest)
    return CutSet.from_cuts(cuts), manifest, train_tokenizer(WORDS, folder / "tokenizer.model", model_type="char")


def write_librispeech(root: Path, part: str, speakers: Sequence[str], num_utterances: int) -> None:
    """`root/part/<speaker>/7/<speaker>-7-<n>.flac` of 1 to 1.5 seconds, with its `.trans.txt`."""
    for speaker in speakers:
        chapter = root / part / speaker / "7"
        chapter.mkdir(parents=True)
        lines = []
        for i in range(num_utterances):
            id = f"{speaker}-7-{i:04d}"
            soundfile.write(chapter / f"{id}.flac", tone(1 + i / (2 * num_utterances), seed=i), 16_000)
            lines.append(f"{id} {sentence(int(speaker) + i)}\n")
        (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines))


def write_digits(folder: Path, speakers: Sequence[str] = ("ann", "bob"), num_indices: int = 10) -> None:
    """`{digit}_{speaker}_{index}.wav` of 0.2 seconds at 8 kHz."""
    folder.mkdir(parents=True)
    for digit in range(10):
        for speaker in speakers:
            for index in range(num_indices):
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", tone(0.2, 8000, seed=digit), 8000)
