"""Small corpora made of tones, in the layouts of the real ones: ``from trees import ...``."""

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from lhotse import CutSet

from sumix_stream.corpora.preparation import make_cut
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


def write_words(folder: Path, words: Sequence[str], num_speakers: int) -> None:
    """`{word}/speaker{n}_nohash_0.wav` of 0.5 seconds at 16 kHz."""
    for number, word in enumerate(words):
        (folder / word).mkdir(parents=True)
        for speaker in range(num_speakers):
            soundfile.write(
                folder / word / f"speaker{speaker}_nohash_0.wav", tone(0.5, seed=10 * number + speaker), 16_000
            )


def write_voxpopuli(corpus: Path, language: str = "en") -> None:
    """Sessions of 40 s, one of them in two channels at 22.05 kHz, one with a hole, ...; rows of every bad kind."""
    rows = [
        # session, start, end, split, normalised text, vad
        ("20170101-0900-PLENARY-3", "1.0", "4.0", "train", "Mr. President, the house is full; it is 9 o'clock.", None),
        (
            "20170101-0900-PLENARY-3",
            "5.0",
            "8.5",
            "train",
            "we welcome the report – it’s good",
            "[[5.0, 6.0], [7.0, 8.5]]",
        ),
        ("20170101-0900-PLENARY-3", "7.5", "11.25", "train", "it overlaps the one before by a second", None),
        ("20170101-0900-PLENARY-3", "12.0", "12.2", "train", "short", None),
        ("20170101-0900-PLENARY-3", "13.0", "30.0", "train", "a long one, " * 8, None),
        ("20170101-0900-PLENARY-3", "31.0", "35.0", "train", "no", None),
        ("20170101-0900-PLENARY-3", "35.0", "36.0", "train", "far too many words for one second of speech here", None),
        ("20170101-0900-PLENARY-3", "36.0", "38.0", "train", "", None),
        ("20170101-0900-PLENARY-3", "36.0", "38.0", "train", "ευχαριστώ πολύ", None),
        ("20170101-0900-PLENARY-3", "38.0", "45.0", "train", "it ends after the recording does", None),
        ("20170101-0900-PLENARY-3", "9.0", "8.0", "train", "times the wrong way round", None),
        ("20170101-0900-PLENARY-3", "?", "8.0", "train", "times that are no numbers", None),
        ("20170101-0900-PLENARY-3", "2.0", "4.0", "", "belongs to no part", None),
        ("20180202-0900-PLENARY-3", "0.5", "2.5", "dev", "members of the parliament", None),
        ("20180202-0900-PLENARY-3", "3.0", "3.25", "dev", "short, but kept in dev", None),
        ("20180202-0900-PLENARY-3", "4.0", "6.0", "test", "the vote will take place tomorrow", None),
        ("20190303-0900-PLENARY-3", "1.0", "3.0", "train", "this recording is not there", None),
        ("20190404-0900-PLENARY-3", "1.0", "3.0", "train", "this recording has a hole", None),
        ("20190505-0900-PLENARY-3", "1.0", "3.0", "train", "this recording is no audio", None),
        ("20190606-0900-PLENARY-3", "1.0", "3.0", "train", "this recording stops early", None),
        ("20190606-0900-PLENARY-3", "30.0", "33.0", "train", "so that this is not in it", None),
    ]
    audio = corpus / "raw_audios"
    for session, channel in (("20170101", "original"), ("20180202", language)):
        write_ogg(audio / channel / session[:4] / f"{session}-0900-PLENARY-3_{channel}.ogg", 40, int(session))
    folder = audio / "original" / "2019"
    write_ogg(folder / "20190404-0900-PLENARY-3_original.ogg", 40, 3)
    whole = (folder / "20190404-0900-PLENARY-3_original.ogg").read_bytes()
    hole = len(whole) // 2
    (folder / "20190404-0900-PLENARY-3_original.ogg").write_bytes(whole[:hole] + bytes(4000) + whole[hole + 4000 :])
    (folder / "20190505-0900-PLENARY-3_original.ogg").write_text("not audio")
    (folder / "20190606-0900-PLENARY-3_original.ogg").write_bytes(whole[: len(whole) // 2])
    table = corpus / "annotations" / "asr" / f"asr_{language}.tsv.gz"
    table.parent.mkdir(parents=True, exist_ok=True)
    names = "id_ session_id start_time end_time vad speaker_id gender split original_text normed_text".split()
    with gzip.open(table, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="|")
        writer.writerow(names)
        for i, (session, start, end, split, text, vad) in enumerate(rows):
            voiced = vad or f"[[{start}, {end}]]"
            writer.writerow([i, session, start, end, voiced, 100 + i, "female", split, text.upper(), text])


def write_ogg(path: Path, seconds: float, seed: int) -> None:
    """A tone as Ogg Vorbis, 16 kHz mono; where the seed ends in 2, two channels at 22.05 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = 22_050 if seed % 10 == 2 else 16_000
    samples = tone(seconds, rate, seed=seed)
    with soundfile.SoundFile(path, "w", rate, 1 + (rate != 16_000), format="OGG", subtype="VORBIS") as file:
        for block in np.array_split(samples if rate == 16_000 else np.stack([samples, samples], 1), 40):
            file.write(block)  # libsndfile's encoder has overflown its stack on long writes


def write_wavs(folder: Path, names: Sequence[str], seconds: float = 1.0, rate: int = 16_000, channels: int = 1) -> None:
    """Tones, each another, as `folder/<name>`; with two channels the second is another tone."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        samples = [tone(seconds, rate, seed=number + 100 * channel) for channel in range(channels)]
        soundfile.write(folder / name, np.stack(samples, 1), rate)


def write_own_folder(folder: Path, speakers: int = 3, each: int = 8) -> None:
    """`<speaker>/<n>.wav`, its sentence in `<n>.txt`."""
    for s in range(speakers):
        write_wavs(folder / f"speaker{s}", [f"{n}.wav" for n in range(each)])
        for n in range(each):
            (folder / f"speaker{s}" / f"{n}.txt").write_text(sentence(10 * s + n) + "\n")


def write_kaldi(folder: Path, utterances: dict[str, str], audio: str = "audio/{}.wav") -> None:
    """wav.scp with paths relative to the folder above, divided by tabs; text; utt2spk, divided by spaces."""
    folder.mkdir(parents=True, exist_ok=True)
    write_wavs(folder.parent, [audio.format(id) for id in utterances])
    (folder / "wav.scp").write_text("".join(f"{id}\t{audio.format(id)}\n" for id in utterances))
    (folder / "text").write_text("".join(f"{id}\t{text}\n" for id, text in utterances.items()))
    (folder / "utt2spk").write_text("".join(f"{id} {id.split('-')[0]}\n" for id in utterances))


def write_commonvoice(release: Path, language: str, texts: dict[str, Sequence[str]]) -> None:
    """`<language>/{train,dev,test}.tsv` with the columns of release 13, `<language>/clips/<name>.mp3`."""
    names = "client_id path sentence up_votes down_votes age gender accents variant locale segment".split()
    clips = release / language / "clips"
    clips.mkdir(parents=True)
    for number, (part, sentences) in enumerate(texts.items()):
        rows = ["\t".join(names)]
        for n, text in enumerate(sentences):
            name = f"common_voice_{language}_{1000 * number + n}.mp3"
            soundfile.write(clips / name, tone(1.2, 48_000, seed=1000 * number + n), 48_000)
            rows.append("\t".join([f"{part}{n % 3}", name, text, "2", "0", "", "", "", "", language, ""]))
        (release / language / f"{part}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_tedlium(root: Path, talks: dict[str, Sequence[tuple[str, int]]]) -> None:
    """`<part>/{sph,stm}/<talk>.{sph,stm}`: of each part talks with so many utterances of 1.5 s, and one not scored."""
    for part, members in talks.items():
        for talk, utterances in members:
            for kind in ("sph", "stm"):
                (root / part / kind).mkdir(parents=True, exist_ok=True)
            seconds = 2.0 * utterances + 2
            with soundfile.SoundFile(
                root / part / "sph" / f"{talk}.sph", "w", 16_000, 1, "PCM_16", format="NIST"
            ) as file:
                file.write(tone(seconds, seed=len(talk)))
            lines = [f"{talk} 1 inter_segment_gap 0 0.5 <o,f0,unknown> ignore_time_segment_in_scoring"]
            for n in range(utterances):
                text = f"{sentence(n).lower()} they 're <unk> {{NOISE}}"
                lines.append(f"{talk} 1 {talk} {2 * n + 0.5} {2 * n + 2.0} <o,f0,male> {text}")
            (root / part / "stm" / f"{talk}.stm").write_text("\n".join(lines) + "\n")


def write_aishell(corpus: Path, speakers: dict[str, Sequence[str]], each: int = 4) -> None:
    """`data_aishell/wav/<part>/<speaker>/BAC009<speaker>W<n>.wav`, one transcript more than there are recordings."""
    words, lines = ("今天 天气", "语音 识别", "北京 时间", "一 二 三 ｋ"), ["BAC009S0002W9999 没有 录音"]
    for part, names in speakers.items():
        for speaker in names:
            ids = [f"BAC009{speaker}W{121 + n:04d}" for n in range(each)]
            write_wavs(corpus / "data_aishell" / "wav" / part / speaker, [f"{id}.wav" for id in ids])
            lines += [f"{id} {words[n % 4]}" for n, id in enumerate(ids)]
    folder = corpus / "data_aishell" / "transcript"
    folder.mkdir(parents=True)
    (folder / "aishell_transcript_v0.8.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
