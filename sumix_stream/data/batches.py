"""Cuts to padded batches of features and tokens, reproducibly.

B utterances, T0 feature frames (10 ms), U tokens.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet
from lhotse.dataset import DynamicBucketingSampler
from lhotse.dataset.sampling.base import TimeConstraint
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sumix_stream.config import DataConfig
from sumix_stream.data.augment import SpecAugment, SpeedPerturb
from sumix_stream.data.cuts import (
    SAMPLE_RATE,
    CutFilter,
    ManifestError,
    UtteranceError,
    cut_text,
    load_cuts,
    load_samples,
)
from sumix_stream.features import BatchFbank
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Utterances padded with zeros to the longest."""

    index: int  # of this batch in its epoch: an epoch goes on after it with `skip=index + 1`
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
        return replace(
            self,
            feats=self.feats.to(device, non_blocking=True),
            feat_lengths=self.feat_lengths.to(device, non_blocking=True),
            tokens=self.tokens.to(device, non_blocking=True),
            token_lengths=self.token_lengths.to(device, non_blocking=True),
        )


class TrainLoader:
    """Training batches in random order; batch n of an epoch depends on (seed, epoch, n) and the rank, nothing else.

    Utterances of similar length are batched (Lhotse's DynamicBucketingSampler); cuts that cannot be trained on are
    left out by name (`CutFilter`), and so are utterances whose audio turns out to be unusable.
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
    ):
        """Every rank of `world_size` gets as many batches of an epoch as every other. `cuts`: a CutSet or manifests."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0 to world_size - 1 = {world_size - 1}, got {rank}")
        if config.max_duration <= 0 or config.num_workers < 0:
            raise ValueError(
                "data.max_duration must be above 0 and data.num_workers at least 0, got "
                f"{config.max_duration} and {config.num_workers}"
            )
        self.config, self.tokenizer, self.seed = config, tokenizer, seed
        self.rank, self.world_size = rank, world_size
        self._cuts = cuts if isinstance(cuts, CutSet) else load_cuts(cuts)
        self._filter = CutFilter(config, tokenizer, timebase)
        self._duration_bins: list[float] | None = None

    def epoch_batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Batches `skip`, `skip + 1`, ... of an epoch; those before are drawn but their audio is not read.

        Raises:
            ManifestError: no cut is left to train on, or a manifest is damaged.
        """
        make = _BatchMaker(self.config, self.tokenizer, (self.seed, epoch, self.rank))
        numbered = islice(enumerate(self._sampler(epoch)), skip, None)
        if self.config.num_workers == 0:
            return self._usable(map(make.__getitem__, numbered))
        loader = DataLoader(
            make,
            sampler=numbered,  # DataLoader only iterates it
            batch_size=None,
            num_workers=self.config.num_workers,
            worker_init_fn=_one_thread,
        )
        return self._usable(loader)

    def _usable(self, batches: Iterable[Batch | None]) -> Iterator[Batch]:
        """Leave out batches of which no utterance could be read. Ranks must stay in step, so with several ranks
        a neighbouring batch is given again in its place."""
        owed, batch = 0, None
        for made in batches:
            if made is None:
                owed += self.world_size > 1
                continue
            batch = made
            yield batch
            for _ in range(owed):
                yield batch
            owed = 0
        if owed and batch is None:
            raise UtteranceError("no utterance of this epoch could be read; see the log for each one's reason")
        for _ in range(owed):
            yield batch

    def _sampler(self, epoch: int) -> DynamicBucketingSampler:
        if self._duration_bins is None:
            self._duration_bins = self._estimate_bins()
        speed = SpeedPerturb(self.config.speed_perturb, self.seed, epoch)
        cuts = self._cuts.map(speed) if len(speed.factors) > 1 else self._cuts
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*eagerly read CutSet")
            sampler = DynamicBucketingSampler(
                cuts.filter(self._filter),
                max_duration=self.config.max_duration,
                duration_bins=self._duration_bins,
                buffer_size=self.config.bucket_buffer,
                shuffle=True,
                seed=self.seed,
                rank=self.rank,
                world_size=self.world_size,
            )
        sampler.set_epoch(epoch)
        return sampler

    def _estimate_bins(self) -> list[float]:
        """Durations (seconds) between the buckets, from the first cuts that can be trained on."""
        first = list(islice(self._cuts.filter(self._filter), self.config.bucket_buffer))
        if not first:
            raise ManifestError("no cut is left to train on; see the log for each one's reason")
        num_buckets = min(self.config.num_buckets, len(first) // 2)
        if num_buckets < 2:
            return [max(cut.duration for cut in first)]
        constraint = TimeConstraint(max_duration=self.config.max_duration)
        return estimate_duration_buckets(first, num_buckets=num_buckets, constraint=constraint)


class _BatchMaker(Dataset):
    """(index, cuts) -> Batch; None when no utterance could be read. Runs in the workers."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, seeds: tuple[int, int, int]):
        self.tokenizer, self.seeds = tokenizer, seeds
        self.fbank = BatchFbank()
        self.spec_augment = None if config.spec_augment is None else SpecAugment(config.spec_augment)

    def __getitem__(self, item: tuple[int, CutSet]) -> Batch | None:
        index, cuts = item
        kept, waveforms = [], []
        for cut in cuts:
            try:
                waveforms.append(torch.from_numpy(load_samples(cut)))
                kept.append(cut)
            except UtteranceError as error:
                log.warning("left out of its batch: %s", error)
        if not kept:
            return None
        num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
        feats, feat_lengths = self.fbank(padded, num_samples)
        if self.spec_augment is not None:
            state = np.random.SeedSequence([*self.seeds, index]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(state[0]))
            feats = self.spec_augment(feats, feat_lengths, generator)
        texts = [cut_text(cut) for cut in kept]
        tokens = [torch.tensor(self.tokenizer.encode(text)) for text in texts]
        return Batch(
            index=index,
            feats=feats,
            feat_lengths=feat_lengths,
            tokens=torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True),
            token_lengths=torch.tensor([len(t) for t in tokens]),
            ids=[cut.id for cut in kept],
            texts=texts,
            seconds=int(num_samples.sum()) / SAMPLE_RATE,
        )


def _one_thread(worker_id: int) -> None:
    torch.set_num_threads(1)
