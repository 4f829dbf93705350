"""One client's stream: audio, commits and an end go in; what happens comes out, as a protocol writes it.

Nothing here knows of sockets. The network's thread pushes, the engine's thread recognises and reports.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from sumix_stream.serve.chunk_buffer import ChunkBuffer
from sumix_stream.serve.events import Event, Failed, Happened
from sumix_stream.serve.options import DEFAULTS, StreamOptions
from sumix_stream.serve.transcript import Transcript
from sumix_stream.serve.turns import Credit

if TYPE_CHECKING:
    from sumix_stream.serve.engine import Engine
    from sumix_stream.streaming.second_pass import Final
    from sumix_stream.streaming.stream import Stream
    from sumix_stream.timebase import Timebase

MOST_COMMITS = 64  # that may wait for the engine
MOST_AWAITED = 2  # segments that may wait for their second pass; until then the stream stands still
Write = Callable[[Happened], Event | None]
Report = Callable[[list[Event]], None]


class Awaited:
    """A segment that is being heard again: what happens after it is reported after it."""

    def __init__(self, tell: Callable[[Final], Happened]) -> None:
        self.tell = tell
        self.since = time.monotonic()
        self.final: Final | Exception | None = None


class Session:
    """What the engine knows of a stream.

    Audio waits until it completes a chunk, and then goes to the filter bank at once: packet by packet that would cost
    several times as much, and nothing comes of it any earlier.

    Args:
        report: called in the engine's thread with events, in order.
        options: of this stream.
        write: what a client is told of what happens; None = nothing of this.
    """

    def __init__(
        self, engine: Engine, sample_rate: int, report: Report, options: StreamOptions = DEFAULTS, *, write: Write
    ) -> None:
        self.engine, self.sample_rate, self.report = engine, sample_rate, report
        self.options, self.write = options, write
        self.recognizer = engine.recognizer_of(options)
        self.num_taken = 0  # samples that the stream has got
        chunk_size = self.recognizer.context.chunk_size
        self.wanted = missing_samples(self.recognizer.timebase, chunk_size, sample_rate)  # that complete the next chunk
        self._buffer = ChunkBuffer(sample_rate)  # pieces of a second: nobody's turn is long
        self._commits: deque[int] = deque()  # numbers of samples before them
        self._ended = self.closed = False
        self.fault: Failed | None = None  # that ends the stream once all is said
        self.stream: Stream | None = None  # made by the engine's thread
        self.transcript = Transcript(self.recognizer.tokenizer, self.recognizer.timebase)
        self.segment = 0
        self.arrival = 0.0  # of the newest audio that the stream has got
        self.finishing = False  # the stream knows that its input is finished
        self.finished = False  # the last segment has ended
        self.num_commits = 0  # that were seen to
        self.committed = 0  # samples before the last commit
        self.credit = Credit(engine.turns.clock())
        self.speaking = False
        self.quiet_since = 0  # encoder frame
        self.held: deque[Happened | Awaited] = deque()  # the first is a segment that is being heard again

    @property
    def num_pending(self) -> int:
        """Samples that wait for the engine."""
        return self._buffer.num_samples

    @property
    def pending_seconds(self) -> float:
        """Audio that waits for the engine."""
        return self.num_pending / self.sample_rate

    def push(self, samples: np.ndarray) -> None:
        """Hand over samples (S,); never waits."""
        arrival = time.monotonic()
        with self._lock:
            self._buffer.add(samples, arrival)
            enough = self.num_pending >= self.wanted
        if enough:
            self.engine.wake(self)

    def commit(self) -> bool:
        """Make what was said so far final, and go on; whether there was room for one more commit."""
        with self._lock:
            if len(self._commits) >= MOST_COMMITS:
                return False
            self._commits.append(self.num_taken + self.num_pending)
        self.engine.wake(self)
        return True

    def end(self, fault: Failed | None = None) -> None:
        """No more audio: the last results will be reported, and then `Done`, or a fault that ends the stream."""
        with self._lock:
            self._ended, self.fault = True, fault
        self.engine.wake(self)

    def close(self) -> None:
        """Forget this session; nothing more is reported."""
        self.engine.remove(self)

    def take(self) -> tuple[np.ndarray, float] | None:
        """Audio for the next chunk, none from beyond a commit, and when its end arrived; None while there is too little
        and more will come."""
        with self._lock:
            least = self.wanted
            if self._commits:
                least = min(least, self._commits[0] - self.num_taken)
            elif not (self._ended or self.num_pending >= least):
                return None
            if not self.num_pending or least <= 0:
                return None
            samples, arrival = self._buffer.take(least)
            self.num_taken += len(samples)
            return samples, arrival

    def take_commit(self) -> bool:
        """Whether the stream has got all audio before the next commit, which is then taken."""
        with self._lock:
            due = bool(self._commits) and self.num_taken >= self._commits[0]
            if due:
                self._commits.popleft()
                self.num_commits += 1
            return due

    @property
    def has_input(self) -> bool:
        """Whether there is something to be done."""
        with self._lock:
            if self.is_blocked:
                return False
            if self._commits:
                return True
            if self._ended:
                return self.num_pending > 0 or not self.finishing
            return self.num_pending >= self.wanted

    @property
    def is_blocked(self) -> bool:
        """Whether it waits for a second pass."""
        return sum(isinstance(one, Awaited) for one in self.held) >= MOST_AWAITED

    @property
    def is_over(self) -> bool:
        """All audio has been taken and the client has said that there is no more."""
        with self._lock:
            return self._ended and not self.num_pending and not self._commits

    @property
    def _lock(self) -> threading.RLock:
        return self.engine.lock

    def tell(self, *happened: Happened | Awaited) -> None:
        """Report what happened, after what is being heard again. In the engine's thread."""
        if self.held or any(isinstance(one, Awaited) for one in happened):
            self.held.extend(happened)
            self.release()
        else:
            self._send(list(happened))

    def release(self) -> None:
        """Report what waits for nothing any more."""
        ready: list[Happened] = []
        while self.held:
            first = self.held[0]
            if isinstance(first, Awaited):
                if first.final is None:
                    break
                first = first.tell(first.final)
            ready.append(first)
            self.held.popleft()
        self._send(ready)

    def _send(self, happened: list[Happened]) -> None:
        events = [event for one in happened if (event := self.write(one)) is not None]
        if events and not self.closed:
            self.report(events)
            if any(event.close_code is not None for event in events):
                self.close()


def missing_samples(timebase: Timebase, chunk_size: int, sample_rate: int, num_frames: int = 0) -> int:
    """Samples of `sample_rate` Hz, at least 1, that a stream lacks for a chunk when so many feature frames wait."""
    seconds = timebase.chunk_latency_seconds(chunk_size) - timebase.seconds(num_frames * timebase.frame_shift)
    return max(1, math.ceil(seconds * sample_rate))
