"""A small synthetic corpus: sentences of a grammar, spoken by eSpeak NG, in LibriSpeech's own folder layout.

It needs no download and no licence, and is made in about a minute. 14 speakers are accents times voice variants;
valid and test have two speakers each that train has not (every accent and every variant is heard in training), and
no sentence of theirs is in train.
"""

import multiprocessing
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from sumix_stream.audio import resample
from sumix_stream.corpora.espeak import Espeak
from sumix_stream.corpora.librispeech import read_librispeech_part
from sumix_stream.corpora.preparation import (
    SAMPLE_RATE,
    empty_folder,
    finish,
    shuffled,
    write_cuts,
    write_flac,
    write_tokenizer,
)
from sumix_stream.corpora.stages import Stages, default_jobs

# <name> is a rule, [...] is optional, | separates alternatives; a rule's alternatives are equally likely.
GRAMMAR = {
    "sentence": (
        "[please] <turn> the <room> <device> <onoff>|[please] <turn> <onoff> the <device> in the <room>|"
        "set the <clock> for <number> <unit> [please]|[please] wake me up at <number> [tomorrow] in the <daypart>|"
        "[please] play [some|more] <genre> music [in the <room>]|what is the <fact> in <city> <day>|"
        "will it be <weather> in <city> <day>|[please] call my <person> [and my <person>] <day>|"
        "send a message to my <person> [and my <person>] [please]|remind me to <chore> <day> <daypart>|"
        "[please] <handle> the <colour> <thing> [in the <room>]|where did my <person> put the <colour> <thing>|"
        "move <number> steps <direction> [and stop]|<want> <number> <dish> [and <number> <dish>]|"
        "my <person> likes the <colour> <thing> [very much]|is the <device> in the <room> still <onoff>|"
        "good <daypart> [my <person>] how are you [<day>]|"
        "thank you [very much] [my <person>] see you in <number> <unit>"
    ),
    "turn": "turn|switch",
    "onoff": "on|off",
    "room": "kitchen|bedroom|garden|office|garage",
    "device": "light|heater|radio|fan|camera",
    "clock": "timer|alarm",
    "number": "one|three|five|six|seven|nine|ten|twenty",
    "unit": "minutes|hours|days",
    "daypart": "morning|evening|afternoon",
    "genre": "jazz|piano|dance|happy|quiet",
    "fact": "weather|temperature|time",
    "weather": "sunny|raining|cold|windy",
    "city": "london|paris|madrid|chicago|boston",
    "day": "today|tomorrow|tonight|on monday|on friday",
    "person": "mother|brother|sister|doctor|teacher",
    "chore": "feed the cat|water the flowers|buy some bread|clean the <room>|visit my <person>",
    "handle": "open|close|bring|find",
    "colour": "red|green|yellow|black|white",
    "thing": "door|window|box|book|bottle",
    "direction": "left|right|forward|back",
    "want": "i would like|can we have",
    "dish": "apples|coffees|sandwiches|pizzas",
}
ACCENTS = ("gmw/en-US", "gmw/en-GB-x-rp")
VARIANTS = ("", "+f1", "+m1", "+m3", "+f4", "+m7", "+linda")
RATE_WPM = (140.0, 200.0)
SILENCE_SECONDS = (0.05, 0.3)  # added before and after
GAIN_DB = (-15.0, 0.0)
SNR_DB = (20.0, 45.0)  # noise between white and pink


@dataclass(frozen=True)
class Speaker:
    """A reader: an eSpeak voice with habits of its own."""

    id: str
    voice: str
    rate: float  # words a minute
    pitch: float
    pitch_range: float


def expand(rule: str, rng: np.random.Generator) -> str:
    """One random sentence of a rule: optional parts are kept half of the time."""
    alternatives = re.split(r"\|(?![^\[]*\])", rule)  # a | inside [] belongs to the option
    text = alternatives[rng.integers(len(alternatives))]

    def option(match: re.Match) -> str:
        return expand(match[1], rng) if rng.random() < 0.5 else ""

    text = re.sub(r"\[([^\]]*)\]", option, text)
    return " ".join(re.sub(r"<(\w+)>", lambda match: expand(GRAMMAR[match[1]], rng), text).split())


def draw_sentences(numbers: Mapping[str, int], seed: int) -> dict[str, list[str]]:
    """Sentences of 3 to 9 words for each part: those of `valid` and `test` are all different and not in `train`."""
    rng = np.random.default_rng(seed)
    held_out: set[str] = set()
    sentences: dict[str, list[str]] = {part: [] for part in numbers}
    for part in sorted(numbers, key=("test", "valid", "train").index):
        while len(sentences[part]) < numbers[part]:
            sentence = expand(GRAMMAR["sentence"], rng)
            if 3 <= len(sentence.split()) <= 9 and sentence not in held_out:
                sentences[part].append(sentence)
                if part != "train":
                    held_out.add(sentence)
    return sentences


