"""A server on loopback with a small talkative model, and what its clients should get."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache

import numpy as np
import pytest
from talkative import LetterTokenizer, sound, talkative_model
from textbook import transcribe_masked

from sumix_stream.audio import resample
from sumix_stream.context import ChunkContext
from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.hypothesis import Hypothesis
from sumix_stream.search.options import SearchOptions
from sumix_stream.serve.client import Transcript, transcribe
from sumix_stream.serve.limits import Limits
from sumix_stream.serve.server import Server
from sumix_stream.serve.workers import Spawn
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.recognizer import Recognizer
from sumix_stream.streaming.stream import StreamingRecognizer

RATE = 16_000
_RULES = Endpointing.sherpa(rule3=1.5)  # of make_recognizer
LETTERS = "abcdefghijklmnopqrstuvw"  # that LetterTokenizer writes
PCM = (sound(4.0, seed=5) * 32767).astype(np.int16)


def make_recognizer(endpoint: float = 1.5) -> StreamingRecognizer:
    rules = Endpointing.sherpa(rule3=endpoint)
    return StreamingRecognizer(talkative_model(), LetterTokenizer(), ChunkContext(8, 4), endpointing=rules)


@asynccontextmanager
async def serving(recognizer: StreamingRecognizer | None = None, *, send_buffer: int = 0, **limits) -> AsyncIterator:
    """(server, port); `limits` as of Limits, but for the server's own options. Nothing may be left when it ends."""
    own = ("token", "access", "base_path", "listeners", "log_text")
    given = {name: limits.pop(name) for name in (*own, "tls", "workers") if name in limits}
    spawn = Spawn(make_recognizer, given["workers"]) if given.get("workers", 1) > 1 else None
    options = {name: given[name] for name in own if name in given}
    server = Server(recognizer or make_recognizer(), Limits(**limits), spawn=spawn, **options)
    sock = socket.create_server(("127.0.0.1", 0))
    if send_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    port = await server.start(sock=sock, tls=given.get("tls"))
    try:
        yield server, port
    finally:
        await server.stop()
    assert (server.num_streams, server.num_sessions, server.metrics.value("sumix_streams")) == (0, 0, 0)


def spell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let LetterTokenizer encode, for hotwords; 0 stands for what it cannot write."""

    def encode(self: LetterTokenizer, text: str) -> list[int]:
        return [LETTERS.find(letter) + 1 for letter in text.replace(" ", "")]

    own = {"unk_id": 0, "encode": encode, "unknown_characters": lambda self, text: set(text) - set(LETTERS)}
    for name, value in own.items():
        monkeypatch.setattr(LetterTokenizer, name, value, raising=False)


def reference(samples: np.ndarray, rate: int = RATE) -> list[str]:
    """Pieces of the whole utterance by the masked forward under the context of make_recognizer."""
    heard = resample(samples if samples.dtype == np.float32 else samples / np.float32(32768), rate)
    (found,) = transcribe_masked(talkative_model(), LetterTokenizer(), [heard], ChunkContext(8, 4))
    return [LetterTokenizer().piece(token) for token in found.tokens]


def uri(port: int, query: str = "", scheme: str = "ws") -> str:
    return f"{scheme}://127.0.0.1:{port}/stream{query}"


def run(test: Callable[[], Awaitable]) -> object:
    """Run a coroutine function to its end, at most a minute."""
    return asyncio.run(asyncio.wait_for(test(), 60))


def expected(samples: np.ndarray, rate: int = RATE, endpoint: float = 1.5) -> list[Hypothesis]:
    """Segments of a stream that has the recogniser for itself."""
    return _expected(samples.tobytes(), samples.dtype.str, rate, endpoint)


@cache
def _expected(audio: bytes, dtype: str, rate: int, endpoint: float) -> list[Hypothesis]:
    samples, recognizer = np.frombuffer(audio, dtype), make_recognizer(endpoint)
    stream, found = recognizer.create_stream(), []
    recognizer.accept_waveform(stream, rate, samples)
    recognizer.input_finished(stream)
    while recognizer.decode([stream]):
        if recognizer.is_endpoint(stream) and not stream.is_finished:
            found += [stream.result()] if stream.num_tokens else []
            recognizer.reset(stream)
    return [*found, stream.result()]


def library(
    samples: np.ndarray,
    commits: list[float] = (),
    *,
    chunk: int = 8,
    left: int | None = 4,
    search: SearchOptions = SearchOptions(),  # noqa: B008
    rules: Endpointing = _RULES,
    second_pass: bool = False,
    hotwords: Hotwords | None = None,
) -> list:
    """(text, streaming text) of the segments of a stream that has a recogniser for itself."""
    model = Recognizer(talkative_model(), LetterTokenizer())
    recognizer = model.streaming(chunk, left, search=search, endpointing=rules, second_pass=second_pass)
    stream, found = recognizer.create_stream(hotwords=hotwords), []

    def note(final) -> None:
        found.append((final.hypothesis.text, final.streaming.text))

    def decode() -> None:
        while recognizer.decode([stream]):
            if recognizer.is_endpoint(stream) and not stream.is_finished:
                if stream.num_tokens:
                    note(recognizer.final(stream))
                recognizer.reset(stream)

    start = 0
    for seconds in commits:
        recognizer.accept_waveform(stream, RATE, samples[start : round(seconds * RATE)])
        decode()
        note(recognizer.commit(stream).final())
        start = round(seconds * RATE)
    recognizer.accept_waveform(stream, RATE, samples[start:])
    recognizer.input_finished(stream)
    decode()
    note(recognizer.final(stream))
    return found


def assert_is(transcript: Transcript, hypotheses: list[Hypothesis]) -> None:
    """Text and words' times are exactly those; confidences up to rounding."""
    assert [segment["text"] for segment in transcript.segments] == [hypothesis.text for hypothesis in hypotheses]
    assert [segment["segment"] for segment in transcript.segments] == list(range(len(hypotheses)))
    starts = [[word["start"] for word in segment["words"]] for segment in transcript.segments]
    firsts = [[round(h.timestamps[0], 3)] if h.tokens else [] for h in hypotheses]
    assert [times[:1] for times in starts] == firsts


async def healthy(port: int, **options: object) -> None:
    """A client that minds its own business gets what it would get alone."""
    assert_is(await transcribe(uri(port), PCM, RATE, **options), expected(PCM))


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition; fails after `seconds`."""
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


async def http(port: int, path: str, *headers: str) -> tuple[int, dict[str, str], str]:
    """A plain request: status, headers and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
    writer.write("\r\n".join(lines).encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status, *fields = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in fields), body.decode()
