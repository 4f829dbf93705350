"""Clients that speak in real time: when the result of each chunk came, and what the text was.

All clients share one event loop, with one timer a packet and a look at the clock every five milliseconds; the packets
are made before the clock runs: so little of the machine goes into asking. Speech goes by the clock whether or not the
server keeps up, and a latency counts from the moment when the packet that a chunk needed was due: a server that stops
reading gains nothing by it.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from sumix_stream.bench.serve.protocols import ServerProtocol
from sumix_stream.bench.serve.servers import Meter
from sumix_stream.bench.serve.talk import Speech, Talk
from sumix_stream.serve import pacing

LEAD_SECONDS = 0.3  # a connection is made before its first sample is spoken
_WATCH_SECONDS = 0.25  # between two looks at memory and at results that are overdue


@dataclass(frozen=True)
class Plan:
    """How many clients speak, and for how long. Times are in seconds.

    Client i begins at a random moment of the first `warm` seconds, with packets of one of the lengths `packets`, and
    speaks one utterance after another, each on a connection of its own. Measured is what is due in the `seconds` after
    `warm`.

    Raises ValueError naming the field, its value and what is allowed.
    """

    clients: int
    seconds: float
    warm: float = 4.0
    packets: tuple[float, ...] = (0.02, 0.04, 0.06, 0.1)
    repeat: bool = True  # else each client has one utterance
    give_up: float | None = None  # end early once a result is so long overdue
    grace: float = 2.0  # for the last results
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise ValueError(f"clients must be at least 1, got {self.clients}")
        for name in ("seconds", "warm", "grace"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and above 0, got {getattr(self, name)}")
        if not self.packets or not all(0.001 <= packet <= 1 for packet in self.packets):
            raise ValueError(f"packets must be lengths in 0.001..1 s, got {self.packets}")


@dataclass
class Measured:
    """What the clients saw. Times are in seconds, latencies as (due, latency)."""

    clients: int
    seconds: float = 0.0  # measured: fewer than planned if it was given up
    chunks: list[tuple[float, float]] = field(default_factory=list)
    finals: list[tuple[float, float]] = field(default_factory=list)  # from the end of the speech to the last result
    num_overdue: int = 0  # results that never came; their age is in `chunks` or `finals`
    texts: list[tuple[int, str]] = field(default_factory=list)  # (utterance, what was recognised), in order of arrival
    faults: Counter = field(default_factory=Counter)  # reason -> connections that ended before their last result
    lateness: list[float] = field(default_factory=list)  # of our own packets
    client_cpu: float = 0.0  # share of one core
    server_cpu: float = 0.0  # the same
    server_rss: list[int] = field(default_factory=list)  # bytes, over the measured time
    server_pss: int | None = None  # bytes, at its end
    gave_up: bool = False


def run_load(
    protocol: ServerProtocol,
    port: int,
    utterances: Sequence[np.ndarray],
    plan: Plan,
    meter: Meter | None = None,
    connected: Callable[[], None] | None = None,
) -> Measured:
    """Put a load on the server at a port of the loopback interface.

    Args:
        utterances: samples (S,) int16 at 16 kHz.
        meter: of the server's process.
        connected: called once, when `warm` is over and every client's handshake has been answered.
    """
    load = _Load(protocol, port, utterances, plan, meter, connected)
    gc.collect()
    gc.freeze()  # a collection over all that is imported would hold up every client
    try:
        return pacing.run(load.run())
    finally:
        gc.unfreeze()


def flood(
    protocol: ServerProtocol, port: int, utterances: Sequence[np.ndarray], seconds: float = 120.0
) -> tuple[list, float]:
    """Utterances all at once, as fast as the server takes them: their texts, and the seconds until the last result.

    Raises RuntimeError where one is not finished, and asyncio.TimeoutError after `seconds`.
    """

    async def every() -> tuple[list, float]:
        speeches = [Speech.make(protocol, samples, 0.1) for samples in utterances]
        talks = [Talk(i, speech, protocol.listener(len(utterances[i])), 0.0) for i, speech in enumerate(speeches)]
        await asyncio.gather(*(talk.connect(protocol, port) for talk in talks))
        began = time.monotonic()
        for talk in talks:
            for frame in talk.speech.frames:
                talk.write(frame)
        await asyncio.wait_for(asyncio.gather(*(talk.over.wait() for talk in talks)), seconds)
        taken = time.monotonic() - began
        for talk in talks:
            talk.close()
            if not talk.listener.is_final:
                raise RuntimeError(f"the server ended a stream early: {talk.fault}")
        return [talk.listener.text for talk in talks], taken

    return pacing.run(every())


class _Load:
    """One run of a plan."""

    def __init__(
        self,
        protocol: ServerProtocol,
        port: int,
        utterances: Sequence[np.ndarray],
        plan: Plan,
        meter: Meter | None,
        connected: Callable[[], None] | None,
    ) -> None:
        self.protocol, self.port, self.utterances, self.plan = protocol, port, utterances, plan
        self.meter, self.connected = meter, connected
        self.result = Measured(plan.clients)
        rng = np.random.default_rng(plan.seed)
        self.packets = [plan.packets[i % len(plan.packets)] for i in range(plan.clients)]
        self.starts = rng.uniform(0, plan.warm, plan.clients)
        self.orders = [rng.permutation(len(utterances)) for _ in range(plan.clients)]
        speeches = {(i, p) for p in set(self.packets) for i in range(len(utterances))}
        self.speeches = {key: Speech.make(protocol, utterances[key[0]], key[1]) for key in speeches}
        self.talks: dict[Talk, None] = {}  # without their last result
        self.tasks: set[asyncio.Task] = set()
        self.stopped = False

    async def run(self) -> Measured:
        self.loop = asyncio.get_running_loop()
        begin = self.loop.time() + LEAD_SECONDS
        self.first = begin + self.plan.warm
        self.last = self.first + self.plan.seconds
        for client in range(self.plan.clients):
            self._next(client, begin + self.starts[client], iter(self._playlist(client)))
        await asyncio.sleep(self.first - self.loop.time())
        if self.connected is not None:
            while not all(talk.is_answered for talk in self.talks) and self.loop.time() < self.last:
                await asyncio.sleep(0.01)
            self.connected()
        cpu, began = self._cpu(), time.monotonic()
        await self._watch(until=self.last)
        self.last = min(self.last, self.loop.time())
        self.result.seconds = self.last - self.first
        elapsed = max(time.monotonic() - began, _WATCH_SECONDS)
        used = [now - then for now, then in zip(self._cpu(), cpu)]
        self.result.server_pss = None if self.meter is None else self.meter.pss_bytes()
        self.result.client_cpu, self.result.server_cpu = (seconds / elapsed for seconds in used)
        if not self.result.gave_up:
            await self._last_results()
        self._stop()
        await asyncio.sleep(0)
        return self.result

    def _playlist(self, client: int) -> Iterator[int]:
        """Utterances: all of them in the client's own order, again and again; or one."""
        if not self.plan.repeat:
            yield client % len(self.utterances)
            return
        while True:
            yield from map(int, self.orders[client])

    def _next(self, client: int, began: float, playlist: Iterator[int]) -> None:
        """Arrange for the next utterance, whose first sample is spoken at `began`."""
        utterance = next(playlist, None)
        if utterance is None or began > self.last:
            return
        self.loop.call_at(began - LEAD_SECONDS, self._open, client, utterance, began, playlist)

    def _open(self, client: int, utterance: int, began: float, playlist: Iterator[int]) -> None:
        if self.stopped:
            return
        speech = self.speeches[utterance, self.packets[client]]
        talk = Talk(utterance, speech, self.protocol.listener(len(self.utterances[utterance])), began, self._heard)
        self.talks[talk] = None
        task = self.loop.create_task(self._follow(talk))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        self.loop.call_at(began + speech.due[0], self._speak, talk)
        self._next(client, began + speech.due[-1], playlist)

    async def _follow(self, talk: Talk) -> None:
        await talk.connect(self.protocol, self.port)
        await talk.over.wait()
        if talk.fault is not None and not self.stopped:
            self.result.faults[talk.fault] += 1
        elif talk.fault is None:
            self.result.texts.append((talk.utterance, talk.listener.text))
            self._note(self.result.finals, talk.began + talk.speech.due[-1])
        self.talks.pop(talk, None)
        talk.close()

    def _speak(self, talk: Talk) -> None:
        """Send the packet that is due, and those that are late."""
        if self.stopped or talk.over.is_set():
            return
        speech, now = talk.speech, self.loop.time()
        while talk.num_sent < len(speech.frames) and (due := talk.began + speech.due[talk.num_sent]) <= now + 1e-4:
            talk.write(speech.frames[talk.num_sent])
            talk.num_sent += 1
            if self.first <= due <= self.last:
                self.result.lateness.append(now - due)
        if talk.num_sent < len(speech.frames):
            self.loop.call_at(talk.began + speech.due[talk.num_sent], self._speak, talk)

    def _heard(self, talk: Talk, before: int) -> None:
        for due in self._chunks_due(talk, before, talk.listener.num_chunks):
            self._note(self.result.chunks, due)

    def _chunks_due(self, talk: Talk, first: int, last: int | None = None) -> list[float]:
        return [talk.began + talk.speech.due[frame] for frame in talk.speech.needed[first:last]]

    def _note(self, latencies: list[tuple[float, float]], due: float) -> None:
        if self.first <= due <= self.last:
            latencies.append((due - self.first, self.loop.time() - due))

    def _overdue(self) -> tuple[list[float], list[float]]:
        """When results that are still missing were due: of chunks, of utterances."""
        now = self.loop.time()
        chunks = [due for talk in self.talks for due in self._chunks_due(talk, talk.listener.num_chunks) if due <= now]
        ends = [due for talk in self.talks if (due := talk.began + talk.speech.due[-1]) <= now]
        return chunks, ends

    async def _watch(self, until: float) -> None:
        while (now := self.loop.time()) < until:
            if self.meter is not None:
                self.result.server_rss.append(self.meter.rss_bytes())
            oldest = min((due for found in self._overdue() for due in found), default=now)
            if self.plan.give_up is not None and now - oldest > self.plan.give_up:
                self.result.gave_up = True
                return
            await asyncio.sleep(min(_WATCH_SECONDS, until - now))

    async def _last_results(self) -> None:
        """Results may come for another while, if they were due in the measured time."""
        deadline = self.loop.time() + self.plan.grace
        while self.loop.time() < deadline and any(due <= self.last for found in self._overdue() for due in found):
            await asyncio.sleep(0.02)

    def _stop(self) -> None:
        """Count what is missing, and hang up."""
        chunks, ends = self._overdue()
        for latencies, missing in ((self.result.chunks, chunks), (self.result.finals, ends)):
            missing = [due for due in missing if self.first <= due <= self.last]
            self.result.num_overdue += len(missing)
            for due in missing:
                self._note(latencies, due)
        self.stopped = True
        for talk in list(self.talks):
            talk.close()

    def _cpu(self) -> tuple[float, float]:
        """Seconds of the processor: ours, the server's."""
        return time.process_time(), 0.0 if self.meter is None else self.meter.cpu_seconds()
