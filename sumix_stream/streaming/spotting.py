"""Keywords in a stream: a score for each label after every chunk, and events where one is high enough.

A score is the classifier's probability by the mean of the last `window` seconds, which a running summary keeps; it is
the one that the whole recording would give for that chunk. W feature frames of a chunk, V labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from sumix_stream.features import NUM_BINS
from sumix_stream.labels import NONE, LabelError, Labels
from sumix_stream.streaming.feature_queue import FeatureQueue
from sumix_stream.timebase import Timebase


class Event(NamedTuple):
    """A keyword that was heard: `time` in seconds from the stream's beginning to the end of the chunk that told it."""

    label: str
    time: float
    score: float


class Scores(NamedTuple):
    """After one chunk: `time` in seconds at its end, and the probabilities (V,) of all labels."""

    time: float
    probabilities: np.ndarray


@dataclass(frozen=True)
class SpotOptions:
    """When a score is an event. `threshold` is a probability; `refractory` and `window` are seconds."""

    threshold: float = 0.5  # lower: fewer misses, more false alarms
    refractory: float = 1.0  # after an event, during which its label gives no other
    window: float = 1.0  # of which the frames are averaged; rounded up to whole chunks
    words: tuple[str, ...] = ()  # labels that are events; empty: all but `none` and those in underscores

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"--threshold must be above 0 and at most 1 (a probability), got {self.threshold}")
        if not self.refractory >= 0:
            raise ValueError(f"--refractory must be 0 seconds or more, got {self.refractory}")
        if not self.window > 0:
            raise ValueError(f"--window must be above 0 seconds, got {self.window}")


class Steps(Protocol):
    """Who computes a chunk: PyTorch's modules, or an exported graph."""

    timebase: Timebase
    window: int  # feature frames of a chunk

    def begin(self) -> Any:
        """The state of a stream that has not begun."""

    def step(self, feats: np.ndarray, state: Any, final: bool) -> tuple[np.ndarray, int, Any]:
        """One chunk, feats (n <= W, 80): probabilities (V,), encoder frames, and the next state."""


class Spotter:
    """Opens streams in which keywords are spotted.

    Raises:
        LabelError: a word is none of the labels, or there are several sets of them.
    """

    def __init__(self, steps: Steps, labels: Labels, options: SpotOptions) -> None:
        if len(labels.sets) != 1:
            raise LabelError(
                f"{labels.source} has the sets {', '.join(labels.sets)}: keywords are of one set; --whole classifies "
                "whole recordings by several"
            )
        (self.labels,) = labels.sets.values()
        self.steps, self.options = steps, options
        for word in options.words:
            if fault := labels.fault(word):
                raise LabelError(f"--words: {word!r} {fault}")
        usual = [label for label in self.labels if label != NONE and not (label[0] == label[-1] == "_")]
        self.words = options.words or tuple(usual)

    def stream(self) -> SpotStream:
        return SpotStream(self)


class SpotStream:
    """One recording or microphone. `feed` it samples; the events so far are in what it returns."""

    def __init__(self, spotter: Spotter) -> None:
        self.spotter = spotter
        self._queue = FeatureQueue(spotter.steps.timebase.sample_rate)
        self._state, self._num_frames = spotter.steps.begin(), 0
        self._last: dict[str, float] = {}  # of each word, the time of its last event

    def feed(self, sample_rate: int, samples: np.ndarray) -> list[Event]:
        """Samples (S,) of any number, float32 in [-1, 1]: the events that they complete."""
        return [event for scores in self.scores(sample_rate, samples) for event in self.events(scores)]

    def finish(self) -> list[Event]:
        """The end of the stream: the events of what is left."""
        return [event for scores in self.last_scores() for event in self.events(scores)]

    def scores(self, sample_rate: int, samples: np.ndarray) -> list[Scores]:
        """As `feed`, the scores of each chunk instead of events."""
        self._queue.accept(sample_rate, samples)
        found = []
        # A whole chunk may be the last, of which the encoder is told: it waits for a frame beyond it.
        while self._queue.num_frames > self.spotter.steps.window:
            found.append(self._step(self.spotter.steps.window, final=False))
        return found

    def last_scores(self) -> list[Scores]:
        """As `finish`, the scores."""
        self._queue.finish()
        found = []
        while self._queue.num_frames:
            num_frames = min(self._queue.num_frames, self.spotter.steps.window)
            found.append(self._step(num_frames, final=num_frames == self._queue.num_frames))
        return found

    def events(self, scores: Scores) -> list[Event]:
        """Words whose score reaches the threshold, and which had no event within the refractory time."""
        options, found = self.spotter.options, []
        for label, score in zip(self.spotter.labels, scores.probabilities.tolist(), strict=True):
            if label not in self.spotter.words or score < options.threshold:
                continue
            if label in self._last and scores.time - self._last[label] < options.refractory - 1e-9:
                continue
            self._last[label] = scores.time
            found.append(Event(label, scores.time, score))
        return found

    def _step(self, num_frames: int, final: bool) -> Scores:
        steps = self.spotter.steps
        feats = self._queue.peek(num_frames).reshape(-1, NUM_BINS)
        self._queue.drop(num_frames)
        probabilities, frames, self._state = steps.step(feats, self._state, final)
        self._num_frames += frames
        return Scores(round(steps.timebase.encoder_frame_time(self._num_frames), 6), probabilities)


def detections(tracks: Sequence[Sequence[Scores]], column: int, threshold: float, refractory: float) -> int:
    """Events of one label (its `column`) in several recordings at a threshold: false alarms, where it is not said."""
    count = 0
    for track in tracks:
        last = -np.inf
        for time, probabilities in track:
            if probabilities[column] >= threshold and time - last >= refractory - 1e-9:
                last, count = time, count + 1
    return count
