"""What `bin/bench serve` does: the same load on our server and on others, row by row, and the page about it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sumix_kernels.bench import report as bench_report
from sumix_stream.bench.serve import report, verdict
from sumix_stream.bench.serve import speech as speaker
from sumix_stream.bench.serve.clients import Plan, flood, run_load
from sumix_stream.bench.serve.hostile import hostile_rows
from sumix_stream.bench.serve.protocols import Ours, ServerProtocol, Stock
from sumix_stream.bench.serve.servers import NEVER, ServerProcess, check_cores, pinned, start_ours, start_stock
from sumix_stream.checkpoint.writing import write_directory_atomically
from sumix_stream.context import ChunkContext
from sumix_stream.tasks.checkpoint import load_model

SUMIX = ("-m", "sumix_stream.cli.main")  # the commands, wherever the package is installed
AGAINST = ("bf16", "bundle", "int8", "sherpa", "sherpa-int8", "second-pass")
_OF_BUNDLE, _OF_INT8 = {"bundle", "sherpa"}, {"int8", "sherpa-int8"}
_TOLERANCE = 0.25  # of words under load, where inputs are quantised for a whole batch at once: no text is exact
_SEGMENT = "5"  # seconds, where segments are heard again
_FLOOD = 24  # streams at once, to find out what a server can do at most
_PRESETS = ("tiny", "small", "medium", "large")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is asked for, as bin/bench reads it. Raises ValueError naming the option for what cannot be.

    model: a checkpoint, or a preset that gets untrained weights which emit tokens at the rate of speech.
    bundle, bundle_int8: sherpa-onnx bundles of it; None = made now.
    bound: seconds that p99 chunk latency may have; None = one chunk.
    """

    model: str
    out: Path
    clients: tuple[int, ...] = (8, 16, 32)
    seconds: float = 12.0
    audio: tuple[Path, ...] = ()
    chunk: str = "640ms"
    left_context: int | None = 4
    against: tuple[str, ...] = ()
    bundle: Path | None = None
    bundle_int8: Path | None = None
    bound: float | None = None
    repeats: int = 3
    most: int = 1024
    hostile: bool = False
    packets: tuple[float, ...] = Plan.packets
    cores: tuple[int, ...] | None = None
    threads: int | None = None
    seed: int = 0
    plot: bool = True
    command: str = ""

    def __post_init__(self) -> None:
        if not self.clients or min(self.clients) < 1 or list(self.clients) != sorted(set(self.clients)):
            raise ValueError(f"--clients must be ascending numbers of 1 or more, such as 8,16,32, got {self.clients}")
        if unknown := [name for name in self.against if name not in AGAINST]:
            raise ValueError(f"--against must be some of {', '.join(AGAINST)}, got {unknown[0]!r}")
        if self.bundle is not None and not (_OF_BUNDLE | _OF_INT8) & set(self.against):
            raise ValueError("--bundle is what --against uses: name bundle, sherpa or both there")
        if self.bundle_int8 is not None and not _OF_INT8 & set(self.against):
            raise ValueError("--bundle-int8 is what --against uses: name int8, sherpa-int8 or both there")
        if self.bound is not None and not self.bound > 0:
            raise ValueError(f"--bound must be above 0 s, got {self.bound} s")
        if self.most < 1:
            raise ValueError(f"--most must be at least 1, got {self.most}")
        if self.repeats < 0:
            raise ValueError(f"--repeats must be at least 0, got {self.repeats}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {self.threads}")
        Plan(1, self.seconds, packets=self.packets)
        if self.plot:
            bench_report.require_matplotlib()


@dataclass
class Contender:
    """A server under load. references: each utterance's text, recognised alone."""

    name: str
    server: ServerProcess
    server_protocol: ServerProtocol
    about: str
    references: list[str]

    def row(self, plan: Plan, utterances: Sequence[np.ndarray], bound: float) -> dict[str, Any]:
        """Measure, once nothing of an earlier load is left; the others must be paused."""
        flood(self.server_protocol, self.server.port, [min(utterances, key=len)])
        measured = run_load(self.server_protocol, self.server.port, utterances, plan, self.server.meter)
        tolerance = _TOLERANCE if self.name in _OF_INT8 else 0.0
        return {"contender": self.name} | verdict.figures(measured, self.references, bound, tolerance)


