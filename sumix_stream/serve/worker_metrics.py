"""Metrics of a worker process, which the network's process keeps for all."""

from __future__ import annotations


class Counted:
    """What a metric is told in a worker, for the network's process to tell the real one."""

    def __init__(self, name: str, counts: list, labels: dict[str, str] | None = None) -> None:
        self._name, self._counts, self._labels = name, counts, labels

    def labels(self, **labels: str) -> Counted:
        return Counted(self._name, self._counts, labels)

    def inc(self, value: float = 1.0) -> None:
        self._counts.append((self._name, self._labels, "inc", value))

    def observe(self, value: float) -> None:
        self._counts.append((self._name, self._labels, "observe", value))


class WorkerMetrics:
    """The metrics that a worker keeps; what they are told is appended to `counts`."""

    def __init__(self, counts: list) -> None:
        for name in ("audio", "latency", "second_pass", "step", "batch", "errors"):
            setattr(self, name, Counted(name, counts))
