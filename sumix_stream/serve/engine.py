"""The one thread that recognises: it batches whatever streams are ready, and no fault of one reaches another."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from weakref import WeakValueDictionary

from sumix_stream.search.greedy import Emissions
from sumix_stream.search.word_starts import SPACE
from sumix_stream.serve import events, protocol
from sumix_stream.serve.events import Event, EventKind
from sumix_stream.serve.metrics import Metrics
from sumix_stream.serve.options import DEFAULTS, StreamOptions
from sumix_stream.serve.protocol import INTERNAL, ProtocolError
from sumix_stream.serve.second_passes import SecondPasses
from sumix_stream.serve.session import Awaited, Report, Session, Write, missing_samples
from sumix_stream.serve.transcript import Transcript
from sumix_stream.serve.turns import Turns
from sumix_stream.streaming.second_pass import Final, Segment
from sumix_stream.streaming.stream import StreamingRecognizer

_LATE_SECONDS = 5.0  # of one turn, after which /health says that nothing is recognised

_log = logging.getLogger(__name__)


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
        self._recognizers: WeakValueDictionary[tuple, StreamingRecognizer] = WeakValueDictionary()
        self.second_passes = SecondPasses(self._heard_again)
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
        self.second_passes.stop()

    def open(
        self, sample_rate: int, report: Report, options: StreamOptions = DEFAULTS, *, write: Write = protocol.write
    ) -> Session:
        """A new session for audio of `sample_rate` Hz. Raises ValueError where its options cannot be had."""
        session = Session(self, sample_rate, report, options, write=write)
        with self.lock:
            self._sessions.add(session)
        return session

    def recognizer_of(self, options: StreamOptions) -> StreamingRecognizer:
        """The one of all streams of this kind, kept as long as there is one."""
        found = self._recognizers.get(options.kind)
        if found is None:
            found = self._recognizers[options.kind] = options.recognizer(self.recognizer)
        return found

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
                self._wake.wait_for(lambda: self._due or self._stopping or self.second_passes.any_done)
                if self._stopping:
                    return
            self._turn_began = time.monotonic()
            self.turn()
            self._turn_began = None

    def turn(self) -> bool:
        """One round, if anything is to be done; whether more is. Of an engine without a thread, in its owner's."""
        for (session, awaited), final in self.second_passes.done():
            self._guarded(partial(self._take_final, awaited=awaited, final=final), session)
        with self.lock:
            sessions = self.turns.choose(list(self._due), self._sessions)
            for session in sessions:
                del self._due[session]
        if sessions:
            self.second_passes.chunks_rest.clear()
            self._round(sessions)
        more = bool(self._due)
        if not more:
            self.second_passes.chunks_rest.set()
        return more

    def _heard_again(self) -> None:
        """In the thread of second passes."""
        with self.lock:
            self._wake.notify()
        self.on_heard_again()

    def on_heard_again(self) -> None:
        """Called in another thread when `turn` has a second pass to report; of an engine without a thread."""

    def _take_final(self, session: Session, awaited: Awaited, final: Final | Exception) -> None:
        if session.closed:
            return
        if isinstance(final, Exception):
            raise final
        self.metrics.second_pass.observe(time.monotonic() - awaited.since)
        awaited.final = final
        session.release()
        self.wake(session)

    def _round(self, sessions: Sequence[Session]) -> None:
        """Feed all, move all that are ready by one chunk, report; those that have more to do are due again."""
        sessions = [session for session in sessions if not session.is_blocked]
        for session in sessions:
            self._guarded(self._feed, session)
        by_kind: dict[StreamingRecognizer, list[Session]] = {}
        for session in sessions:
            if not session.closed and session.stream and session.stream.is_ready:
                by_kind.setdefault(session.recognizer, []).append(session)
        for ready in by_kind.values():
            for session in self._decode(ready):
                self._note_wanted(session)
                self._guarded(self._report, session)
        for session in sessions:
            if session.closed or session.stream.is_ready:
                continue
            if session.take_commit():
                self._guarded(self._commit, session)
            if session.finishing and not session.finished and not session.closed and session.stream.is_finished:
                self._guarded(self._finish, session)
        for session in sessions:
            if session.is_blocked or session.finished:
                continue  # until a second pass is done
            if session.has_input or (session.stream is not None and session.stream.is_ready):
                self.wake(session)

    def _note_wanted(self, session: Session) -> None:
        of_chunk = session.recognizer.timebase, session.recognizer.context.chunk_size
        session.wanted = missing_samples(*of_chunk, session.sample_rate, session.stream.features.num_frames)

    def _guarded(self, action: Callable[[Session], None], session: Session) -> None:
        """What goes wrong with one session ends that one."""
        try:
            action(session)
        except Exception as fault:
            self._fail(session, fault)

    def _feed(self, session: Session) -> None:
        """Audio up to the next chunk, no more: a fast sender's costs are spread, and its audio counts as waiting."""
        if session.stream is None:
            asked = session.options
            own = {"endpointing": asked.endpointing, "second_pass": asked.second_pass, "hotwords": asked.hotwords}
            session.stream = session.recognizer.create_stream(**own)
        taken = False
        while not session.closed and not session.stream.is_ready and (item := session.take()) is not None:
            samples, session.arrival = item
            session.recognizer.accept_waveform(session.stream, session.sample_rate, samples)
            self.metrics.audio.inc(len(samples) / session.sample_rate)
            self._note_wanted(session)
            taken = True
        if taken:
            session.report([Event(EventKind.AUDIO_ACCEPTED)])
        if not session.stream.is_ready and not session.finishing and session.is_over:
            session.finishing = True
            session.recognizer.input_finished(session.stream)

    def _decode(self, sessions: Sequence[Session]) -> Sequence[Session]:
        """One chunk of each of one kind, together; if that fails, each alone, and only those that fail are ended."""
        if not sessions:
            return []
        began, fault = time.monotonic(), None
        try:
            sessions[0].recognizer.decode([session.stream for session in sessions])
        except Exception as raised:
            fault = raised
        if fault is not None and len(sessions) > 1:
            return [session for one in sessions for session in self._decode([one])]
        if fault is not None:
            self._fail(sessions[0], fault)
            return []
        seconds = time.monotonic() - began
        self.turns.took(seconds, len(sessions))
        recognizer = sessions[0].recognizer
        chunk_seconds = recognizer.timebase.encoder_frame_time(recognizer.context.chunk_size)
        for session in sessions:
            session.credit.spend(chunk_seconds)
        self.metrics.step.observe(seconds)
        self.metrics.batch.observe(len(sessions))
        return sessions

    def _report(self, session: Session) -> None:
        recognizer, stream = session.recognizer, session.stream
        if recognizer.is_endpoint(stream) and not stream.is_finished:
            by_length = stream.end_of_segment is not None
            if session.options.speech_events and not by_length:
                self._note_speech(session)
                self._note_silence(session)
            if stream.num_tokens:
                self._end_segment(session, recognizer.segment(stream), "endpoint", stream.num_encoded)
            recognizer.reset(stream)
        else:
            if session.options.speech_events:
                self._note_speech(session)
            session.tell(self._so_far(session))
        self.metrics.latency.observe(time.monotonic() - session.arrival)

    def _so_far(self, session: Session) -> events.Partial | events.Progress:
        stream = session.stream
        decoded = self._seconds(session, stream.num_encoded)
        found = stream.emissions
        if not found.tokens or stream.is_finished:
            return events.Progress(decoded)
        text, words = session.transcript.read(found)
        stable = session.transcript.num_complete(found.tokens[: stream.num_stable])
        spaced = session.recognizer.tokenizer.piece(found.tokens[0]).startswith(SPACE)
        # Our own partial results tell no tokens, of which a long segment has hundreds.
        tokens, times = ((), ()) if session.write is protocol.write else self._tokens(session, found)
        return events.Partial(session.segment, decoded, text, words, min(stable, len(words)), tokens, times, spaced)

    def _commit(self, session: Session) -> None:
        """A chunk's time is charged for it, as it is decoded to the last sample."""
        recognizer, stream = session.recognizer, session.stream
        session.credit.spend(recognizer.timebase.encoder_frame_time(recognizer.context.chunk_size))
        if session.num_taken == session.committed:  # nothing has come since the last one
            nothing = Segment.empty(stream.num_segments)
            self._end_segment(session, nothing, "commit", max(stream.num_encoded, stream.committed))
            return
        session.committed = session.num_taken
        segment = recognizer.commit(stream)
        self._end_segment(session, segment, "commit", stream.committed)

    def _finish(self, session: Session) -> None:
        stream, session.finished = session.stream, True
        if session.options.speech_events:
            self._note_speech(session)
            self._note_silence(session)
        reason = "end" if session.fault is None else session.fault.code
        segment = session.recognizer.segment(stream)
        self._end_segment(session, segment, reason, stream.num_encoded)
        done = events.Done(session.segment, self._seconds(session, stream.num_encoded))
        session.tell(session.fault or done)

    def _end_segment(self, session: Session, segment: Segment, reason: str, num_encoded: int) -> None:
        """Tell what a segment said, by its second pass where there is one."""
        asked = session.stream.second_pass is not None
        decoded, number = self._seconds(session, num_encoded), session.segment
        tell = partial(self._final, session, number, decoded, reason, asked)
        session.segment += 1
        session.transcript = Transcript(session.recognizer.tokenizer, session.recognizer.timebase)
        if not asked:
            session.tell(tell(segment.final()))
            return
        awaited = Awaited(tell)
        session.tell(awaited)
        self.second_passes.submit(segment, (session, awaited))

    def _final(
        self, session: Session, number: int, decoded: float, reason: str, second_pass: bool, final: Final
    ) -> events.Final:
        recognizer, found = session.recognizer, final.emissions
        tokenizer = recognizer.tokenizer
        text, words = Transcript(tokenizer, recognizer.timebase).read(found)
        alternatives = ()
        if recognizer.search.options.nbest > 1:
            alternatives = [
                events.Alternative(tokenizer.decode(list(one.tokens)), float(one.score)) for one in final.alternatives
            ]
        return events.Final(
            number,
            decoded,
            reason,
            text,
            words,
            *self._tokens(session, found),
            final.streaming.text if second_pass else None,
            final.heard_again,
            alternatives,
        )

    def _tokens(self, session: Session, found: Emissions) -> tuple[list[str], list[float]]:
        """Pieces and their times."""
        pieces = list(map(session.recognizer.tokenizer.piece, found.tokens))
        return pieces, [self._seconds(session, frame) for frame in found.frames]

    def _note_speech(self, session: Session) -> None:
        """Speech begins with the first token after a silence."""
        frames = session.stream.all_emissions.frames
        if not session.speaking and frames and frames[-1] >= session.quiet_since:
            first = next(frame for frame in frames if frame >= session.quiet_since)
            session.speaking = True
            session.tell(events.SpeechStarted(self._seconds(session, first)))

    def _note_silence(self, session: Session) -> None:
        if session.speaking:
            session.speaking = False
            last = session.stream.all_emissions.frames[-1:] or [session.stream.num_encoded - 1]
            session.tell(events.SpeechStopped(self._seconds(session, last[0] + 1)))
        session.quiet_since = session.stream.num_encoded

    def _seconds(self, session: Session, frame: int) -> float:
        return session.recognizer.timebase.encoder_frame_time(frame)

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
        failed = session.write(events.Failed(error.code, str(error), error.close_code))
        if failed is not None:
            session.report([failed])
        self.remove(session)