def main(request: Request, say: Say = print) -> int:
    """Run it and print the page; the exit status."""
    try:
        path = run(request, say)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    say(f"\n{path.read_text()}\n{path}")
    return 0


def run(request: Request, say: Say = print) -> Path:
    """Write serve.csv, serve.md and serve.png, or those of the hostile run, to `request.out`; the Markdown's path.

    Raises ValueError for what cannot be run, RuntimeError for a server that does not start.
    """
    setup, utterances, bound, facts = prepare(request)
    with contextlib.ExitStack() as stack:
        stack.enter_context(pinned({setup.cores[-1]}))
        if request.hostile:
            rows = hostile_rows(setup.hostile_server, setup.ours, utterances, request.clients[0], request.seconds, say)
            return report.write_hostile(request.out, rows, facts, request.command)
        names = ("ours", *request.against)
        contenders = [stack.enter_context(_contender(name, setup, utterances, say)) for name in names]
        rows, found = _measure(contenders, request, utterances, bound, say)
    own = contenders[0].references
    errors = {one.name: verdict.word_error_rate(own, one.references) for one in contenders}
    about = {one.name: one.about for one in contenders}
    return report.write(request.out, rows, found, errors, about, facts, request.command, request.plot)


def prepare(request: Request) -> tuple[Setup, list[np.ndarray], float, dict[str, Any]]:
    """How servers are started, what is said to them, the bound in seconds, and facts for the page.

    Raises ValueError for what cannot be run.
    """
    cores = check_cores(request.cores)
    request.out.mkdir(parents=True, exist_ok=True)
    model = request.model
    if model in _PRESETS and not Path(model).exists():
        model = str(speaker.talking_checkpoint(request.out / f"{model}-untrained", model, seed=request.seed))
    timebase = load_model(model)[0].timebase
    context = ChunkContext.parse(request.chunk, request.left_context, timebase)
    if context.chunk_size is None:
        raise ValueError("--chunk must be a duration or a number of frames: full context cannot be streamed")
    chunk_seconds = timebase.encoder_frame_time(context.chunk_size)
    setup = Setup(request, model, Ours(context.chunk_size, timebase), Stock(context.chunk_size, timebase), cores)
    utterances = speaker.utterances_of(request.audio, 16, 2 * chunk_seconds)
    utterances = speaker.whole_chunks(utterances, context.chunk_size * timebase.encoder_frame_samples)
    bound = request.bound or chunk_seconds
    facts = {
        "model": request.model if model == request.model else f"{request.model}, untrained, made to emit tokens",
        "context": f"chunk {chunk_seconds * 1000:g} ms, left context {context.left_context}",
        "cores": f"servers on cores {', '.join(map(str, cores))}; clients on core {cores[-1]}, in one process",
        "threads": setup.threads,
        "bound_ms": 1000 * bound,
        "packets_ms": " ".join(f"{1000 * packet:g}" for packet in request.packets),
    }
    return setup, utterances, bound, facts


