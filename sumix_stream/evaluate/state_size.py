"""Bytes that a stream keeps of its past, by model, mixer and left context: measured on streams, not on paper."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sumix_stream.config import PRESETS
from sumix_stream.context import ChunkContext
from sumix_stream.streaming.stream import Stream, StreamingRecognizer
from sumix_stream.tasks.build import build_model
from sumix_stream.tokenizer import BLANK_PIECE, PieceTokenizer

MIXERS = ("summary", "attention")
LEFT_CONTEXTS = (None, 4, 32)  # chunks
CHUNK_SIZE = 16  # encoder frames: 640 ms
HOUR = 3600.0  # seconds


@dataclass(frozen=True)
class StateSize:
    """Of one stream under one context, just before a chunk is complete: the most that it ever holds."""

    preset: str
    mixer: str
    context: ChunkContext
    encoder: int  # bytes, once a chunk has been heard
    rest: int  # bytes: search, remainder of the filter bank, feature frames of the chunk that is not full yet
    growth: float  # bytes for each second of audio

    def total(self, seconds: float = 0.0) -> int:
        """Bytes after so many seconds more."""
        return round(self.encoder + self.rest + self.growth * seconds)


def state_sizes(
    presets: Iterable[str] = ("tiny", "small", "large"), left_contexts: Sequence[int | None] = LEFT_CONTEXTS
) -> list[StateSize]:
    """Streams of untrained models; the size of the vocabulary and the weights do not matter.

    Raises ValueError for an unknown preset.
    """
    found = []
    for preset in presets:
        if preset not in PRESETS:
            raise ValueError(f"presets must be of {', '.join(PRESETS)}, got {preset!r}")
        for mixer in MIXERS:
            config = PRESETS[preset]
            model = build_model(replace(config, encoder=replace(config.encoder, mixer=mixer)), vocab_size=2)
            for left in left_contexts:
                context = ChunkContext(CHUNK_SIZE, left)
                recognizer = StreamingRecognizer(model, PieceTokenizer([BLANK_PIECE, "a"]), context)
                found.append(_measure(recognizer, preset, mixer))
    return found


def _measure(recognizer: StreamingRecognizer, preset: str, mixer: str) -> StateSize:
    timebase, stream = recognizer.timebase, recognizer.create_stream()
    chunk = CHUNK_SIZE * timebase.encoder_frame_samples
    _hear(stream, 2 * chunk - timebase.frame_shift)
    total, encoder = stream.state_nbytes, recognizer.runtime.nbytes(stream.encoder)
    _hear(stream, chunk)
    growth = (recognizer.runtime.nbytes(stream.encoder) - encoder) / (chunk / timebase.sample_rate)
    return StateSize(preset, mixer, recognizer.context, encoder, total - encoder, growth)


def _hear(stream: Stream, num_samples: int) -> None:
    recognizer = stream.recognizer
    stream.accept(recognizer.timebase.sample_rate, np.zeros(num_samples, np.float32))
    while recognizer.decode([stream]):
        pass


def table(sizes: Sequence[StateSize]) -> str:
    """Markdown: a row for each preset and left context, SummaryMixing beside attention."""
    head = ("model", "left context", "SummaryMixing: encoder", "stream", "attention: encoder", "stream", "times")
    lines = [f"| {' | '.join(head)} |", "|---|---|--:|--:|--:|--:|--:|"]
    by_mixer = {mixer: [size for size in sizes if size.mixer == mixer] for mixer in MIXERS}
    for ours, twin in zip(*by_mixer.values(), strict=True):
        assert (ours.preset, ours.context) == (twin.preset, twin.context), (ours, twin)
        left = "unlimited" if ours.context.left_context is None else f"{ours.context.left_context} chunks"
        seconds = HOUR if twin.growth else 0.0
        encoder = f"{twin.encoder:,}" + (f" + {twin.growth:,.0f} a second" if seconds else "")
        stream = f"{twin.total(seconds):,}" + (" after an hour" if seconds else "")
        cells = (ours.preset, left, f"{ours.encoder:,}", f"{ours.total():,}", encoder, stream)
        lines.append(f"| {' | '.join(cells)} | {twin.total(seconds) / ours.total():,.1f} |")
    return "\n".join(lines) + "\n"
