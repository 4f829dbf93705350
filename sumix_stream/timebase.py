"""Samples, feature frames, encoder frames and seconds: the only arithmetic between them.

A feature frame is one row of the filter bank (10 ms), an encoder frame is `subsampling` of them (40 ms). Counts may be
ints or integer tensors wherever the signature says `Count`; nothing here imports torch.
"""

import math
import re
from dataclasses import dataclass
from typing import TypeVar

Count = TypeVar("Count")  # an int or an integer tensor

_TOLERANCE = 1e-6  # a duration this near to a whole number of samples or frames is that number


def _is_whole(value: float) -> bool:
    return abs(value - round(value)) <= _TOLERANCE * max(1.0, abs(value))


def format_duration(seconds: float) -> str:
    """A duration as people write it: `640 ms`, `7.5 ms`, `2.5 s`."""
    return f"{seconds * 1000:.6g} ms" if seconds < 1 else f"{seconds:.6g} s"


def parse_duration(text: str) -> float:
    """Seconds of `640ms`, `0.64s` or `2 s`. Raises ValueError for anything else: a bare number has no unit."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s)", text.strip().lower(), re.ASCII)
    if parts is None:
        raise ValueError(f"a duration is a number with its unit, such as 640ms or 0.64s, got {text!r}")
    return float(parts[1]) / (1000 if parts[2] == "ms" else 1)


@dataclass(frozen=True)
class Timebase:
    """The clock of a model. `sample_rate` in Hz, `frame_shift` and `frame_length` in samples, `subsampling` in
    feature frames for each encoder frame."""

    sample_rate: int = 16_000
    frame_shift: int = 160
    frame_length: int = 400
    subsampling: int = 4

    def __post_init__(self) -> None:
        for name in ("sample_rate", "frame_shift", "frame_length", "subsampling"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.frame_length < self.frame_shift:
            raise ValueError(
                f"frame_length must be at least frame_shift ({self.frame_shift} samples), got {self.frame_length}"
            )

    @property
    def encoder_frame_samples(self) -> int:
        return self.frame_shift * self.subsampling

    @property
    def encoder_frame_seconds(self) -> float:
        return self.encoder_frame_samples / self.sample_rate

    @property
    def lookahead_samples(self) -> int:
        """Samples that the last feature frame of a block of frames reads beyond the block's end: windows are centred
        on their shift, so half of what is longer than the shift."""
        return self.frame_length - self.frame_shift - self.lookbehind_samples

    @property
    def lookbehind_samples(self) -> int:
        """Samples that feature frame f reads before sample `f * frame_shift`."""
        return self.frame_length // 2 - self.frame_shift // 2

    def seconds(self, num_samples: int) -> float:
        return num_samples / self.sample_rate

    def num_samples(self, seconds: float) -> int:
        """The number of samples nearest to a duration (ties away from zero)."""
        return math.floor(seconds * self.sample_rate + 0.5)

    def num_feature_frames(self, num_samples: Count) -> Count:
        """Kaldi's count with snip_edges=false: one frame for each shift, the last half shift rounded."""
        return (num_samples + self.frame_shift // 2) // self.frame_shift

    def num_encoder_frames(self, num_feature_frames: Count) -> Count:
        """ceil(num_feature_frames / subsampling): a short last group of feature frames makes a frame too."""
        return -(-num_feature_frames // self.subsampling)

    def feature_frames_per_chunk(self, chunk_size: int) -> int:
        """Feature frames that a chunk of `chunk_size` encoder frames consumes."""
        return chunk_size * self.subsampling

    def encoder_frames(self, duration_seconds: float) -> int:
        """A chunk's duration in encoder frames.

        Raises ValueError, naming the nearest durations that would do, unless it is a whole number of at least one.
        """
        if not math.isfinite(duration_seconds) or duration_seconds <= 0:
            raise ValueError(f"a duration must be finite and above 0 s, got {duration_seconds} s")
        frames = duration_seconds * self.sample_rate / self.encoder_frame_samples
        if _is_whole(frames) and round(frames) >= 1:
            return round(frames)
        below, above = math.floor(frames), math.floor(frames) + 1
        nearest = [format_duration(self.encoder_frame_time(n)) for n in (below, above) if n >= 1]
        raise ValueError(
            f"{format_duration(duration_seconds)} is not a whole number of encoder frames of "
            f"{format_duration(self.encoder_frame_seconds)}; the nearest are {' and '.join(nearest)}"
            if len(nearest) == 2
            else f"{format_duration(duration_seconds)} is shorter than an encoder frame; the nearest is {nearest[0]}"
        )

    def encoder_frame_time(self, frame: int) -> float:
        """Start of an encoder frame, in seconds from the start of the utterance."""
        return frame * self.encoder_frame_samples / self.sample_rate

    def chunk_latency_seconds(self, chunk_size: int | None) -> float:
        """Algorithmic latency: the age of a chunk's first sample when its last feature frame can be computed.

        The chunk itself and the filter bank's look-ahead; infinite for the whole utterance (None)."""
        if chunk_size is None:
            return math.inf
        return self.seconds(chunk_size * self.encoder_frame_samples + self.lookahead_samples)