@dataclass
class Setup:
    """How the contenders are started."""

    request: Request
    model: str
    ours: Ours
    stock: Stock
    cores: Sequence[int]

    @property
    def threads(self) -> int:
        return self.request.threads or len(self.cores)

    @property
    def workers(self) -> int:
        """Processes of our server that recognise, and share the threads that all contenders have."""
        return min(self.threads, 8)

    @property
    def bundle(self) -> Path:
        """The model's sherpa-onnx bundle, exported now unless one is given."""
        folder = self.request.bundle or self.request.out / "bundle"
        if not folder.is_dir():
            left = "unlimited" if self.request.left_context is None else str(self.request.left_context)
            chosen = ["--chunk", self.request.chunk, "--left-context", left, "--out", str(folder)]
            command = [sys.executable, *SUMIX, "export", "--checkpoint", self.model, *chosen]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"the model cannot be exported: {done.stderr.strip()[-500:]}")
        return folder

    @property
    def bundle_int8(self) -> Path:
        """The same with int8 weights, made now unless one is given."""
        folder = self.request.bundle_int8 or self.request.out / "bundle-int8"
        if not folder.is_dir():
            from sumix_stream.export.export import FORMATS
            from sumix_stream.export.quantise import quantise
            from sumix_stream.runtime.bundle import CARD

            def make(making: Path) -> None:
                shutil.copytree(self.bundle, making, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CARD, "*.md"))
                for name in FORMATS["sherpa-onnx"].quantised:
                    quantise(making / name)

            write_directory_atomically(folder, make)
        return folder

    def serve(self, name: str, model: str, *options: str) -> ServerProcess:
        ends = (str(NEVER), str(NEVER), _SEGMENT if name == "second-pass" else str(NEVER))
        never = ["--endpoint", *ends, "--max-symbols", str(speaker.MAX_SYMBOLS)]
        left = "unlimited" if self.request.left_context is None else str(self.request.left_context)
        chosen = [] if name in ("bundle", "int8") else ["--chunk", self.request.chunk, "--left-context", left]
        workers = ["--workers", str(self.workers)]
        arguments = [*SUMIX, "serve", "--model", model, *workers, *chosen, *never, *options]
        return start_ours(name, arguments, self.request.out, self.cores, self.threads)

    def hostile_server(self, max_streams: int) -> ServerProcess:
        others = (part for name in ("wyoming", "vosk", "sherpa") for part in (f"--{name}", "0"))
        return self.serve("ours", self.model, "--max-streams", str(max_streams), "--idle-seconds", "5", *others)

    def start(self, name: str, utterances: Sequence[np.ndarray], say: Say) -> tuple[ServerProcess, ServerProtocol, str]:
        """A server, how it is spoken to, and its settings."""
        room = str(4 * self.request.most)
        if name in ("ours", "bf16"):
            precision = "fp32" if name == "ours" else name
            about = f"our server, {self.threads} threads, --workers {self.workers}, --precision {precision}"
            options = ("--max-streams", room, "--precision", precision)
            return self.serve(name, self.model, *options), self.ours, about
        if name == "second-pass":
            server = self.serve(name, self.model, "--max-streams", room, "--second-pass")
            about = f"our server, each {_SEGMENT} s heard again, {self.threads} threads, --workers {self.workers}"
            return server, self.ours, about
        bundle = self.bundle_int8 if name in _OF_INT8 else self.bundle
        if name in ("bundle", "int8"):
            server = self.serve(name, str(bundle), "--max-streams", room)
            weights = "fp32" if name == "bundle" else "int8"
            settings = f"{weights}, {self.threads} threads, --workers {self.workers}"
            return server, self.ours, f"our server with the bundle, ONNX Runtime, {settings}"
        flags = self._tuned(bundle, utterances, say)
        server = start_stock(name, bundle, flags, self.request.out, self.cores, self.threads)
        return server, self.stock, " ".join(flags)

    def _tuned(self, bundle: Path, utterances: Sequence[np.ndarray], say: Say) -> list[str]:
        """The stock server's flags under which it recognises most audio a second."""
        speeds = {}
        for flags in stock_flags(self.threads):
            with start_stock("sherpa-tuning", bundle, flags, self.request.out, self.cores, self.threads) as server:
                speeds[tuple(flags)] = speed(self.stock, server, utterances)
            say(f"  {bundle.name} in sherpa {' '.join(flags)}: {speeds[tuple(flags)]:.1f} s of audio a second")
        return list(max(speeds, key=speeds.get))


