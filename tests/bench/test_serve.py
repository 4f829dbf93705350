"""The load itself: what is due when, whose results count, and that a server which does not keep up is found out."""

import asyncio
import csv
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT
from serving import PCM, RATE, expected, make_recognizer
from talkative import LetterTokenizer, sound, talkative_model
from websockets.frames import Frame, Opcode

from sumix_kernels.machine import instruction_set
from sumix_stream.bench.serve import commands, hostile, report, sizing, verdict
from sumix_stream.bench.serve import speech as speaker
from sumix_stream.bench.serve.clients import Measured, Plan, flood, run_load
from sumix_stream.bench.serve.hostile_clients import HostileClients
from sumix_stream.bench.serve.protocols import Ours, Stock
from sumix_stream.bench.serve.servers import STOCK_SERVER, Meter, check_cores, pinned, start_ours, start_stock
from sumix_stream.bench.serve.talk import Speech
from sumix_stream.context import ChunkContext
from sumix_stream.search.options import SearchOptions
from sumix_stream.serve.limits import Limits
from sumix_stream.serve.server import Server
from sumix_stream.streaming.recognizer import load
from sumix_stream.streaming.stream import StreamingRecognizer
from sumix_stream.timebase import Timebase

CHUNK = 8  # encoder frames, of serving.make_recognizer
OURS = Ours(CHUNK, Timebase())
QUICK = Plan(clients=3, seconds=1.6, warm=0.6, grace=20.0)
NO_ENDPOINT = 1e6


@pytest.fixture(scope="module")
def talking(tmp_path_factory) -> Path:
    """A checkpoint of a tiny model that emits tokens."""
    return speaker.talking_checkpoint(tmp_path_factory.mktemp("talking") / "tiny", "tiny", vocab_size=120)


@contextmanager
def served(decode=None, listeners=(), **limits) -> Iterator[tuple[Server, int]]:
    """Our server in a thread; `decode` takes the place of its recogniser's and is given it."""
    recognizer = make_recognizer(endpoint=NO_ENDPOINT)
    if decode is not None:
        original = recognizer.decode
        recognizer.decode = lambda streams: decode(original, streams)
    server, loop, ports = Server(recognizer, Limits(**limits), listeners=listeners), asyncio.new_event_loop(), []
    ready = threading.Event()

    async def start() -> None:
        ports.append(await server.start("127.0.0.1", 0))
        ready.set()

    def serve() -> None:
        loop.create_task(start())
        loop.run_forever()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(60)
    try:
        yield server, ports[0]
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def utterances(*seconds: float) -> list[np.ndarray]:
    return [(sound(length, seed=i) * 32767).astype(np.int16) for i, length in enumerate(seconds)]


def references(samples: list[np.ndarray]) -> list[str]:
    return [" ".join(h.text for h in expected(one, endpoint=NO_ENDPOINT)) for one in samples]


def messages(frames: list[bytes]) -> list[tuple[Opcode, bytes]]:
    """What a server reads of clients' frames."""
    data, found = b"".join(frames), []

    def read(size: int):
        nonlocal data
        part, data = data[:size], data[size:]
        yield from ()
        return part

    while data:
        parser = Frame.parse(read, mask=True)
        try:
            while True:
                next(parser)
        except StopIteration as stop:
            found.append((stop.value.opcode, bytes(stop.value.data)))
    return found


