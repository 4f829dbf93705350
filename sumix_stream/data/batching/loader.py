"""Cuts to padded batches of features and tokens, reproducibly.

B utterances, T0 feature frames (10 ms), U tokens.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lhotse import CutSet
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sumix_stream.config import DataConfig
from sumix_stream.data.augment.joining import Joiner, spoken
from sumix_stream.data.augment.spec_augment import SpecAugment
from sumix_stream.data.augment.waveforms import WaveformAugment, utterance_rng
from sumix_stream.data.batch_fbank import BatchFbank
from sumix_stream.data.batching.index import CutIndex
from sumix_stream.data.batching.plan import (
    Arrange,
    EpochPlan,
    Lengths,
    Piece,
    make_plan,
    samples_of,
    usable_cuts,
)
from sumix_stream.data.batching.sources import WeightedSources, describe
from sumix_stream.data.manifests import (
    SAMPLE_RATE,
    CutFilter,
    ManifestError,
    UtteranceError,
    cut_text,
    load_samples,
)
from sumix_stream.features import NUM_BINS
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import Tokenizer

PREFETCH = 2  # batches that each worker is ahead
SHARED_MEMORY = Path("/dev/shm")  # through which Linux's workers hand over tensors
MAX_LOST = 100  # batches in a row of which nothing can be read, before the run ends
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Utterances padded with zeros to the longest."""

    index: int  # of this batch in its rank's epoch, which goes on after it with `skip=index + 1`
    feats: Tensor  # (B, T0, 80) float32
    feat_lengths: Tensor  # (B,) int64, frames
    tokens: Tensor  # (B, U) int64
    token_lengths: Tensor  # (B,) int64
    ids: list[str]
    texts: list[str]
    seconds: float  # of audio, padding not counted

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with its tensors on `device`."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which a GPU copies while it computes; DataLoader calls it."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        names = ("feats", "feat_lengths", "tokens", "token_lengths")
        return replace(self, **{name: function(getattr(self, name)) for name in names})


class Heard(NamedTuple):
    """An utterance as training hears it; samples (S,) float32 at 16 kHz."""

    id: str
    text: str
    recorded: np.ndarray  # joined, with pauses, at its speed
    augmented: np.ndarray