def stock_flags(threads: int) -> list[list[str]]:
    """Ways to use so many threads: as streams side by side, in one larger batch, and sherpa-onnx's defaults."""
    ways = [(threads, 1, 8), (threads, 1, 32), (1, threads, 32)]
    flags = [
        [f"--num-work-threads={work}", f"--num-threads={each}", f"--max-batch-size={batch}"]
        for work, each, batch in dict.fromkeys(ways)
    ]
    return [*flags, ["--num-work-threads=3", "--num-threads=1", "--max-batch-size=5"]]


def speed(server_protocol: ServerProtocol, server: ServerProcess, utterances: Sequence[np.ndarray]) -> float:
    """Seconds of audio that are recognised in a second when it comes all at once."""
    many = [utterances[i % len(utterances)] for i in range(_FLOOD)]
    _, seconds = flood(server_protocol, server.port, many)
    return sum(map(len, many)) / server_protocol.timebase.sample_rate / seconds


@contextlib.contextmanager
def _contender(name: str, setup: Setup, utterances: Sequence[np.ndarray], say: Say) -> Iterator[Contender]:
    """Started, asked for its references, and paused."""
    server, server_protocol, about = setup.start(name, utterances, say)
    with server:
        rss, pss = server.meter.rss_bytes(), server.meter.pss_bytes()
        references = [flood(server_protocol, server.port, [samples])[0][0] for samples in utterances]
        shared = "PSS not known" if pss is None else f"{pss / 1e6:.0f} MB PSS"
        about += f"; listening after {server.start_seconds:.1f} s, then {rss / 1e6:.0f} MB RSS, {shared}"
        say(f"{name}: {about}")
        if not any(references):
            say(f"{name}: recognises nothing in this audio, so that equal texts mean little")
        server.pause()
        yield Contender(name, server, server_protocol, about, references)


def _measure(
    contenders: Sequence[Contender], request: Request, utterances: Sequence[np.ndarray], bound: float, say: Say
) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
    """The rows of the wanted numbers of clients, and of the searches; how many streams each held in each repetition.

    Contenders take turns all the way: a machine's speed may change from one minute to the next.
    """
    plan = Plan(1, request.seconds, packets=request.packets, give_up=4 * bound, seed=request.seed)
    rows = []

    def measure(contender: Contender, clients: int, part: str) -> bool:
        contender.server.resume()
        try:
            row = contender.row(replace(plan, clients=clients), utterances, bound)
        finally:
            contender.server.pause()
        rows.append({**row, "part": part})
        say(
            f"  {contender.name}, {clients} clients: chunk p50 {row['chunk_ms_p50']:.0f} ms, "
            f"p99 {row['chunk_ms_p99']:.0f} ms, final p99 {row['final_ms_p99']:.0f} ms, "
            f"server {row['server_cpu_percent']:.0f} % of a core, {row['note'] or 'in real time'}"
        )
        return row["real_time"] == "yes"

    for clients in request.clients:
        for contender in contenders:
            measure(contender, clients, "row")
    if not request.repeats:
        return rows, {}
    starts = {}
    for contender in contenders:
        contender.server.resume()
        found_speed = speed(contender.server_protocol, contender.server, utterances)
        contender.server.pause()
        say(f"{contender.name}: {found_speed:.1f} s of audio a second when it comes all at once")
        starts[contender.name] = round(0.8 * found_speed)
    found: dict[str, list[int]] = {contender.name: [] for contender in contenders}
    for _ in range(request.repeats):
        searches = {name: verdict.searching(start, request.most) for name, start in starts.items()}
        numbers = {name: next(search) for name, search in searches.items()}
        while numbers:
            for contender in contenders:
                if (name := contender.name) in numbers:
                    try:
                        numbers[name] = searches[name].send(measure(contender, numbers[name], "search"))
                    except StopIteration as over:
                        del numbers[name]
                        found[name].append(over.value)
                        starts[name] = max(1, over.value)
        say(", ".join(f"{name}: {held[-1]} streams" for name, held in found.items()))
    return rows, found