@pytest.mark.parametrize("packet", (0.02, 0.1, 0.33, 10.0))
def test_the_packets_are_the_speech(packet):
    """Every sample once and in order, each packet due when its last sample has been spoken."""
    samples = PCM[:50_123]
    speech = Speech.make(OURS, samples, packet)
    opening, *audio, closing = messages(speech.frames)
    assert (opening[0], closing) == (Opcode.TEXT, (Opcode.TEXT, b'{"type":"end"}'))
    assert b"".join(data for _, data in audio) == samples.tobytes()
    spoken = np.cumsum([len(data) // 2 for _, data in audio]) / RATE
    np.testing.assert_allclose(speech.due, spoken)


def test_a_chunk_is_due_with_the_packet_that_completes_it():
    """320 ms and 7.5 ms of look-ahead; the stock server waits for 10 ms more."""
    samples = PCM[:25_000]
    ours, stock = Speech.make(OURS, samples, 0.04), Speech.make(Stock(CHUNK, Timebase()), samples, 0.01)
    assert [ours.due[i] for i in ours.needed] == pytest.approx([0.36, 0.68, 1.0, 1.32])
    assert [stock.due[i] for i in stock.needed] == pytest.approx([0.34, 0.66, 0.98, 1.3])
    exactly = Speech.make(OURS, samples, OURS.needs(0) / 5 / RATE)  # the fifth packet ends with what is needed
    assert exactly.needed[0] == 4


@pytest.mark.parametrize("chunk", (0, 1, 4))
def test_needs_are_exact(chunk):
    """One sample less and the recogniser does not have the chunk."""
    for missing in (1, 0):
        recognizer = make_recognizer()
        stream = recognizer.create_stream()
        stream.accept(RATE, PCM[: OURS.needs(chunk) - missing])
        while recognizer.decode([stream]):
            pass
        assert stream.num_encoded == CHUNK * (chunk + 1 - missing)


def test_real_time_clients_against_our_server():
    """Several utterances each, by the clock; all texts, all chunks of the measured time."""
    samples = utterances(0.9, 1.3, 0.5)
    known = references(samples)
    assert all(known)
    with served() as (server, port):
        assert flood(OURS, port, samples)[0] == known
        measured = run_load(OURS, port, samples, QUICK, Meter(threading.get_native_id()))
        opened = server.metrics.value("sumix_streams_opened_total")
    assert not measured.faults and not measured.num_overdue and not measured.gave_up
    assert verdict.num_wrong(measured, known) == 0
    assert opened > len(samples) + QUICK.clients, "no client had a second utterance"
    assert len(measured.texts) >= QUICK.clients
    assert verdict.num_wrong(measured, [*known[:2], "something else"]) == sum(i == 2 for i, _ in measured.texts) > 0
    # Each client speaks all the time, so that a chunk is due each 320 ms but for what utterances end with.
    most = QUICK.clients * (QUICK.seconds / 0.32 + 1)
    assert most / 3 < len(measured.chunks) <= most
    assert all(0 <= due <= QUICK.seconds and latency >= 0 for due, latency in measured.chunks + measured.finals)
    assert measured.finals and measured.lateness and measured.server_rss
    assert measured.seconds == pytest.approx(QUICK.seconds, abs=1.0)


def test_a_stalled_server_is_not_in_real_time():
    """It takes the audio and recognises nothing from some moment on: overdue results are counted with their age."""
    stalled, samples = threading.Event(), utterances(1.3)
    calls = []

    def decode(original, streams):
        calls.append(len(streams))
        if len(calls) > 6:
            stalled.wait(60)
        return original(streams)

    with served(decode) as (_, port):
        measured = run_load(OURS, port, samples, Plan(2, 2.0, warm=0.5, grace=0.3))
        stalled.set()
    reasons = verdict.shortfalls(measured, references(samples), bound_seconds=0.32)
    assert measured.num_overdue > 0
    assert any("had not come" in reason for reason in reasons), reasons
    assert any("p99 chunk latency" in reason for reason in reasons), reasons
    assert max(latency for _, latency in measured.chunks) > 1.0


def test_giving_up():
    samples = utterances(1.3)
    with served(lambda original, streams: threading.Event().wait(0.3) or []) as (_, port):
        measured = run_load(OURS, port, samples, Plan(2, 30.0, warm=0.5, give_up=0.7))
    assert measured.gave_up and measured.seconds < 20
    assert "given up" in verdict.shortfalls(measured, [""], 0.32)[0]


def test_refused_clients_are_faults():
    samples = utterances(1.3)
    with served(max_streams=1) as (_, port):
        measured = run_load(OURS, port, samples, Plan(3, 1.0, warm=0.5))
    assert set(measured.faults) == {"HTTP 503"}
    assert any("HTTP 503" in reason for reason in verdict.shortfalls(measured, references(samples), 10.0))


def latencies(*values: float) -> Measured:
    measured = Measured(4, 12.0)
    measured.chunks = [(12.0 * i / len(values), value) for i, value in enumerate(values)]
    measured.finals = [(6.0, 0.1)]
    return measured


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        (latencies(*[0.1] * 300), None),
        (latencies(*[0.1] * 290, *[0.7] * 10), "p99 chunk latency over 0.64 s"),
        (latencies(*np.linspace(0.1, 0.6, 300)), "the median latency rises"),
        (latencies(), "no result was due"),
    ],
    ids=("steady", "a slow tail", "a growing backlog", "nothing"),
)
def test_verdicts(measured, reason):
    found = verdict.shortfalls(measured, [], 0.64)
    assert (found == []) if reason is None else any(reason in one for one in found), found
    assert verdict.figures(measured, [], 0.64)["real_time"] == ("yes" if reason is None else "no")


