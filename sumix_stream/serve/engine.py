"""The one thread that recognises: it batches whatever streams are ready, and no fault of one reaches another."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

from sumix_stream.serve import protocol
from sumix_stream.serve.chunk_buffer import ChunkBuffer
from sumix_stream.serve.metrics import Metrics
from sumix_stream.serve.protocol import INTERNAL, ProtocolError
from sumix_stream.serve.transcript import Transcript
from sumix_stream.serve.turns import Credit, Turns
from sumix_stream.streaming.stream import Stream, StreamingRecognizer

_LATE_SECONDS = 5.0  # of one turn, after which /health says that nothing is recognised

_log = logging.getLogger(__name__)


class EventKind(str, Enum):
    """All but AUDIO_ACCEPTED are messages of the protocol."""

    READY = "ready"
    PARTIAL = "partial"
    PROGRESS = "progress"
    FINAL = "final"
    DONE = "done"
    ERROR = "error"
    AUDIO_ACCEPTED = "audio_accepted"  # the stream has got audio that waited: there is room for more


class Event(NamedTuple):
    """Something for a session's client."""

    kind: EventKind
    text: str = ""
    close_code: int | None = None  # after the message, the connection ends


class Session:
    """One client's stream. The network's thread pushes, the engine's thread recognises and reports.

    Audio waits until it completes a chunk, and then goes to the filter bank at once: packet by packet that would cost
    several times as much, and nothing comes of it any earlier.

    Args:
        report: called in the engine's thread with events, in order.
    """

    def __init__(self, engine: Engine, sample_rate: int, report: Callable[[list[Event]], None]) -> None:
        self.engine, self.sample_rate, self.report = engine, sample_rate, report
        self.num_taken = 0  # samples that the stream has got
        self.wanted = missing_samples(engine.recognizer, None, sample_rate)  # that complete the next chunk
        self._buffer = ChunkBuffer(sample_rate)  # pieces of a second: nobody's turn is long
        self._ended = self.closed = False
        self.stream: Stream | None = None  # made by the engine's thread
        self.transcript = Transcript(engine.recognizer.tokenizer, engine.recognizer.timebase)
        self.segment = 0
        self.arrival = 0.0  # of the newest audio that the stream has got
        self.finishing = False  # the stream knows that its input is finished
        self.credit = Credit(engine.turns.clock())

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
        with self.engine.lock:
            self._buffer.add(samples, arrival)
            enough = self.num_pending >= self.wanted
        if enough:
            self.engine.wake(self)

    def end(self) -> None:
        """No more audio: the last results and `done` will be reported."""
        with self.engine.lock:
            self._ended = True
        self.engine.wake(self)

    def close(self) -> None:
        """Forget this session; nothing more is reported."""
        self.engine.remove(self)

    def take(self) -> tuple[np.ndarray, float] | None:
        """Audio for the next chunk and when its end arrived; None while there is too little and more will come."""
        with self.engine.lock:
            if not self.num_pending or not (self.num_pending >= self.wanted or self._ended):
                return None
            samples, arrival = self._buffer.take(self.wanted)
            self.num_taken += len(samples)
            return samples, arrival

    @property
    def has_input(self) -> bool:
        with self.engine.lock:
            if self._ended:
                return self.num_pending > 0 or not self.finishing
            return self.num_pending >= self.wanted

    @property
    def is_over(self) -> bool:
        """All audio has been taken and the client has said that there is no more."""
        with self.engine.lock:
            return self._ended and not self.num_pending


def missing_samples(recognizer: StreamingRecognizer, stream: Stream | None, sample_rate: int) -> int:
    """Samples of `sample_rate` Hz, at least 1, that a stream (None = a new one) lacks for a chunk."""
    timebase, chunk_size = recognizer.timebase, recognizer.context.chunk_size
    waiting = 0 if stream is None else stream.features.num_frames * timebase.frame_shift
    seconds = timebase.chunk_latency_seconds(chunk_size) - timebase.seconds(waiting)
    return max(1, math.ceil(seconds * sample_rate))