class TrainLoader:
    """Training batches in random order.

    Batch n of a rank is a function of (seed, epoch, n), the rank and what all ranks take for a step: batch n of rank r
    of W is batch n W + r of one process that accumulates W. An epoch is planned from an index of the manifests
    (`CutIndex`, `make_plan`), so it can begin anywhere at once. Every rank gets as many batches, of similar length in
    each step. Cuts that cannot be trained on are left out by name (`CutFilter`), and so are utterances whose audio
    turns out to be unusable. Sources with weights are mixed as `WeightedSources` says, by the weights of
    `config.train_cuts`.

    Args:
        cuts: a CutSet or manifests. Cuts that `load_cuts` did not read are held in memory.
        accumulate: batches that a rank takes for a step.
        arrange: joins cuts to longer utterances; None: as `data.concatenate` and `data.pause` say.

    Raises:
        ManifestError: no cut is left to train on, or a manifest is damaged.
    """

    def __init__(
        self,
        config: DataConfig,
        cuts: CutSet | str | Path | Sequence[str | Path],
        tokenizer: Tokenizer,
        timebase: Timebase,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        arrange: Arrange | None = None,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0 to world_size - 1 = {world_size - 1}, got {rank}")
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1 batch, got {accumulate}")
        self.config, self.tokenizer, self.timebase, self.seed = config, tokenizer, timebase, seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self._arrange = arrange or Joiner(config, timebase)
        self.augment = WaveformAugment(config, seed)
        if rank == 0:
            _check_shared_memory(config, timebase)
        self._index = CutIndex(cuts, tokenizer)
        duration, num_tokens, speaker = self._index.columns
        kept = usable_cuts(config, timebase, duration, num_tokens)
        if rank == 0:
            judge = CutFilter(config, tokenizer, timebase)
            for number in np.flatnonzero(~kept):
                cut = self._index.read(int(number))
                assert not judge(cut), cut.id  # it says why
        if not kept.any():
            raise ManifestError("no cut is left to train on; see the log for each one's reason")
        self._usable = np.flatnonzero(kept)
        samples = samples_of(timebase, duration[kept])
        self._lengths = Lengths(samples, num_tokens[kept].astype(np.int64), speaker[kept])
        self._sources = self._weighted(config.train_weights) if config.train_weights else None
        self._plan: EpochPlan | None = None

    def _weighted(self, weights: Sequence[float]) -> WeightedSources:
        names, source = self._index.names, self._index.source[self._usable]
        if len(names) != len(weights):
            raise ValueError(f"data.train_cuts has {len(weights)} weights; the cuts come from {len(names)} manifests")
        for number, name in enumerate(names):
            if not (source == number).any():
                raise ManifestError(
                    f"{name}: no cut of it can be trained on, see the log for each one's reason; mend it, or take it "
                    "out of data.train_cuts"
                )
        return WeightedSources(weights, source, self._lengths.num_samples, self.seed)

    def describe_sources(self) -> str | None:
        """Shares of the sources, for the log; None: they have no weights."""
        if self._sources is None:
            return None
        names = ["/".join(Path(name).parts[-2:]) for name in self._index.names]  # many are called cuts_train.jsonl.gz
        return describe(names, self._sources.shares, SAMPLE_RATE)

    def plan(self, epoch: int) -> EpochPlan:
        """The batches of an epoch, of all ranks."""
        if self._plan is None or self._plan.epoch != epoch:
            usable, lengths = self._usable, self._lengths
            if self._sources is not None:
                taken = self._sources.epoch(epoch)
                usable, lengths = usable[taken], Lengths(*(column[taken] for column in lengths))
            self._plan = make_plan(
                self.config,
                self.timebase,
                usable,
                lengths,
                self._arrange,
                seed=self.seed,
                epoch=epoch,
                step_batches=self.world_size * self.accumulate,
            )
            if self._plan.repeated and self.rank == 0:
                log.warning(
                    "epoch %d: %d utterances come twice, so that each of %d ranks has %d for a step",
                    *(epoch, self._plan.repeated, self.world_size, self.accumulate),
                )
        return self._plan

    def fingerprint(self, epoch: int) -> str:
        """Names the batches of an epoch, of all ranks (`EpochPlan.fingerprint`)."""
        return self.plan(epoch).fingerprint

    def epoch_batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Batches `skip`, `skip + 1`, ... of an epoch; nothing of those before is read.

        A batch of which no utterance can be read is replaced by the one that follows it in the plan.

        Raises:
            UtteranceError: `MAX_LOST` batches in a row cannot be read, or all.
            ManifestError: a manifest was changed or damaged meanwhile.
        """
        plan = self.plan(epoch)
        make = _BatchMaker(self, plan)
        numbers = range(skip, len(plan) // self.world_size)
        if self.config.num_workers == 0:
            return _raised(map(make.__getitem__, numbers))
        loader = DataLoader(
            make,
            sampler=numbers,  # DataLoader only iterates it
            batch_size=None,
            num_workers=self.config.num_workers,
            prefetch_factor=PREFETCH,
            worker_init_fn=_one_thread,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # whose draw nothing here uses: the run's own generator stays as it is
        )
        return _raised(iter(loader))

    def worst_batches(self, number: int = 1, epoch: int = 0) -> list[Batch]:
        """Batches of an epoch that ask for the most memory (`EpochPlan.worst`), of all ranks: the same on each."""
        plan = self.plan(epoch)
        make = _BatchMaker(self, plan)
        return list(_raised(make.batch(index) for index in plan.worst(number)))

    def hear(self, epoch: int, index: int) -> list[Heard]:
        """The utterances of batch `index` (of all ranks'), for people to listen to; without those that nobody can."""
        plan = self.plan(epoch)
        make = _BatchMaker(self, plan)
        utterances = [found for pieces in plan.batch(index) if (found := make.read(pieces)) is not None]
        ids, texts, waveforms = map(list, zip(*utterances, strict=True)) if utterances else ([], [], [])
        return list(map(Heard, ids, texts, waveforms, self.augment(epoch, ids, waveforms)))


class _BatchMaker(Dataset):
    """Number of a rank's batch -> Batch, or the error that ends the run. Runs in the workers."""

    def __init__(self, loader: TrainLoader, plan: EpochPlan):
        config = loader.config
        self.index, self.plan, self.tokenizer = loader._index, plan, loader.tokenizer
        self.rank, self.world_size = loader.rank, loader.world_size
        self.seeds = (loader.seed, plan.epoch)
        self.augment, self.fbank = loader.augment, BatchFbank()
        self.spec_augment = None if config.spec_augment is None else SpecAugment(config.spec_augment)

    def __getitem__(self, number: int) -> Batch | Exception:
        return self.batch(number * self.world_size + self.rank)

    def batch(self, index: int) -> Batch | Exception:
        """Batch `index` of all ranks' or, where nothing of it can be read, of the next one that can."""
        tries = min(MAX_LOST, len(self.plan))
        try:
            for other in range(index, index + tries):
                utterances = [self.read(pieces) for pieces in self.plan.batch(other % len(self.plan))]
                if any(utterances):
                    return self._batch(index, [utterance for utterance in utterances if utterance is not None])
        except ManifestError as error:
            return error
        return UtteranceError(f"no utterance of {tries} batches in a row could be read; see the log for each's reason")

    def read(self, pieces: list[Piece]) -> tuple[str, str, np.ndarray] | None:
        """Id, text and samples (S,) of an utterance, without those of its cuts that cannot be read."""
        ids, texts, parts, pauses = [], [], [], []
        for piece in pieces:
            cut = self.index.read(piece.cut)
            if piece.speed != 1.0 and cut.has_recording:
                cut = cut.perturb_speed(piece.speed)
            try:
                parts.append(load_samples(cut))
            except UtteranceError as error:
                log.warning("left out of its batch: %s", error)
                continue
            pauses.append(piece.pause)
            ids.append(cut.id)
            texts.append(cut_text(cut))
        if not ids:
            return None
        id = "+".join(ids)
        return id, " ".join(texts), spoken(parts, pauses, utterance_rng(*self.seeds, id, "pause"))

    def _batch(self, index: int, utterances: list[tuple[str, str, np.ndarray]]) -> Batch:
        ids, texts, waveforms = map(list, zip(*utterances, strict=True))
        waveforms = self.augment(self.plan.epoch, ids, waveforms)
        num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in waveforms], batch_first=True)
        feats, feat_lengths = self.fbank(padded, num_samples)
        if self.spec_augment is not None:
            state = np.random.SeedSequence([*self.seeds, index]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(state[0]))
            feats = self.spec_augment(feats, feat_lengths, generator)
        tokens = [torch.tensor(self.tokenizer.encode(text)) for text in texts]
        return Batch(
            index=index // self.world_size,
            feats=feats,
            feat_lengths=feat_lengths,
            tokens=torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True),
            token_lengths=torch.tensor([len(t) for t in tokens]),
            ids=ids,
            texts=texts,
            seconds=int(num_samples.sum()) / SAMPLE_RATE,
        )


def _raised(made: Iterator[Batch | Exception]) -> Iterator[Batch]:
    """Batches, until one is an error: workers hand them over whole, DataLoader would wrap them in their traceback."""
    for batch in made:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def _check_shared_memory(config: DataConfig, timebase: Timebase) -> None:
    """Warn where worker processes could end with a bus error: their batches come through a small file system."""
    batch_bytes = 4 * NUM_BINS * timebase.num_feature_frames(timebase.num_samples(config.max_duration))
    needed = batch_bytes * (PREFETCH * config.num_workers + 1)
    if config.num_workers == 0 or not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        log.warning(
            "%s has %.0f MB free, %d workers may need %.0f MB and would be killed: give it more (docker run "
            "--shm-size=...), or lower data.num_workers or data.max_duration",
            *(SHARED_MEMORY, free / 1e6, config.num_workers, needed / 1e6),
        )


def _one_thread(worker_id: int) -> None:
    torch.set_num_threads(1)
