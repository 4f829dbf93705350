"""How two servers are spoken to, ours and sherpa-onnx's, and which chunks their answers tell of.

A chunk is C encoder frames. Both servers say when a chunk has been recognised: ours by `decoded`, the stock server by
sending one result for each chunk of each stream, whether or not its text has changed.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod

import numpy as np

from sumix_stream.serve import protocol
from sumix_stream.timebase import Timebase


class Listener(ABC):
    """What one stream has been told so far."""

    num_chunks = 0  # recognised
    is_final = False  # the last result is here
    fault: str | None = None  # the server gave up, and why

    @abstractmethod
    def hear(self, message: str) -> None:
        """Take a message of the server."""

    @property
    @abstractmethod
    def text(self) -> str:
        """All that was recognised; complete once `is_final`."""


class ServerProtocol(ABC):
    """A server's protocol for streams of 16 kHz audio in chunks of `chunk_size` encoder frames."""

    name: str
    path: str
    extra_frames: int  # feature frames that must be there beyond a chunk before it is decoded

    def __init__(self, chunk_size: int, timebase: Timebase) -> None:
        self.timebase, self.chunk_size = timebase, chunk_size
        self.window = timebase.feature_frames_per_chunk(chunk_size)

    def needs(self, chunk: int) -> int:
        """Samples that must have come before chunk 0, 1, ... can be recognised."""
        frames = (chunk + 1) * self.window + self.extra_frames
        return frames * self.timebase.frame_shift + self.timebase.lookahead_samples

    def num_chunks(self, num_samples: int) -> int:
        """Chunks of an utterance, a last short one included."""
        return -(-self.timebase.num_feature_frames(num_samples) // self.window)

    @abstractmethod
    def opening(self) -> list[str]:
        """Messages before the audio."""

    @abstractmethod
    def packet(self, samples: np.ndarray) -> bytes:
        """A message of samples (S,), int16."""

    @abstractmethod
    def closing(self, num_samples: int) -> list[str | bytes]:
        """Messages after an utterance of so many samples."""

    @abstractmethod
    def listener(self, num_samples: int) -> Listener:
        """For one stream of an utterance of so many samples."""


class Ours(ServerProtocol):
    """PROTOCOL.md, with 16-bit samples."""

    name, path, extra_frames = "ours", protocol.PATH, 0

    def opening(self) -> list[str]:
        return [protocol.dump(type="start", sample_rate=self.timebase.sample_rate, format="s16le")]

    def packet(self, samples: np.ndarray) -> bytes:
        return samples.astype("<i2").tobytes()

    def closing(self, num_samples: int) -> list[str | bytes]:
        return [protocol.dump(type="end")]

    def listener(self, num_samples: int) -> Listener:
        return _OurListener(self.timebase.encoder_frame_time(self.chunk_size))


class _OurListener(Listener):
    def __init__(self, chunk_seconds: float) -> None:
        self._chunk_seconds = chunk_seconds
        self._finals: list[str] = []

    def hear(self, message: str) -> None:
        content = json.loads(message)
        kind = content["type"]
        if "decoded" in content:
            self.num_chunks = math.floor(content["decoded"] / self._chunk_seconds + 1e-3)  # it is rounded to 1 ms
        if kind == "final":
            self._finals.append(content["text"])
        elif kind == "done":
            self.is_final = True
        elif kind == "error":
            self.fault = content["code"]

    @property
    def text(self) -> str:
        return " ".join(text for text in self._finals if text)


class Stock(ServerProtocol):
    """sherpa-onnx-online-websocket-server: float samples, `Done`, one result a chunk.

    It drops the part of a chunk that is left at the end, so zeros fill it up, as its own clients do.
    """

    name, path, extra_frames = "sherpa-onnx", "/", 1

    def opening(self) -> list[str]:
        return []

    def packet(self, samples: np.ndarray) -> bytes:
        return (samples / np.float32(32768)).astype("<f4").tobytes()

    def closing(self, num_samples: int) -> list[str | bytes]:
        total = (self.num_chunks(num_samples) * self.window + self.extra_frames) * self.timebase.frame_shift
        return [self.packet(np.zeros(total - num_samples, np.int16)), "Done"]

    def listener(self, num_samples: int) -> Listener:
        return _StockListener(self.num_chunks(num_samples))


class _StockListener(Listener):
    """`Done!` comes from another thread than the results and may overtake the last: the results are counted."""

    def __init__(self, expected: int) -> None:
        self._expected, self._newest = expected, "{}"

    def hear(self, message: str) -> None:
        if message == "Done!":
            return
        self.num_chunks += 1
        self._newest = message
        self.is_final = self.num_chunks >= self._expected

    @property
    def text(self) -> str:
        return json.loads(self._newest).get("text", "").strip()
