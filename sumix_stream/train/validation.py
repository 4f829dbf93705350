"""Validation that cannot mistake audio it could not read for an error rate.

A set of which nothing can be read has 0 errors in 0 words, and the remainder of one may be its easiest part: neither is
a rate to choose the best checkpoint by.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lhotse.cut import Cut

from sumix_stream.data.manifests import Utterance, read_valid
from sumix_stream.train.metrics import LOGGER

MAX_TRIED = 50  # utterances that cannot be read, before a run ends at its beginning


class NoErrorRate(ValueError):
    """A validation that says nothing about the model; the message says why."""


class Validator:
    """A validation of a set of cuts.

    Args:
        cuts: read anew each time.
        decode: a `tasks.base.Validation` of a model on utterances.
    """

    def __init__(self, cuts: Iterable[Cut], decode: Callable[[Any, Iterable[Utterance]], Any]) -> None:
        self._cuts, self._decode = cuts, decode
        self._words: int | None = None  # of the references, most so far

    def check(self) -> None:
        """Raises NoErrorRate where the first utterances cannot be read, or no utterance has a transcript."""
        tried = 0

        def counted() -> Iterator[Cut]:
            nonlocal tried
            for cut in self._cuts:
                if tried == MAX_TRIED:
                    return
                tried += 1
                yield cut

        if next(read_valid(counted()), None) is None:
            raise NoErrorRate(
                f"data.valid_cuts: none of its first {tried} utterances can be read, see the log for each one's "
                "reason: without them no checkpoint is the best; repair the paths, or leave data.valid_cuts out"
            )
        if not any(supervision.text for cut in self._cuts for supervision in cut.supervisions):
            raise NoErrorRate("data.valid_cuts: no utterance has a transcript to compare with")

    def __call__(self, model: Any) -> Any:
        """The result of `decode`. Raises NoErrorRate without any reference word, or with fewer than there were."""
        num_cuts = num_read = words = 0

        def cuts() -> Iterator[Cut]:
            nonlocal num_cuts
            for cut in self._cuts:
                num_cuts += 1
                yield cut

        def utterances() -> Iterator[Utterance]:
            nonlocal num_read, words
            for utterance in read_valid(cuts()):
                num_read += 1
                words += len(utterance.text.split())
                yield utterance

        result = self._decode(model, utterances())
        if num_read < num_cuts:
            LOGGER.warning(f"validation: {num_cuts - num_read} of {num_cuts} utterances could not be read")
        if not words:
            raise NoErrorRate(f"{num_read} of {num_cuts} utterances could be read, with no reference word")
        if self._words is not None and words < self._words:
            rates = ", ".join(f"{name} {rate:.2%}" for name, rate in result.metrics.items())
            raise NoErrorRate(
                f"only {words} of {self._words} reference words could be read: what these give ({rates}) is not to be "
                "compared with earlier validations"
            )
        self._words = words
        return result