def draw_speakers(seed: int) -> dict[str, list[Speaker]]:
    """The speakers of `train` (10), `valid` (2) and `test` (2)."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[Speaker]] = {"train": [], "valid": [], "test": []}
    for a, accent in enumerate(ACCENTS):
        held_out = {(3 * a + 1) % len(VARIANTS): "test", (3 * a + 2) % len(VARIANTS): "valid"}
        for v, variant in enumerate(VARIANTS):
            speaker = Speaker(
                id=str(100 * (a + 1) + v),
                voice=accent + variant,
                rate=rng.uniform(*RATE_WPM),
                pitch=rng.uniform(35, 65),
                pitch_range=rng.uniform(30, 70),
            )
            parts[held_out.get(v, "train")].append(speaker)
    return parts


def _noise(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of unit power whose spectrum falls by 0 to 3 dB an octave."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** -rng.uniform(0, 0.5)
    noise = np.fft.irfft(spectrum, num_samples)
    return (noise / noise.std()).astype(np.float32)


def _record(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`speech` (S,) with silence around it, noise over it, at some level below full scale."""
    before, after = (int(rng.uniform(*SILENCE_SECONDS) * SAMPLE_RATE) for _ in range(2))
    level = np.sqrt(np.mean(np.square(speech)))
    samples = np.pad(speech, (before, after))
    samples = samples + _noise(len(samples), rng) * (level * np.float32(10 ** (-rng.uniform(*SNR_DB) / 20)))
    return samples * np.float32(10 ** (rng.uniform(*GAIN_DB) / 20) / np.abs(samples).max())


def _read_chapter(job: tuple[Speaker, list[str]], part_dir: Path, seed: int) -> int:
    """One speaker reads sentences: writes `<speaker>/1/*.flac` and its transcript; returns how many."""
    speaker, sentences = job
    espeak, rng = Espeak(), np.random.default_rng([seed, int(speaker.id)])
    chapter = part_dir / speaker.id / "1"
    chapter.mkdir(parents=True)
    lines = []
    for i, sentence in enumerate(sentences):
        speech = espeak.say(
            sentence,
            speaker.voice,
            rate=speaker.rate * rng.uniform(0.92, 1.08),
            pitch=speaker.pitch + rng.uniform(-5, 5),
            pitch_range=speaker.pitch_range,
        )
        id = f"{speaker.id}-1-{i:04d}"
        write_flac(chapter / f"{id}.flac", _record(resample(speech, espeak.sample_rate, SAMPLE_RATE), rng))
        lines.append(f"{id} {sentence.upper()}\n")
    (chapter / f"{speaker.id}-1.trans.txt").write_text("".join(lines), encoding="utf-8")
    return len(sentences)


def prepare_mini(
    out_dir: str | Path,
    *,
    num_train: int = 3000,
    num_valid: int = 100,
    num_test: int = 200,
    seed: int = 0,
    tokenizer: str = "word",
    vocab_size: int = 128,
    num_jobs: int | None = None,
) -> None:
    """Prepare the recipe `egs/mini` under `out_dir`: synthesised audio, manifests, tokenizer, feature statistics.

    Args:
        num_train, num_valid, num_test: sentences of each part; about 2.2 seconds each.
        tokenizer: `word` (one token a word of the grammar), `bpe`, `unigram` or `char`.
        vocab_size: tokens, blank included; `word` takes what the text has.
        num_jobs: processes; None = one for each core.
    """
    out_dir = Path(out_dir).resolve()
    stages, corpus = Stages(out_dir), out_dir / "corpus" / "LibriSpeech"
    numbers = {"test": num_test, "valid": num_valid, "train": num_train}

    def synthesise() -> None:
        empty_folder(corpus)
        speakers, sentences = draw_speakers(seed), draw_sentences(numbers, seed)
        with tqdm(desc="eSpeak NG", unit="sentence", total=sum(numbers.values()), disable=None) as progress:
            for part, texts in sentences.items():
                jobs = [(s, texts[i :: len(speakers[part])]) for i, s in enumerate(speakers[part])]
                jobs = [job for job in jobs if job[1]]
                work = partial(_read_chapter, part_dir=corpus / part, seed=seed)
                # A fresh process for each speaker: eSpeak's state carries over, and the corpus must not depend on
                # which process read what. Forked, because importing this package takes longer than the reading.
                with multiprocessing.get_context("fork").Pool(num_jobs or default_jobs(), maxtasksperchild=1) as pool:
                    for done in pool.imap_unordered(work, jobs, chunksize=1):
                        progress.update(done)

    def write_manifests() -> None:
        for part in numbers:
            cuts, _ = read_librispeech_part(corpus / part)
            write_cuts(shuffled(cuts, seed), out_dir / f"cuts_{part}.jsonl.gz")

    stages.run("synthesis", {**numbers, "seed": seed}, synthesise)
    stages.run("manifests", {"seed": seed}, write_manifests, [f"cuts_{part}.jsonl.gz" for part in numbers])
    settings = {"type": tokenizer, "size": vocab_size}
    finish(stages, settings, lambda: write_tokenizer(out_dir, vocab_size, tokenizer))
