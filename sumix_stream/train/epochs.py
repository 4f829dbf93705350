"""Where a run stands in its data: batch after batch, epoch after epoch, from wherever a checkpoint was written."""

from collections.abc import Iterator
from typing import Protocol

from sumix_stream.data.batching.loader import Batch
from sumix_stream.train.metrics import LOGGER
from sumix_stream.train.resume import TrainerState


class Loader(Protocol):
    """Batches of an epoch, fixed by (epoch, index); `skip` begins at a batch without reading any before."""

    def epoch_batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]: ...

    def fingerprint(self, epoch: int) -> str:
        """Names the batches of an epoch: another one has others."""
        ...

    def worst_batches(self, number: int = 1) -> list[Batch]:
        """Those that ask for the most memory."""
        ...


def endless_batches(loader: Loader, state: TrainerState, world_size: int) -> Iterator[Batch]:
    """This process's batches without end, from where the state stands, which moves on with each.

    Where the batches of the epoch are not those that the state was saved in, the log says so. Raises ValueError for an
    epoch without any.
    """
    while True:
        first, seconds, plan = state.batch, 0.0, loader.fingerprint(state.epoch)
        if first and state.plan not in (None, plan):
            LOGGER.warning(
                f"the batches of epoch {state.epoch} are others than before: cuts of data.train_cuts, or settings "
                f"of data, have changed; in what is left of it utterances may come again or not at all"
            )
        state.plan = plan
        for batch in loader.epoch_batches(state.epoch, skip=first // world_size):
            state.batch = (batch.index + 1) * world_size
            seconds += batch.seconds
            yield batch
        if state.batch == 0:
            raise ValueError("the training set gives no batch: check data.train_cuts, and the utterances left out")
        if state.epoch == 0 and first == 0:
            count = state.batch // world_size
            LOGGER.info(f"the first epoch had {seconds / 3600:.2f} hours in {count} batches for this process")
        state.epoch, state.batch = state.epoch + 1, 0
