"""Validation that cannot mistake audio it could not read for an error rate, of one set or of several by name.

A set of which nothing can be read has 0 errors in 0 words, and the remainder of one may be its easiest part: neither is
a rate to choose the best checkpoint by.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lhotse.cut import Cut

from sumix_stream.data.manifests import Utterance, read_valid
from sumix_stream.tasks.base import Validation
from sumix_stream.train.metrics import LOGGER

MAX_TRIED = 50  # utterances that cannot be read, before a run ends at its beginning


class NoErrorRate(ValueError):
    """A validation that says nothing about the model; the message says why."""


class Validator:
    """A validation of a set of cuts.

    Args:
        cuts: read anew each time.
        decode: a `tasks.base.Validation` of a model on utterances.
        key: of the recipe that names the set, for messages.
    """

    def __init__(
        self,
        cuts: Iterable[Cut],
        decode: Callable[[Any, Iterable[Utterance]], Validation],
        key: str = "data.valid_cuts",
    ) -> None:
        self._cuts, self._decode, self._key = cuts, decode, key
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
                f"{self._key}: none of its first {tried} utterances can be read, see the log for each one's "
                f"reason: without them no checkpoint is the best; repair the paths, or leave {self._key} out"
            )
        if not any(supervision.text for cut in self._cuts for supervision in cut.supervisions):
            raise NoErrorRate(f"{self._key}: no utterance has a transcript to compare with")

    def __call__(self, model: Any) -> Validation:
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


@dataclass(frozen=True)
class WithLosses:
    """What decoding found, with the losses of the same utterances, in nats for each encoder frame."""

    found: Validation
    losses: dict[str, float]

    @property
    def metrics(self) -> dict[str, float]:
        return self.found.metrics

    @property
    def word_errors(self) -> Any:
        return getattr(self.found, "word_errors", None)

    def summary(self) -> str:
        losses = ", ".join(f"{name} {value:.3f}" for name, value in self.losses.items())
        return self.found.summary() + (f"\n{losses}" if losses else "")


@dataclass(frozen=True)
class SetResults:
    """Validations of several sets. Measures and losses are called `set/measure`; those of the first set come first."""

    sets: dict[str, Validation]

    @property
    def metrics(self) -> dict[str, float]:
        return _by_set(self.sets, "metrics")

    @property
    def losses(self) -> dict[str, float]:
        return _by_set(self.sets, "losses")

    def summary(self) -> str:
        return "\n".join(
            f"{name}: {line}" for name, found in self.sets.items() for line in found.summary().splitlines()
        )


def _by_set(sets: Mapping[str, Validation], what: str) -> dict[str, float]:
    found = {name: getattr(one, what, None) or {} for name, one in sets.items()}
    return {f"{name}/{key}": value for name, values in found.items() for key, value in values.items()}


class SetValidator:
    """A validation of several sets by name, the one that the best checkpoint goes by first."""

    def __init__(self, validators: Mapping[str, Validator]) -> None:
        self._validators = dict(validators)

    def check(self) -> None:
        """As `Validator.check`, of each set."""
        for validator in self._validators.values():
            validator.check()

    def __call__(self, model: Any) -> SetResults:
        """Raises NoErrorRate where the first set gives none; another that gives none is left out, with a warning."""
        results: dict[str, Validation] = {}
        for name, validator in self._validators.items():
            try:
                results[name] = validator(model)
            except NoErrorRate as error:
                if not results:
                    raise NoErrorRate(f"{name}: {error}") from error
                LOGGER.warning(f"validation set {name}: no error rate: {error}")
        return SetResults(results)
