"""ARPA files as n-gram toolkits write them.

The format is read as KenLM reads it: what SRILM, OpenGrm and pocolm do differently is repaired and told to the log,
once a kind, so that a model that works elsewhere works here.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
NEVER = -100.0  # log10 probability of what a file has neither a probability nor <unk> for, as in KenLM
_ROUNDING = 1e-3  # a log10 probability so little above 0 is 0
_MISCOUNTED = 0.01  # share of n-grams by which a head may be wrong; more is damage
_MISCOUNTED_LEAST = 2  # n-grams
log = logging.getLogger(__name__)

Ngrams = dict[tuple[str, ...], tuple[float, float]]  # words -> (log10 probability, log10 backoff weight)


class ArpaError(ValueError):
    """An ARPA file that cannot be used; the message names file and line."""


def read_arpa(path: str | os.PathLike) -> list[Ngrams]:
    """The n-grams of a file, by order. Raises ArpaError naming the line for what is not ARPA format."""
    path, told = Path(path), Counter()
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as file
        ):
            orders = _parse(_numbered(file), path, told)
    except FileNotFoundError:
        raise ArpaError(f"{path}: no such language model") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ArpaError(
            f"{path}: cannot be read ({error}); it must be an ARPA file in UTF-8, or that in gzip"
        ) from None
    if missing := add_missing_contexts(orders):
        told[f"{missing} contexts of longer n-grams are no n-grams themselves: they count as backed off to"] += 1
    for what in told:
        log.warning("%s: %s", path, what)
    return orders


def add_missing_contexts(orders: list[Ngrams]) -> int:
    """Add the contexts that n-grams have and the model has not, as KenLM does: SRILM prunes them. How many.

    Each has the probability that the model gives it by backing off, and no backoff weight of its own. A single word is
    never added: that is another fault.
    """
    added: list[tuple[str, ...]] = []
    for order in range(len(orders) - 1, 1, -1):  # n-grams of `order` + 1 words have contexts of `order`
        known = orders[order - 1]
        for words in [words for words in orders[order] if words[:-1] not in known]:
            if words[:-1] not in known:
                known[words[:-1]] = (math.nan, 0.0)
                added.append(words[:-1])

    def log_prob(words: tuple[str, ...]) -> float:
        found = orders[len(words) - 1].get(words)
        if found is not None and not math.isnan(found[0]):
            return found[0]
        if len(words) == 1:
            return orders[0].get((UNKNOWN,), (NEVER, 0.0))[0]
        _, backoff = orders[len(words) - 2].get(words[:-1], (0.0, 0.0))
        return max(backoff + log_prob(words[1:]), NEVER)

    for words in sorted(added, key=len):
        orders[len(words) - 1][words] = (log_prob(words), 0.0)
    return len(added)


def _numbered(file: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, blank ones left out."""
    for number, line in enumerate(file, 1):
        if line := line.strip():
            yield number, line


def _parse(lines: Iterator[tuple[int, str]], path: Path, told: Counter) -> list[Ngrams]:
    number, line = next(lines, (0, ""))
    while line and line != "\\data\\":
        number, line = next(lines, (0, ""))
    if not line:
        raise ArpaError(f"{path}: no \\data\\ section: this is no ARPA file")
    counts: list[int] = []
    for number, line in lines:
        match = re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line)
        if match is None:
            break
        if int(match[1]) != len(counts) + 1:
            raise ArpaError(f"{path}:{number}: expected the count of order {len(counts) + 1}, got {line!r}")
        counts.append(int(match[2]))
    if not counts:
        raise ArpaError(f"{path}:{number}: expected `ngram 1=...`, got {line!r}")
    orders: list[Ngrams] = []
    for order, count in enumerate(counts, 1):
        if line == "\\end\\" and not any(counts[order - 1 :]):
            told[f"no {order}-grams, as its head says: order {order - 1}"] += 1
            break
        if line != f"\\{order}-grams:":
            raise ArpaError(f"{path}:{number}: expected \\{order}-grams:, got {line!r}")
        ngrams: Ngrams = {}
        for number, line in lines:
            if line.startswith("\\") and line.endswith((":", "\\")) and " " not in line and "\t" not in line:
                break
            words, values = _ngram(line, order, path, number, told)
            ngrams[words] = values
        if abs(len(ngrams) - count) > max(_MISCOUNTED_LEAST, _MISCOUNTED * count):
            raise ArpaError(f"{path}: {len(ngrams)} {order}-grams, but its head says {count}: it is damaged")
        if len(ngrams) != count:
            told[f"{len(ngrams)} {order}-grams, but its head says {count}"] += 1
        orders.append(ngrams)
    if line != "\\end\\":
        raise ArpaError(f"{path}: no \\end\\: it is cut short")
    return orders


def _ngram(
    line: str, order: int, path: Path, number: int, told: Counter
) -> tuple[tuple[str, ...], tuple[float, float]]:
    parts = line.split()
    words = tuple(parts[1 : order + 1])
    try:
        log_prob, backoff = float(parts[0]), float(parts[order + 1]) if len(parts) > order + 1 else 0.0
    except ValueError:
        log_prob = backoff = math.nan
    if len(words) < order or len(parts) > order + 2 or not log_prob <= _ROUNDING or not backoff < math.inf:
        raise ArpaError(f"{path}:{number}: expected a log10 probability and {order} words, got {line!r}")
    if log_prob > 0:
        told["probabilities a little above 1 count as 1"] += 1
    if backoff < NEVER:
        told[f"backoff weights of -inf count as {NEVER:g}"] += 1
    if "<UNK>" in words:
        told["<UNK> is read as <unk>"] += 1
        words = tuple(UNKNOWN if word == "<UNK>" else word for word in words)
    return words, (min(max(log_prob, NEVER), 0.0), max(backoff, NEVER))
