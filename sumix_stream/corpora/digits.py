"""Strings of spoken digits made from the Free Spoken Digit Dataset (Zohar Jackson and others, CC BY-SA 4.0).

The corpus is 3,000 single digits of 6 speakers at 8 kHz, `{digit}_{speaker}_{index}.wav` or `.flac`; index 0 to 4 is
its official test set. Strings of 1 to 7 digits are recordings of one split with random silences around them:
training strings use index 8 and above, validation 5 to 7, test 0 to 4, so no recording is in two splits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import soundfile
from tqdm.auto import tqdm

from sumix_stream.audio import read_audio, resample
from sumix_stream.corpora.preparation import (
    SAMPLE_RATE,
    empty_folder,
    finish,
    make_cut,
    write_cuts,
    write_flac,
    write_tokenizer,
)
from sumix_stream.corpora.stages import Stages, in_processes

WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
NUM_TEST, NUM_VALID = 5, 3  # recordings of each digit and speaker
MAX_DIGITS = 7
GAP_SECONDS = (0.05, 0.5)  # between digits
EDGE_SECONDS = (0.1, 0.5)  # before the first and after the last
NOISE_DBFS = (-75.0, -55.0)  # white, over the whole string: the silences are not digital zero
TRAIN_GAIN_DB = (-10.0, 6.0)
OTHER_SPEAKER = 0.1  # share of training strings whose digits come from several speakers
# A transducer's easy way to emit a digit once is to mute it while the predictor remembers it, which loses the second of
# FIVE FIVE. More such pairs in training leave that way closed; test strings have them as chance has it.
TRAIN_REPEAT = 0.25


@dataclass(frozen=True, order=True)
class Digit:
    """One recording of the corpus."""

    speaker: str
    digit: int
    index: int
    path: Path


@dataclass(frozen=True)
class DigitString:
    """What to render: recordings in order, and the seed of its silences, noise and gain."""

    id: str
    digits: tuple[Digit, ...]
    seed: int
    gain_db: tuple[float, float]

    @property
    def text(self) -> str:
        return " ".join(WORDS[digit.digit] for digit in self.digits)

    @property
    def speaker(self) -> str:
        return "+".join(sorted({digit.speaker for digit in self.digits}))


def find_digits(corpus: Path) -> list[Digit]:
    """Every recording in `corpus/recordings` or `corpus`, sorted.

    Raises:
        ValueError: no recordings are there, or a file's name is not `{digit}_{speaker}_{index}`.
    """
    folder = corpus / "recordings" if (corpus / "recordings").is_dir() else corpus
    found = []
    for path in sorted([*folder.glob("*.flac"), *folder.glob("*.wav")]):
        digit, speaker, index = (path.stem.split("_") + ["", ""])[:3]
        if not (digit.isdecimal() and int(digit) < 10 and speaker and index.isdecimal()):
            raise ValueError(f"{path}: a recording is named {{digit}}_{{speaker}}_{{index}}, for example 7_jackson_0")
        found.append(Digit(speaker, int(digit), int(index), path))
    if not found:
        raise ValueError(
            f"--corpus {corpus}: no {{digit}}_{{speaker}}_{{index}}.wav or .flac in it; it takes a copy of the Free "
            "Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset)"
        )
    return sorted(found)


def split_digits(digits: list[Digit]) -> dict[str, list[Digit]]:
    """The recordings of `train`, `valid` and `test` by index: disjoint, the test set the official one."""
    split = {
        "train": [d for d in digits if d.index >= NUM_TEST + NUM_VALID],
        "valid": [d for d in digits if NUM_TEST <= d.index < NUM_TEST + NUM_VALID],
        "test": [d for d in digits if d.index < NUM_TEST],
    }
    for part, members in split.items():
        if not members:
            raise ValueError(f"no recordings for {part}: the corpus needs indices 0 to {NUM_TEST + NUM_VALID} at least")
    return split


def draw_strings(
    part: str,
    digits: list[Digit],
    num_strings: int,
    seed: int,
    other_speaker: float,
    gain_db: tuple[float, float],
    repeat: float = 0.0,
) -> Iterator[DigitString]:
    """`num_strings` different strings that use every recording equally often (within one, for each speaker).

    Lengths are uniform in 1 to 7 until no new string of a length can be drawn. Digits of a string come from one
    speaker, but for a share `other_speaker` of the strings. With probability `repeat` a digit is the one before it
    again (as another recording, if there is one), beyond the tenth that chance gives; equal use is then approximate.
    """
    rng = np.random.default_rng([seed, *part.encode()])
    speakers = sorted({digit.speaker for digit in digits})
    decks = {s: _deal([d for d in digits if d.speaker == s], rng) for s in speakers}
    same = {
        (s, value): _deal(chosen, rng)
        for s in speakers
        for value in range(10 if repeat else 0)
        if (chosen := [d for d in digits if d.speaker == s and d.digit == value])
    }
    lengths = {s: _deal(list(range(1, MAX_DIGITS + 1)), rng) for s in speakers}
    seen: set[tuple[Digit, ...]] = set()
    attempts = 0
    while len(seen) < num_strings:
        attempts += 1
        if attempts > 100 * num_strings:
            raise ValueError(f"{num_strings} different {part} strings cannot be made of {len(digits)} recordings")
        speaker = speakers[attempts % len(speakers)]
        mixed = rng.random() < other_speaker
        string: list[Digit] = []
        for _ in range(next(lengths[speaker])):
            who = speakers[rng.integers(len(speakers))] if mixed else speaker
            again = (who, string[-1].digit) if string and repeat and rng.random() < repeat else None
            string.append(next(same.get(again, decks[who])))
        if tuple(string) in seen:
            continue
        seen.add(tuple(string))
        yield DigitString(f"{part}-{len(seen) - 1:05d}", tuple(string), int(rng.integers(2**31)), gain_db)


def _deal(items: list, rng: np.random.Generator) -> Iterator:
    """Endless draws without replacement: all items in a random order, then all again in another."""
    while True:
        for i in rng.permutation(len(items)):
            yield items[i]


@cache
def _recording(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def render(string: DigitString, recordings: Path) -> np.ndarray:
    """Samples (S,) at 16 kHz: silence, digit, silence, ..., silence, times a gain, plus the noise floor."""
    rng = np.random.default_rng(string.seed)
    pieces = [np.zeros(int(rng.uniform(*EDGE_SECONDS) * SAMPLE_RATE), np.float32)]
    for i, digit in enumerate(string.digits):
        if i:
            pieces.append(np.zeros(int(rng.uniform(*GAP_SECONDS) * SAMPLE_RATE), np.float32))
        pieces.append(_recording(recordings / f"{digit.path.stem}.flac"))
    pieces.append(np.zeros(int(rng.uniform(*EDGE_SECONDS) * SAMPLE_RATE), np.float32))
    samples = np.concatenate(pieces) * np.float32(10 ** (rng.uniform(*string.gain_db) / 20))
    noise = rng.standard_normal(len(samples), dtype=np.float32)
    return samples + noise * np.float32(10 ** (rng.uniform(*NOISE_DBFS) / 20))


def _write_recording(digit: Digit, folder: Path) -> None:
    write_flac(folder / f"{digit.path.stem}.flac", resample(*read_audio(digit.path), SAMPLE_RATE))


def _write_string(string: DigitString, recordings: Path, folder: Path) -> tuple[Path, int]:
    path = folder / string.id[:-3] / f"{string.id}.flac"
    path.parent.mkdir(exist_ok=True)
    return path, write_flac(path, render(string, recordings))


def prepare_digits(
    corpus: str | Path,
    out_dir: str | Path,
    *,
    num_train: int = 20_000,
    num_valid: int = 100,
    num_test: int = 400,
    seed: int = 0,
    num_jobs: int | None = None,
) -> None:
    """Prepare the recipe `egs/digits` under `out_dir`: manifests, audio, word tokenizer, feature statistics.

    Strings are written as FLAC files, so that the silences carry a noise floor and loading is one file for each string.
    20,000 strings are about 18 hours and 1 GB.

    Args:
        corpus: folder of the Free Spoken Digit Dataset (or its `recordings` folder).
        num_train, num_valid, num_test: strings of each split.
        num_jobs: processes; None = one for each core.
    """
    corpus, out_dir = Path(corpus), Path(out_dir).resolve()
    digits = find_digits(corpus)
    split = split_digits(digits)
    stages = Stages(out_dir)
    recordings = out_dir / "recordings"

    def resample_all() -> None:
        empty_folder(recordings)
        work = partial(_write_recording, folder=recordings)
        for _ in tqdm(in_processes(work, digits, num_jobs), desc="8 to 16 kHz", total=len(digits), disable=None):
            pass

    def write_strings(part: str, num_strings: int) -> None:
        folder = empty_folder(out_dir / "strings" / part)
        training = part == "train"
        strings = list(
            draw_strings(
                part,
                split[part],
                num_strings,
                seed,
                OTHER_SPEAKER if training else 0.0,
                TRAIN_GAIN_DB if training else (0.0, 0.0),
                TRAIN_REPEAT if training else 0.0,
            )
        )
        work = partial(_write_string, recordings=recordings, folder=folder)
        written = in_processes(work, strings, num_jobs)
        files = list(tqdm(written, desc=f"{part} strings", total=num_strings, disable=None))
        write_cuts(
            (make_cut(s.id, path, n, s.text, s.speaker) for s, (path, n) in zip(strings, files, strict=True)),
            out_dir / f"cuts_{part}.jsonl.gz",
        )

    stages.run("recordings", {"corpus": corpus.resolve(), "files": len(digits)}, resample_all)
    for part, number in (("test", num_test), ("valid", num_valid), ("train", num_train)):
        settings = {"num": number, "seed": seed} | ({"repeat": TRAIN_REPEAT} if part == "train" else {})
        stages.run(part, settings, partial(write_strings, part, number), [f"cuts_{part}.jsonl.gz"])
    finish(stages, {"type": "word"}, lambda: write_tokenizer(out_dir, len(WORDS) + 2, "word"))