@pytest.mark.parametrize(
    ("reference", "text", "rate"),
    [
        ("one two three four", "one two three four", 0.0),
        ("one two three four", "two three four", 0.25),
        ("one two three four", "one too three for four", 0.5),
        ("", "one", 1.0),
        ("one two", "", 1.0),
    ],
)
def test_word_errors(reference, text, rate):
    assert verdict.word_error_rate([reference], [text]) == rate
    measured = latencies(0.1)
    measured.texts = [(0, text)]
    assert verdict.num_wrong(measured, [reference]) == (rate > 0)
    assert verdict.num_wrong(measured, [reference], 0.25) == (rate > 0.25)


def test_quantiles_are_ones_that_occurred():
    values = [(0.0, 0.001 * i) for i in range(1, 101)]
    assert verdict.quantiles(values) == pytest.approx({50: 51.0, 95: 96.0, 99: 100.0})


@pytest.mark.parametrize("limit", (0, 1, 5, 37, 100, 128))
@pytest.mark.parametrize("start", (1, 40, 128))
def test_the_largest_number_is_found(limit, start):
    tried = []

    def holds(number: int) -> bool:
        tried.append(number)
        return number <= limit

    search = verdict.searching(start, most=128)
    number = next(search)
    with pytest.raises(StopIteration) as over:
        while True:
            number = search.send(holds(number))
    found = over.value.value
    assert limit - max(1, limit // verdict.RESOLUTION) <= found <= limit
    assert len(tried) == len(set(tried)) and max(tried) <= 128


class Holds:
    """A contender that holds so many streams, and is its own server."""

    def __init__(self, name: str, limit: int) -> None:
        self.name, self.limit, self.server_protocol, self.server, self.asked = name, limit, None, self, []
        self.port, self.running = 0, False

    def resume(self) -> None:
        self.running = True

    def pause(self) -> None:
        self.running = False

    def row(self, plan: Plan, utterances: list, bound: float) -> dict:
        assert self.running
        self.asked.append(plan.clients)
        measured = latencies(*[0.1 if plan.clients <= self.limit else 0.9] * 100)
        return {"contender": self.name, **verdict.figures(measured, [], 0.64), "clients": plan.clients}


def test_contenders_take_turns_and_every_repetition_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(commands, "speed", lambda *given: 100.0)
    one, other = Holds("ours", 90), Holds("sherpa", 40)
    request = commands.Request("small", tmp_path, clients=(8,), repeats=2, plot=False)
    rows, found = commands._measure([one, other], request, [], 0.64, lambda line: None)
    assert not one.running and not other.running
    assert [row["contender"] for row in rows][:6] == ["ours", "sherpa"] * 3
    assert one.asked[:2] == other.asked[:2] == [8, 80]
    for contender in (one, other):
        held = found[contender.name]
        assert len(held) == 2 and held[0] == held[1] and 0.9 * contender.limit < held[0] <= contender.limit
        assert contender.asked[2:].count(held[0]) == 2  # the second search begins where the first ended
    assert commands._measure([one], replace(request, repeats=0), [], 0.64, lambda line: None)[1] == {}


def test_sizing_goes_on_where_it_was_broken_off(tmp_path):
    asked = []

    def measure(request: commands.Request, say) -> dict:
        if len(asked) == 2:
            raise RuntimeError("broken off")
        asked.append((request.model, request.chunk))
        streams = {"streams": 30 * len(asked), "workers": 2, "start_seconds": 2.5, "seconds": request.seconds}
        return streams | {"server_pss_mb": 310.4, "worker_pss_mb": 99.6, "stream_pss_mb": 0.25}

    request = commands.Request("small", tmp_path, seconds=3.0, plot=False, command="bin/bench serve --sizing")
    wanted = ["tiny", "small"], ["320ms", "640ms"]
    with pytest.raises(RuntimeError):
        sizing.run(request, *wanted, measure=measure)
    first = list(asked)
    asked.clear()
    text = sizing.run(request, *wanted, measure=measure).read_text()
    assert first == [("tiny", "320ms"), ("tiny", "640ms")] and asked == [("small", "320ms"), ("small", "640ms")]
    cores = len(check_cores(None))
    rows = [line for line in text.splitlines() if line.startswith(("| tiny", "| small"))]
    assert (
        len(rows) == 4
        and f"| 4 | {instruction_set()} | {cores} | 60 | {60 / cores:.0f} | 310 | 100 | 0.25 | 2.5 |" in rows[1]
    )
    asked.clear()
    sizing.run(request, *wanted, measure=measure)
    assert not asked


def test_memory_a_stream_is_a_slope():
    rows = [{"clients": clients, "server_rss_mb": 500 + 0.25 * clients} for clients in (8, 16, 64)]
    assert verdict.rss_per_stream(rows) == pytest.approx(0.25)
    assert verdict.rss_per_stream(rows[:1]) is None


def rows_of(contender: str, real_time: bool) -> list[dict]:
    found = []
    for clients, part in ((8, "row"), (16, "row"), (24, "search")):
        measured = latencies(*[0.1 if real_time else 0.9] * 100)
        measured.clients, measured.server_rss, measured.lateness = clients, [int(1e8) + clients * 1000], [0.001]
        found.append({"contender": contender, **verdict.figures(measured, [], 0.64), "part": part})
    return found


def test_the_report(tmp_path):
    rows = rows_of("ours", True) + rows_of("sherpa", False)
    facts = {"model": "m", "context": "c", "cores": "0", "threads": 1, "bound_ms": 640.0, "packets_ms": "20"}
    about = {"ours": "PyTorch", "sherpa": "--flags"}
    path = report.write(
        tmp_path,
        rows,
        {"ours": [44, 48, 50], "sherpa": [40, 32, 20]},
        {"ours": 0.0, "sherpa": 0.0123},
        about,
        facts,
        "bin/bench serve",
        True,
    )
    text = path.read_text()
    assert "| ours | 8 | 100 |" in text and "no: p99 chunk latency over 0.64 s" in text
    assert "- ours: 1.50 (1.10, 1.50, 2.50) x the streams of sherpa" in text
    assert "| ours | 48 (44, 48, 50) |" in text
    assert text.count("| none |") == 1 and "| 1.23 % |" in text
    with (tmp_path / "serve.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [(row["contender"], row["clients"], row["real_time"]) for row in read][::3] == [
        ("ours", "8", "yes"),
        ("sherpa", "8", "no"),
    ]
    assert all(row["command"] == "bin/bench serve" and row["machine"] for row in read)
    assert (tmp_path / "serve.png").read_bytes().startswith(b"\x89PNG")


def test_the_crew_breaks_every_rule_and_the_server_forgets_it():
    """At the server's own port; the next test has those of other protocols, with a model that talks as people do."""
    limits = {"max_streams": 8, "handshake_seconds": 1.0, "idle_seconds": 1.0, "send_seconds": 1.0}
    with served(**limits) as (server, port):
        found = asyncio.run(HostileClients(port, 2, time.monotonic() + 3.0).run())
        for _ in range(2000):
            if server.num_streams == server.num_sessions == 0:
                break
            time.sleep(0.01)
        assert (server.num_streams, server.num_sessions) == (0, 0)
        assert flood(OURS, port, [PCM])[0] == references([PCM])
    kinds = {name.partition(":")[0] for name in found}
    assert kinds >= {"half-open", "slow reader", "garbage", "1 GB message", "1 GB in fragments", "disconnect", "crowd"}
    assert found.get("1 GB message: closed with 1009") and found.get("1 GB in fragments: closed with 1009")
    assert found.get("crowd: HTTP 503")
    assert any(name.startswith("garbage: closed with 1007") for name in found)
    others = {"upload of garbage", "endless upload", "half an upload", "unread events", "crowd of uploads", "reset"}
    assert kinds >= others | {"wrong events", "endless appends"}


def test_hostile_rows_compare_texts_and_memory(talking, tmp_path):
    """In processes of their own, as bin/bench serve --hostile has it, in two of its phases."""
    request = commands.Request(model=str(talking), out=tmp_path, chunk="320ms", plot=False)
    setup = commands.Setup(request, request.model, OURS, Stock(CHUNK, Timebase()), check_cores(None))
    speech, phases = speaker.utterances_of([], 2, 1.0), ("quiet", "hostile")
    rows = hostile.hostile_rows(setup.hostile_server, OURS, speech, 2, 2.5, print, phases, niceness=5)
    assert [row["phase"] for row in rows] == ["quiet", "hostile"]
    for row in rows:
        assert (row["texts_right"], row["clients"], row["faults"], row["streams_left"]) == (2, 2, "", 0)
        assert row["rss_most_mb"] >= row["rss_before_mb"] > 1 and row["chunks"] > 4
    assert not rows[0]["outcomes"] and sum(rows[1]["outcomes"].values()) > 20
    assert any(name.startswith(("wyoming", "vosk", "sherpa")) for name in rows[1]["outcomes"])
    facts = {"model": "m", "context": "c", "cores": "0", "threads": 1, "bound_ms": 640.0, "packets_ms": "20"}
    assert "| hostile | 2 of 2 |" in report.write_hostile(tmp_path, rows, facts, "bin/bench").read_text()


def test_the_model_talks_and_is_the_same_each_time(talking, tmp_path):
    texts = []
    for checkpoint in (talking, speaker.talking_checkpoint(tmp_path / "again", "tiny", vocab_size=120)):
        model = load(checkpoint)
        (samples,) = speaker.utterances_of([], 1, 1.0)
        hypothesis = model.transcribe((samples / np.float32(32768), RATE))
        texts.append(hypothesis.text)
        assert 2 < len(hypothesis.tokens) / (len(samples) / RATE) < 8
        assert max(Counter(hypothesis.timestamps).values()) <= 2  # as of a trained model: no bursts
    assert texts[0] == texts[1] and texts[0]


def test_audio_is_made_to_fit(tmp_path):
    path = tmp_path / "short.wav"
    soundfile.write(path, np.zeros(8000, np.float32), RATE)
    with pytest.raises(ValueError, match=r"short.wav: has 0\.50 s, needed are 1\.28 s"):
        speaker.utterances_of([path], 4, 1.28)
    for size in (9_999, 10_240, 9_000):
        (padded,) = speaker.whole_chunks([np.ones(size, np.int16)], 10_240)
        assert len(padded) % 10_240 == 0 and padded.sum() == size and not padded[-800:].any()
    assert [len(one) for one in speaker.joined(utterances(0.3, 0.5), 2.0, 3)] == [2 * RATE] * 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clients": (16, 8)}, "--clients"),
        ({"clients": (0,)}, "--clients"),
        ({"against": ("kaldi",)}, "--against"),
        ({"bundle": ROOT}, "--bundle"),
        ({"bundle": ROOT, "against": ("bf16",)}, "--bundle"),
        ({"bound": 0.0}, "--bound"),
        ({"most": 0}, "--most"),
        ({"repeats": -1}, "--repeats"),
        ({"threads": 0}, "--threads"),
        ({"seconds": 0.0}, "seconds"),
        ({"packets": (2.0,)}, "packets"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        commands.Request(model="small", out=tmp_path, **wrong)


def test_cores():
    allowed = check_cores(None)
    with pinned({allowed[0]}):
        assert check_cores(None) == [allowed[0]]
    assert check_cores(None) == allowed
    with pytest.raises(ValueError, match="cores must be some of"):
        check_cores([max(allowed) + 1])


def test_a_server_that_does_not_start_says_why(tmp_path):
    script = tmp_path / "server.py"
    script.write_text("import sys; sys.exit('no model here')\n")
    with pytest.raises(RuntimeError, match="no model here"):
        start_ours("ours", [str(script)], tmp_path, check_cores(None), 1)


@pytest.mark.slow
def test_the_stock_server_under_the_same_load(tmp_path):
    """A bundle of ours in sherpa-onnx-online-websocket-server: one result a chunk, and our texts."""
    pytest.importorskip("onnxruntime")
    if not Path(sys.executable).with_name(STOCK_SERVER).is_file():
        pytest.skip(f"{STOCK_SERVER} is not installed (pip install sherpa-onnx-bin)")
    from sumix_stream.export import sherpa

    model, tokenizer, context = talkative_model(), LetterTokenizer(), ChunkContext(CHUNK, 4)
    sherpa.save(tmp_path, model, tokenizer, context)
    search = SearchOptions(max_symbols=speaker.MAX_SYMBOLS)
    samples = speaker.whole_chunks(utterances(0.9, 1.7, 0.5), CHUNK * 640)
    known = []
    for one in samples:
        stream = StreamingRecognizer(model, tokenizer, context, search=search).create_stream()
        stream.feed(RATE, one)
        known.append(stream.finish().text)
    assert all(known)
    stock = Stock(CHUNK, Timebase())
    with start_stock("stock", tmp_path, commands.stock_flags(1)[0], tmp_path, check_cores(None), 1) as server:
        assert flood(stock, server.port, samples)[0] == known
        measured = run_load(stock, server.port, samples, QUICK, server.meter)
    assert not measured.faults and not measured.num_overdue
    assert verdict.num_wrong(measured, known) == 0 and len(measured.texts) >= QUICK.clients
    most = QUICK.clients * (QUICK.seconds / 0.32 + 1)
    assert most / 3 < len(measured.chunks) <= most
    assert min(measured.server_rss) > 1e6


def test_the_int8_bundle_is_made_once(bundle, tmp_path):
    """That of the contenders int8 and sherpa-int8; its cost in words on real speech is measured by bin/export."""
    folder = bundle("sherpa-onnx", "fast", ChunkContext(CHUNK, 4))
    request = commands.Request("m", tmp_path, chunk="320ms", against=("int8",), bundle=folder, plot=False)
    setup = commands.Setup(request, request.model, OURS, Stock(CHUNK, Timebase()), check_cores(None))
    made = setup.bundle_int8
    before = (made / "encoder.onnx").stat()
    assert setup.bundle_int8 == made and (made / "encoder.onnx").stat() == before
    assert before.st_size < 0.7 * (folder / "encoder.onnx").stat().st_size and not (made / "card.json").exists()
