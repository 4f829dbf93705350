"""How soon training goes on in the middle of an epoch: index, plan, first batch, for a corpus as large as asked for.

    OMP_NUM_THREADS=1 python -m sumix_stream.bench.resume --cuts 281241

281,241 is what the 960 hours of LibriSpeech have. The manifest is synthetic: utterances of 1 to 17 s, all of them parts
of one audio file, with 13 words of text for each 5 s.
"""

import argparse
import gzip
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
from lhotse import CutSet
from lhotse.dataset import DynamicBucketingSampler

from sumix_stream.config import DataConfig
from sumix_stream.data import TrainLoader
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import Tokenizer, train_tokenizer

CONFIG = DataConfig(max_duration=300.0, num_buckets=30, speed_perturb=(0.9, 1.1))
WORDS = "THE QUICK BROWN FOX JUMPS OVER A LAZY DOG WHILE NINETY MUSICIANS PLAY SLOW WALTZES IN MOONLIGHT".split()
RATE = Timebase().sample_rate
SECONDS = 40  # of the audio file


def write_corpus(folder: Path, num_cuts: int, seed: int = 0) -> tuple[Path, Tokenizer]:
    """Manifest and tokenizer of a synthetic corpus in `folder`."""
    rng = np.random.default_rng(seed)
    audio = folder / "audio.flac"
    soundfile.write(audio, rng.normal(0, 0.05, SECONDS * RATE), RATE)
    source = {"type": "file", "channels": [0], "source": str(audio)}
    about = {"sources": [source], "sampling_rate": RATE, "num_samples": SECONDS * RATE, "duration": float(SECONDS)}
    with gzip.open(folder / "cuts.jsonl.gz", "wt", compresslevel=1) as file:
        for i, duration in enumerate((1 + 16 * rng.beta(3, 1, num_cuts)).round(3).tolist()):
            text = " ".join(rng.choice(WORDS, max(1, int(2.6 * duration))))
            supervision = {"id": f"utt-{i}", "recording_id": "audio", "start": 0.0, "duration": duration, "channel": 0}
            supervision |= {"text": text, "language": "English", "speaker": f"s{i % 2338}"}
            cut = {"id": f"utt-{i}", "start": float(rng.integers(SECONDS - 18)), "duration": duration, "channel": 0}
            cut |= {"supervisions": [supervision], "recording": {"id": "audio", **about}, "type": "MonoCut"}
            file.write(json.dumps(cut) + "\n")
    texts = (" ".join(rng.permutation(WORDS)) for _ in range(200))
    return folder / "cuts.jsonl.gz", train_tokenizer(texts, folder / "tokenizer.model", 60)


@contextmanager
def _timed(what: str) -> Iterator[None]:
    begin, cpu = time.perf_counter(), time.process_time()
    yield
    cpu = time.process_time() - cpu
    print(f"{what:<60}{time.perf_counter() - begin:8.2f} s, {cpu:.2f} s of CPU time", flush=True)


def measure(folder: Path, num_cuts: int, num_workers: int = 0, lhotse: bool = False) -> None:
    """Print the seconds of everything between the start of a run and its first batch."""

    def loader(rank: int = 0, world_size: int = 1) -> TrainLoader:
        config = DataConfig(**{**vars(CONFIG), "num_workers": num_workers})
        share = {"rank": rank, "world_size": world_size}
        return TrainLoader(config, manifest, tokenizer, Timebase(), seed=0, **share)

    with _timed(f"synthetic manifest of {num_cuts:,} cuts, once"):
        manifest, tokenizer = write_corpus(folder, num_cuts)
    print(f"{'manifest':<60}{manifest.stat().st_size / 1e6:8.1f} MB")
    with _timed("first start: index made"):
        loader()
    files = list(folder.glob(".*.index/*/*"))
    for file in files:
        print(f"{'index: ' + file.name:<60}{file.stat().st_size / 1e6:8.1f} MB")
    with _timed("later start: index opened"):
        begun = loader()
    with _timed("plan of an epoch"):
        plan = begun.plan(1)
    padding = 1 - sum(begun._lengths.num_samples) / int((plan.sizes.num_utterances * plan.sizes.num_samples).sum())
    print(f"{'batches; share of padding at speed 1 (about)':<60}{len(plan):8d} {padding:8.3f}")
    for epoch, share, rank, world_size in ((0, 0.0, 0, 1), (3, 0.5, 0, 1), (7, 0.999, 0, 1), (3, 0.5, 5, 8)):
        skip = int(share * len(plan)) // world_size
        with _timed(f"start to batch {skip} of epoch {epoch}, rank {rank} of {world_size}"):
            batch = next(loader(rank, world_size).epoch_batches(epoch, skip))
        assert batch.index == skip, batch.index
    worst = plan.worst(1)
    with _timed(f"worst batches ({len(worst)})"):
        begun.worst_batches(1, 1)
    if lhotse:
        sampler = DynamicBucketingSampler(
            CutSet.from_jsonl_lazy(manifest), max_duration=300, num_buckets=30, buffer_size=10_000, shuffle=True
        )
        with _timed(f"Lhotse's DynamicBucketingSampler to batch {len(plan) // 2}"):
            next(islice(sampler, len(plan) // 2, None))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    print(f"{'peak memory of this process':<60}{peak:8.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=281_241, help="utterances; default 281241")
    parser.add_argument("--workers", type=int, default=0, help="data.num_workers, processes; default 0")
    parser.add_argument("--lhotse", action="store_true", help="also replay Lhotse's sampler to the middle of an epoch")
    args = parser.parse_args()
    if args.cuts < 1:
        parser.error(f"--cuts must be at least 1, got {args.cuts}")
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), args.cuts, args.workers, args.lhotse)


if __name__ == "__main__":
    main()
