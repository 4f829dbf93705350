"""Our bundle in unmodified sherpa-onnx: its Python recogniser, and its websocket server over real connections."""

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest

from sumix_stream.export import sherpa
from sumix_stream.nn.chunking import ChunkContext

sherpa_onnx = pytest.importorskip("sherpa_onnx")
websockets = pytest.importorskip("websockets")

CONTEXTS = [ChunkContext(8, 2), ChunkContext(4, None)]
PACKETS = [1, 7, 160, 1000, 4801, 333]  # samples, in turn
SERVER = "sherpa-onnx-online-websocket-server"


def padded(samples: np.ndarray, context: ChunkContext) -> np.ndarray:
    return np.concatenate([samples, np.zeros(sherpa.padding(len(samples), context), np.float32)])


def packets(samples: np.ndarray, first: int) -> Iterator[np.ndarray]:
    """Odd packets; each stream begins at another size."""
    start, turn = 0, first
    while start < len(samples):
        size = PACKETS[turn % len(PACKETS)]
        yield samples[start : start + size]
        start, turn = start + size, turn + 1


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_the_stock_recogniser_gives_the_same_tokens(context, bundle, expected, sounds):
    folder = bundle("sherpa-onnx", "fast", context)
    names = {name: str(folder / f"{name}.onnx") for name in ("encoder", "decoder", "joiner")}
    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens=str(folder / sherpa.TOKENS), **names, num_threads=1, enable_endpoint_detection=False
    )
    audio = [padded(samples, context) for samples in sounds]
    streams = [recognizer.create_stream() for _ in audio]
    batches = {0}
    for turn in zip_longest(*(packets(samples, i) for i, samples in enumerate(audio))):
        for stream, packet in zip(streams, turn, strict=True):
            if packet is not None:
                stream.accept_waveform(16_000, packet)
        # Wait for several, so that streams of different ages share a batch.
        if len(ready := [stream for stream in streams if recognizer.is_ready(stream)]) > 2:
            recognizer.decode_streams(ready)
            batches.add(len(ready))
    for stream in streams:
        stream.input_finished()
    while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
        recognizer.decode_streams(ready)
    assert max(batches) > 2
    for stream, samples in zip(streams, audio, strict=True):
        tokens = expected("fast", context, samples)
        assert recognizer.tokens(stream) == tokens
        assert tokens


@pytest.fixture(scope="module", params=CONTEXTS, ids=str)
def server(request, bundle, tmp_path_factory) -> Iterator[tuple[ChunkContext, int]]:
    """The stock server on a free port of the loopback interface."""
    beside = Path(sys.executable).with_name(SERVER)
    program = str(beside) if beside.is_file() else shutil.which(SERVER)
    if program is None:
        pytest.skip(f"{SERVER} is not installed (pip install sherpa-onnx-bin)")
    folder = bundle("sherpa-onnx", "fast", request.param)
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = {"tokens": sherpa.TOKENS, "encoder": sherpa.ENCODER, "decoder": sherpa.DECODER, "joiner": sherpa.JOINER}
    command = [
        program,
        f"--port={port}",
        *(f"--{name}={folder / file}" for name, file in files.items()),
        "--num-work-threads=1",
        "--max-batch-size=8",
        "--enable-endpoint=false",
        "--end-tail-padding=0.001",
        f"--log-file={log}",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=log.parent) as process:
        try:
            wait_for(process, port)
            yield request.param, port
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def wait_for(process: subprocess.Popen, port: int) -> None:
    async def connect() -> None:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)
        raise RuntimeError(f"the server ended with status {process.returncode}")

    asyncio.run(asyncio.wait_for(connect(), 60))


def test_the_stock_server_gives_the_same_tokens(server, expected, sounds):
    context, port = server
    audio = [padded(samples, context) for samples in sounds]

    async def talk(samples: np.ndarray, first: int) -> dict:
        async with websockets.connect(f"ws://127.0.0.1:{port}", max_size=None) as connection:

            async def listen() -> dict:
                last, patience = {}, None
                while not (patience and last.get("is_final")):
                    try:
                        message = await asyncio.wait_for(connection.recv(), patience)
                    except asyncio.TimeoutError:
                        break
                    if message == "Done!":  # from another thread than results: it may overtake the last one
                        patience = 2.0
                    else:
                        last = json.loads(message)
                return last

            listener = asyncio.create_task(listen())
            for packet in packets(samples, first):
                await connection.send(packet.astype("<f4").tobytes())
                await asyncio.sleep(0)
            await connection.send("Done")
            return await listener

    async def all_together() -> list[dict]:
        return await asyncio.gather(*(talk(samples, i) for i, samples in enumerate(audio)))

    results = asyncio.run(asyncio.wait_for(all_together(), 120))
    for result, samples in zip(results, audio, strict=True):
        assert result["tokens"] == expected("fast", context, samples)
        assert result["tokens"]
