"""Weights of a search tried on a set of utterances whose encoder frames are computed once.

B utterances, T encoder frames, D channels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sumix_stream.evaluate.scoring import WordErrors, align
from sumix_stream.runtime.base import Runtime, plain
from sumix_stream.search.beam import beam_decode
from sumix_stream.search.greedy import greedy_decode
from sumix_stream.search.options import SearchOptions
from sumix_stream.streaming.offline import encode_whole
from sumix_stream.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sumix_stream.data.manifests import Utterance

BATCH = 16  # utterances encoded, and searched, together


class Point(NamedTuple):
    """One combination of weights and what it gives; rates are fractions."""

    lm_scale: float
    blank_penalty: float
    rate: float  # of word errors, or of character errors where those come first
    interval: tuple[float, float] | None  # 95 %
    substitutions: int
    deletions: int
    insertions: int


class _Batch(NamedTuple):
    ids: list[str]
    texts: list[str]
    frames: np.ndarray  # (B, T, D)
    lengths: np.ndarray  # (B,)


@dataclass(frozen=True)
class Encoded:
    """A set of utterances as the encoder gave them, in memory: 0.6 kB an encoder frame of preset tiny."""

    runtime: Runtime
    tokenizer: Tokenizer
    batches: list[_Batch]

    @classmethod
    def of(
        cls,
        runtime: Runtime,
        tokenizer: Tokenizer,
        utterances: Iterable[Utterance],
        advance: Callable[[int], object] = lambda count: None,
    ) -> Encoded:
        """Encode utterances in the runtime's context; `advance` is told how many are done.

        Raises:
            ValueError: there are none.
        """
        waiting, batches = iter(utterances), []
        while batch := list(islice(waiting, BATCH)):
            frames, lengths = encode_whole(runtime, [utterance.samples for utterance in batch])
            ids, texts = [utterance.id for utterance in batch], [utterance.text for utterance in batch]
            batches.append(_Batch(ids, texts, plain(frames), lengths))
            advance(len(batch))
        if not batches:
            raise ValueError("there is no utterance to try weights on")
        return cls(runtime, tokenizer, batches)

    @cached_property
    def fingerprint(self) -> str:
        """Of the model, of frames and reference texts."""
        found = hashlib.sha256(self.runtime.fingerprint.encode())
        for batch in self.batches:
            found.update(json.dumps([batch.ids, batch.texts]).encode())
            found.update(np.ascontiguousarray(batch.frames))
        return found.hexdigest()[:16]

    def errors(self, options: SearchOptions) -> WordErrors:
        """What a search of these options makes of the utterances."""
        scored = []
        for batch in self.batches:
            if options.method == "greedy":
                found, _ = greedy_decode(self.runtime, batch.frames, batch.lengths, options=options)
            else:
                nbest, _ = beam_decode(self.runtime, batch.frames, batch.lengths, options=replace(options, nbest=1))
                found = [best for (best,) in nbest]
            for name, text, emitted in zip(batch.ids, batch.texts, found, strict=True):
                scored.append(align(name, text, self.tokenizer.decode(emitted.tokens)))
        return WordErrors(tuple(scored))


def try_weights(
    encoded: Encoded,
    options: SearchOptions,
    lm_scales: Sequence[float],
    blank_penalties: Sequence[float],
    notes: Path,
) -> Iterator[Point]:
    """Every pair of weights, each as soon as it is known.

    Args:
        options: of the search; its own weights are replaced.
        notes: file of JSON lines in which what was found is kept: what stands there for the same model, frames,
            texts and options is not searched again.
    """
    known = _read(notes)
    for lm_scale in lm_scales:
        for blank_penalty in blank_penalties:
            chosen = replace(options, lm_scale=lm_scale, blank_penalty=blank_penalty)
            key = json.dumps([encoded.fingerprint, chosen.describe()], sort_keys=True)
            if key not in known:
                first = encoded.errors(chosen).first
                counts = first.substitutions, first.deletions, first.insertions
                point = Point(lm_scale, blank_penalty, first.wer, first.interval, *counts)
                notes.parent.mkdir(parents=True, exist_ok=True)
                with notes.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, **point._asdict()}) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                known[key] = point
            yield known[key]


def best(points: Sequence[Point]) -> Point:
    """Of fewest errors; of equal ones that whose weights change least."""
    return min(points, key=lambda point: (point.rate, point.lm_scale, abs(point.blank_penalty)))


def table(points: Sequence[Point]) -> str:
    """Rates in % as a Markdown table: a row for each scale of the language model, a column for each blank penalty."""
    scales, penalties = (sorted({getattr(point, name) for point in points}) for name in ("lm_scale", "blank_penalty"))
    of = {(point.lm_scale, point.blank_penalty): point for point in points}
    fewest = best(points)
    lines = [
        "| lm scale | " + " | ".join(f"blank penalty {penalty:g}" for penalty in penalties) + " |",
        "|--:|" + "--:|" * len(penalties),
    ]
    for scale in scales:
        cells = []
        for penalty in penalties:
            point = of.get((scale, penalty))
            bold = "**" if point == fewest else ""
            cells.append("" if point is None else f"{bold}{100 * point.rate:.2f}{bold}")
        lines.append(f"| {scale:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _read(notes: Path) -> dict[str, Point]:
    found = {}
    with suppress(FileNotFoundError):
        for line in notes.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, TypeError, KeyError):  # half a line of a run that was killed
                values = json.loads(line)
                key, interval = values.pop("key"), values.pop("interval")
                found[key] = Point(interval=None if interval is None else tuple(interval), **values)
    return found