class Engine:
    """Runs the recogniser: in a thread of its own, from `start` to `stop`, or in turns that its owner asks for.

    Args:
        recognizer: used by that thread alone.
        metrics: are kept up to date.
        clock: the time in seconds, by which streams get their turns.
    """

    def __init__(
        self, recognizer: StreamingRecognizer, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.recognizer, self.metrics = recognizer, metrics
        self.turns = Turns(clock)
        self._chunk_seconds = recognizer.timebase.encoder_frame_time(recognizer.context.chunk_size)
        self.lock = threading.RLock()
        self._wake = threading.Condition(self.lock)
        self._stopping = False
        self._turn_began: float | None = None
        self._sessions: set[Session] = set()
        self._due: dict[Session, None] = {}  # in order: those that may have something to be done, as a rule few
        self._thread = threading.Thread(target=self._run, name="recognition", daemon=True)

    def start(self) -> None:
        """Begin, after the recogniser has warmed up."""
        self.recognizer.warm_up()
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its present step."""
        with self.lock:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def open(self, sample_rate: int, report: Callable[[list[Event]], None]) -> Session:
        """A new session for audio of `sample_rate` Hz."""
        session = Session(self, sample_rate, report)
        with self.lock:
            self._sessions.add(session)
        return session

    def remove(self, session: Session) -> None:
        with self.lock:
            session.closed = True
            self._sessions.discard(session)
            self._due.pop(session, None)

    def wake(self, session: Session) -> None:
        """Have a look at it."""
        with self.lock:
            if not session.closed:
                self._due[session] = None
                self._wake.notify()

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    num_workers = 1

    @property
    def num_responsive(self) -> int:
        """1 while it recognises and no step has taken far too long, else 0."""
        began = self._turn_began
        return int(self._thread.is_alive() and (began is None or time.monotonic() - began < _LATE_SECONDS))

    @property
    def has_failed(self) -> bool:
        """Whether the thread has ended though nobody asked for it."""
        return self._thread.ident is not None and not self._thread.is_alive() and not self._stopping

    def _run(self) -> None:
        while True:
            with self.lock:
                self._wake.wait_for(lambda: self._due or self._stopping)
                if self._stopping:
                    return
            self._turn_began = time.monotonic()
            self.turn()
            self._turn_began = None

    def turn(self) -> bool:
        """One round, if anything is to be done; whether more is. Of an engine without a thread, in its owner's."""
        with self.lock:
            sessions = self.turns.choose(list(self._due), self._sessions)
            for session in sessions:
                del self._due[session]
        if sessions:
            self._round(sessions)
        return bool(self._due)

    def _round(self, sessions: Sequence[Session]) -> None:
        """Feed all, move all that are ready by one chunk, report; those that have more to do are due again."""
        for session in sessions:
            self._guarded(self._feed, session)
        ready = [session for session in sessions if not session.closed and session.stream and session.stream.is_ready]
        moved = self._decode(ready)
        for session in moved:
            session.wanted = missing_samples(self.recognizer, session.stream, session.sample_rate)
            self._guarded(self._report, session)
        for session in sessions:
            if session.finishing and not session.closed and session.stream.is_finished:
                self._guarded(self._finish, session)
        for session in sessions:
            if session.has_input or (session.stream is not None and session.stream.is_ready):
                self.wake(session)

    def _guarded(self, action: Callable[[Session], None], session: Session) -> None:
        """What goes wrong with one session ends that one."""
        try:
            action(session)
        except Exception as fault:
            self._fail(session, fault)

    def _feed(self, session: Session) -> None:
        """Audio up to the next chunk, no more: a fast sender's costs are spread, and its audio counts as waiting."""
        if session.stream is None:
            session.stream = self.recognizer.create_stream()
        taken = False
        while not session.closed and not session.stream.is_ready and (item := session.take()) is not None:
            samples, session.arrival = item
            self.recognizer.accept_waveform(session.stream, session.sample_rate, samples)
            self.metrics.audio.inc(len(samples) / session.sample_rate)
            session.wanted = missing_samples(self.recognizer, session.stream, session.sample_rate)
            taken = True
        if taken:
            session.report([Event(EventKind.AUDIO_ACCEPTED)])
        if not session.stream.is_ready and not session.finishing and session.is_over:
            session.finishing = True
            self.recognizer.input_finished(session.stream)

    def _decode(self, sessions: Sequence[Session]) -> Sequence[Session]:
        """One chunk of each, together; if that fails, each alone, and only those that fail are ended."""
        if not sessions:
            return []
        began, fault = time.monotonic(), None
        try:
            self.recognizer.decode([session.stream for session in sessions])
        except Exception as raised:
            fault = raised
        if fault is not None and len(sessions) > 1:
            return [session for one in sessions for session in self._decode([one])]
        if fault is not None:
            self._fail(sessions[0], fault)
            return []
        seconds = time.monotonic() - began
        self.turns.took(seconds, len(sessions))
        for session in sessions:
            session.credit.spend(self._chunk_seconds)
        self.metrics.step.observe(seconds)
        self.metrics.batch.observe(len(sessions))
        return sessions

    def _report(self, session: Session) -> None:
        recognizer, stream = self.recognizer, session.stream
        decoded = stream.num_encoded * recognizer.timebase.encoder_frame_seconds
        if recognizer.is_endpoint(stream) and not stream.is_finished:
            final = self._result(EventKind.FINAL, session) if stream.num_tokens else None
            recognizer.reset(stream)
            if final is not None:
                session.segment += 1
                session.transcript = Transcript(recognizer.tokenizer, recognizer.timebase)
                session.report([final])
        elif stream.num_tokens and not stream.is_finished:
            session.report([self._result(EventKind.PARTIAL, session)])
        else:
            session.report([Event(EventKind.PROGRESS, protocol.dump(type="progress", decoded=round(decoded, 3)))])
        self.metrics.latency.observe(time.monotonic() - session.arrival)

    def _finish(self, session: Session) -> None:
        final = self._result(EventKind.FINAL, session)
        seconds = session.stream.num_encoded * self.recognizer.timebase.encoder_frame_seconds
        done = protocol.dump(type="done", segments=session.segment + 1, decoded=round(seconds, 3))
        session.report([final, Event(EventKind.DONE, done, 1000)])
        self.remove(session)

    def _result(self, kind: EventKind, session: Session) -> Event:
        recognizer, found, more = self.recognizer, session.stream.emissions, {}
        timebase = recognizer.timebase
        decoded = session.stream.num_encoded * timebase.encoder_frame_seconds
        text, words = session.transcript.read(found)
        if kind is EventKind.FINAL:
            more["tokens"] = [recognizer.tokenizer.piece(token) for token in found.tokens]
            more["timestamps"] = [round(timebase.encoder_frame_time(frame), 3) for frame in found.frames]
        return Event(kind, protocol.result(kind.value, session.segment, decoded, text, words, **more))

    def _fail(self, session: Session, fault: Exception) -> None:
        """End one session. What went wrong is told to the client only where it is the client's audio."""
        if session.closed:
            return
        if isinstance(fault, ValueError):
            error = ProtocolError("bad_audio", str(fault), protocol.BAD_MESSAGE)
        else:
            _log.error("a stream failed", exc_info=fault)
            error = ProtocolError("internal", "recognition failed; open a new stream", INTERNAL)
        self.metrics.errors.labels(code=error.code).inc()
        session.report([Event(EventKind.ERROR, protocol.error(error), error.close_code)])
        self.remove(session)
