"""How many labels of a classifier are wrong, of each set, with intervals, and which are taken for which.

B utterances, V labels of all sets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch

from sumix_stream.context import ChunkContext
from sumix_stream.features import whole_fbank

if TYPE_CHECKING:
    from sumix_stream.data.manifests import Utterance
    from sumix_stream.labels import Labels
    from sumix_stream.tasks.classification.model import Classifier


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson, JASA 1927); (0, 1) of nothing."""
    if not total:
        return 0.0, 1.0
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class LabelErrors:
    """Of each set the pairs (reference, found) with their counts; `all_right` of `total` have every set's label."""

    pairs: dict[str, Counter[tuple[str, str]]]
    all_right: int
    total: int

    def right(self, name: str) -> int:
        return sum(count for (wanted, found), count in self.pairs[name].items() if wanted == found)

    @property
    def metrics(self) -> dict[str, float]:
        """Shares that are wrong: of utterances by any of their labels; of several sets, of each."""
        if not self.total:
            return {}
        rates = {"label_error": 1 - self.all_right / self.total}
        if len(self.pairs) > 1:
            rates |= {f"label_error/{name}": 1 - self.right(name) / self.total for name in self.pairs}
        return rates

    def summary(self) -> str:
        """Accuracies with 95 % intervals, and what is most often taken for something else."""
        lines = [_accuracy("accuracy", self.all_right, self.total)]
        if len(self.pairs) > 1:
            lines += [_accuracy(f"accuracy of {name}", self.right(name), self.total) for name in self.pairs]
        for name, pairs in self.pairs.items():
            wrong = Counter({pair: count for pair, count in pairs.items() if pair[0] != pair[1]}).most_common(5)
            if wrong:
                shown = ", ".join(f"{wanted} as {found} {count} x" for (wanted, found), count in wrong)
                lines.append(f"{name}: {shown}")
        return "\n".join(lines)

    def table(self, name: str) -> str:
        """The confusion matrix of a set in Markdown: a row for each reference."""
        labels = sorted({label for pair in self.pairs[name] for label in pair})
        rows = [f"| {name} | {' | '.join(labels)} |", f"|---|{'--:|' * len(labels)}"]
        for wanted in labels:
            counts = (str(self.pairs[name][wanted, found] or "") for found in labels)
            rows.append(f"| {wanted} | {' | '.join(counts)} |")
        return "\n".join(rows)


def _accuracy(what: str, right: int, total: int) -> str:
    low, high = wilson(right, total)
    return f"{what} {right / max(1, total):.2%} [{low:.2%}, {high:.2%}] ({right} of {total})"


@torch.inference_mode()
def label_errors(
    model: Classifier, labels: Labels, utterances: Iterable[Utterance], context: ChunkContext, batch_size: int = 32
) -> LabelErrors:
    """Of whole utterances under a context; utterances without labels that are known are passed over."""
    pairs: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in labels.sets}
    all_right = total = 0
    was_training = model.training
    model.eval()
    try:
        for wanted, found in _found(model, labels, utterances, context, batch_size):
            total += 1
            all_right += wanted == found
            for (name, members), one, other in zip(labels.sets.items(), wanted, found, strict=True):
                pairs[name][members[one], members[other]] += 1
    finally:
        model.train(was_training)
    return LabelErrors(pairs, all_right, total)


def _found(
    model: Classifier, labels: Labels, utterances: Iterable[Utterance], context: ChunkContext, batch_size: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Numbers of the labels that each utterance has, and of those that the model gives it."""
    waiting = iter(utterances)
    while batch := list(islice(waiting, batch_size)):
        heard = [(one, torch.from_numpy(whole_fbank(one.samples))) for one in batch if labels.fault(one.text) is None]
        known, feats = [one for one, part in heard if len(part)], [part for _, part in heard if len(part)]
        if not known:
            continue
        lengths = torch.tensor([len(part) for part in feats], device=model.device)
        padded = torch.nn.utils.rnn.pad_sequence(feats, batch_first=True).to(model.device)
        logits, _ = model.logits(padded, lengths, context)
        best = torch.stack([part.argmax(1) for part in logits.split(model.sizes, 1)], 1).tolist()
        yield from ((labels.encode(one.text), found) for one, found in zip(known, best, strict=True))
