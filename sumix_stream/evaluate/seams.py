"""What is lost or doubled where a stream is cut: utterances committed at random times, and their pieces joined."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sumix_stream.evaluate.scoring import WordErrors, align
from sumix_stream.streaming.stream import StreamingRecognizer

if TYPE_CHECKING:
    from sumix_stream.data.manifests import Utterance


class Seams(NamedTuple):
    """Errors of the pieces joined, and of the same utterances without a cut."""

    word_errors: WordErrors
    uncut: WordErrors
    num_commits: int

    def summary(self) -> str:
        return f"{self.num_commits} commits: {self.word_errors.summary()}\nwithout: {self.uncut.summary()}"


def committed_at_random(
    streaming: StreamingRecognizer, utterances: Iterable["Utterance"], every: float, seed: int = 0
) -> Seams:
    """Decode each utterance twice: in one piece, and committed at random times, `every` seconds apart on the average.

    Raises ValueError for an average that is not above 0.
    """
    if not every > 0:
        raise ValueError(f"commits must be more than 0 seconds apart, got {every:g}")
    rate, rng = streaming.timebase.sample_rate, np.random.default_rng(seed)
    cut, uncut, num_commits = [], [], 0
    for utterance in utterances:
        samples, stream, texts, start = utterance.samples, streaming.create_stream(), [], 0
        while (end := start + round(rng.uniform(0.5, 1.5) * every * rate)) < len(samples):
            stream.feed(rate, samples[start:end])
            texts.append(stream.commit().text)
            num_commits, start = num_commits + 1, end
        stream.feed(rate, samples[start:])
        texts.append(stream.finish().text)
        whole = streaming.create_stream()
        whole.feed(rate, samples)
        cut.append(align(utterance.id, utterance.text, " ".join(filter(None, texts))))
        uncut.append(align(utterance.id, utterance.text, whole.finish().text))
    return Seams(WordErrors(tuple(cut)), WordErrors(tuple(uncut)), num_commits)
