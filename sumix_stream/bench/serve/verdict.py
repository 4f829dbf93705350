"""From what the clients saw to figures, and to whether the server kept up with them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from sumix_stream.bench.serve.clients import Measured

QUANTILES = (50, 95, 99)
MAX_GROWTH = 0.25  # of the bound: how much the median latency may rise from the first third to the last
RESOLUTION = 16  # the search ends when the two sides are within a sixteenth


def quantiles(latencies: Sequence[tuple[float, float]]) -> dict[int, float]:
    """Percent -> milliseconds that so many of the latencies do not exceed; nan without any."""
    values = [1e3 * latency for _, latency in latencies] or [float("nan")]
    return {q: float(np.percentile(values, q, method="higher")) for q in QUANTILES}


def growth_seconds(latencies: Sequence[tuple[float, float]]) -> float:
    """How much longer the median result takes in the last third of the measured time than in the first."""
    ordered = [latency for _, latency in sorted(latencies)]
    third = len(ordered) // 3
    return float(np.median(ordered[-third:]) - np.median(ordered[:third])) if third else 0.0


def shortfalls(
    measured: Measured, references: Sequence[str], bound_seconds: float, tolerance: float = 0.0
) -> list[str]:
    """Why these streams were not all held in real time; none if they were.

    Args:
        references: each utterance's text, recognised alone.
        bound_seconds: that the 99th percentile of chunk latency may have.
        tolerance: share of a text's words that may differ.
    """
    found = []
    if measured.gave_up:
        found.append("results fell far behind, measuring was given up")
    if not measured.chunks:
        found.append("no result was due in the measured time")
    elif quantiles(measured.chunks)[99] > 1e3 * bound_seconds:
        found.append(f"p99 chunk latency over {bound_seconds:g} s")
    if (growth := growth_seconds(measured.chunks)) > MAX_GROWTH * bound_seconds:
        found.append(f"the median latency rises, by {growth:.2f} s from the first third to the last")
    if measured.num_overdue:
        found.append(f"{measured.num_overdue} results had not come at the end")
    found += [f"{count} streams ended early ({reason})" for reason, count in sorted(measured.faults.items())]
    if wrong := num_wrong(measured, references, tolerance):
        found.append(f"{wrong} texts differ from those recognised alone")
    return found


def num_wrong(measured: Measured, references: Sequence[str], tolerance: float = 0.0) -> int:
    """Streams whose text is not that of the same utterance recognised alone, but for a share of its words."""
    if not tolerance:
        return sum(text != references[utterance] for utterance, text in measured.texts)
    return sum(word_error_rate([references[utterance]], [text]) > tolerance for utterance, text in measured.texts)


def word_error_rate(references: Sequence[str], texts: Sequence[str]) -> float:
    """Substituted, missing and additional words of texts, as a fraction of the references' (of one, if they have none);
    Levenshtein's distance."""
    errors = sum(_distance(one.split(), other.split()) for one, other in zip(references, texts, strict=True))
    return errors / max(1, sum(len(one.split()) for one in references))


def _distance(reference: Sequence[str], words: Sequence[str]) -> int:
    costs = list(range(len(words) + 1))
    for row, expected in enumerate(reference, 1):
        diagonal, costs[0] = costs[0], row
        for column, word in enumerate(words, 1):
            cheapest = min(costs[column] + 1, costs[column - 1] + 1, diagonal + (word != expected))
            diagonal, costs[column] = costs[column], cheapest
    return costs[-1]


def figures(
    measured: Measured, references: Sequence[str], bound_seconds: float, tolerance: float = 0.0
) -> dict[str, Any]:
    """A row of the tables: latencies in ms, memory in MB (10^6 bytes), processor time in % of one core."""
    row: dict[str, Any] = {"clients": measured.clients}
    row |= {f"chunk_ms_p{q}": value for q, value in quantiles(measured.chunks).items()}
    row |= {f"final_ms_p{q}": value for q, value in quantiles(measured.finals).items()}
    reasons = shortfalls(measured, references, bound_seconds, tolerance)
    return row | {
        "chunks": len(measured.chunks),
        "finals": len(measured.finals),
        "streams_compared": len(measured.texts),
        "texts_wrong": num_wrong(measured, references, tolerance),
        "growth_ms": 1e3 * growth_seconds(measured.chunks),
        "server_cpu_percent": 100 * measured.server_cpu,
        "server_cpu_ms_per_chunk": 1e3 * measured.server_cpu * measured.seconds / max(1, len(measured.chunks)),
        "server_rss_mb": float(np.median(measured.server_rss)) / 1e6 if measured.server_rss else float("nan"),
        "server_pss_mb": float("nan") if measured.server_pss is None else measured.server_pss / 1e6,
        "client_cpu_percent": 100 * measured.client_cpu,
        "client_late_ms_p99": quantiles([(0.0, late) for late in measured.lateness])[99],
        "seconds": measured.seconds,
        "real_time": "no" if reasons else "yes",
        "note": "; ".join(reasons),
    }


def searching(start: int, most: int) -> Generator[int, bool, int]:
    """The search for the largest number of streams that is held: it yields numbers to try, is sent whether each was
    held, and returns the largest that was; 0 for none.

    From `start` by quarters up or down to the first change, then by bisection. Every answer is taken as it is, and no
    number is tried twice; the result is within a sixteenth of a number that is not held, or of `most`, above which
    none is tried.
    """
    low, high = 0, most + 1
    number = min(max(1, start), most)
    while high - low > max(1, low // RESOLUTION):
        if (yield number):
            low = number
        else:
            high = number
        if high > most:
            number = min(max(low + 1, low * 5 // 4), most)
        elif low == 0:
            number = min(high - 1, high * 4 // 5)
        else:
            number = (low + high) // 2
    return low


def paired_ratios(ours: Sequence[int], theirs: Sequence[int]) -> list[float]:
    """Of the streams that two servers held in each repetition; none where the other held none."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True) if other]


def rss_per_stream(rows: Sequence[dict[str, Any]]) -> float | None:
    """MB (10^6 bytes) a stream: the slope of the server's memory over streams, of rows taken in ascending order from a
    fresh server; None for fewer than two numbers of streams."""
    points = [(row["clients"], row["server_rss_mb"]) for row in rows]
    if len({clients for clients, _ in points}) < 2:
        return None
    return float(np.polyfit(*zip(*points), 1)[0])
