"""Unmodified sherpa-onnx: its Python recogniser and its websocket server at work on a bundle, and its client."""

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import soundfile
from processes import running
from websockets.asyncio.client import connect

from sumix_stream.context import ChunkContext
from sumix_stream.export import sherpa
from sumix_stream.timebase import Timebase

MAX_SYMBOLS = 10  # tokens a frame in sherpa-onnx; ours are asked for as many
PACKETS = [1, 7, 160, 1000, 4801, 333]  # samples, in turn
RATE = 16_000
SERVER = "sherpa-onnx-online-websocket-server"
_BESIDE = Path(sys.executable).with_name(SERVER)
PROGRAM = str(_BESIDE) if _BESIDE.is_file() else shutil.which(SERVER)
CLIENT = None if PROGRAM is None else str(Path(PROGRAM).with_name("sherpa-onnx-online-websocket-client"))
NEEDED = f"{SERVER} is not installed (pip install sherpa-onnx-bin)"


def padded(samples: np.ndarray, context: ChunkContext, timebase: Timebase | None = None) -> np.ndarray:
    """Samples with the zeros that a client of sherpa-onnx has to send after them."""
    return np.concatenate([samples, np.zeros(sherpa.padding(len(samples), context, timebase), np.float32)])


def packets(samples: np.ndarray, first: int) -> Iterator[np.ndarray]:
    """Odd packets; each stream begins at another size."""
    start, turn = 0, first
    while start < len(samples):
        size = PACKETS[turn % len(PACKETS)]
        yield samples[start : start + size]
        start, turn = start + size, turn + 1


def recognise(folder: Path, audio: Sequence[np.ndarray], least: int = 1) -> tuple[list[list[str]], int]:
    """Tokens of streams that come in odd packets, all at once, and the largest batch.

    `least`: streams that a step waits for while audio comes, so that streams of different ages share a batch.
    """
    import sherpa_onnx

    names = {name: str(folder / f"{name}.onnx") for name in ("encoder", "decoder", "joiner")}
    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens=str(folder / sherpa.TOKENS), **names, num_threads=1, enable_endpoint_detection=False
    )
    streams, largest = [recognizer.create_stream() for _ in audio], 0
    for turn in zip_longest(*(packets(samples, i) for i, samples in enumerate(audio))):
        for stream, packet in zip(streams, turn, strict=True):
            if packet is not None:
                stream.accept_waveform(RATE, packet)
        if len(ready := [stream for stream in streams if recognizer.is_ready(stream)]) >= least:
            recognizer.decode_streams(ready)
            largest = max(largest, len(ready))
    for stream in streams:
        stream.input_finished()
    while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
        recognizer.decode_streams(ready)
    return [recognizer.tokens(stream) for stream in streams], largest


@contextlib.contextmanager
def stock_server(folder: Path) -> Iterator[int]:
    """The stock server with a bundle, on a free port of the loopback interface: the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = {"tokens": sherpa.TOKENS, "encoder": sherpa.ENCODER, "decoder": sherpa.DECODER, "joiner": sherpa.JOINER}
    with tempfile.TemporaryDirectory() as logs:
        command = [
            PROGRAM,
            f"--port={port}",
            *(f"--{name}={folder / file}" for name, file in files.items()),
            "--num-work-threads=1",
            "--max-batch-size=8",
            "--enable-endpoint=false",
            "--end-tail-padding=0.001",
            f"--log-file={logs}/log.txt",
        ]
        with running(command, logs) as process:
            _wait_for(process, port)
            yield port


def _wait_for(process: subprocess.Popen, port: int) -> None:
    async def attempt() -> None:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)
        raise RuntimeError(f"the server ended with status {process.returncode}")

    asyncio.run(asyncio.wait_for(attempt(), 60))


def ask(port: int, audio: Sequence[np.ndarray], seconds: float = 120.0) -> list[list[str]]:
    """Tokens of streams sent to the stock server in odd packets, over as many connections at once."""

    async def talk(samples: np.ndarray, first: int) -> list[str]:
        async with connect(f"ws://127.0.0.1:{port}", max_size=None, proxy=None) as connection:
            listener = asyncio.create_task(_last_result(connection))
            for packet in packets(samples, first):
                await connection.send(packet.astype("<f4").tobytes())
                await asyncio.sleep(0)
            await connection.send("Done")
            return (await listener)["tokens"]

    async def all_together() -> list[list[str]]:
        return await asyncio.gather(*(talk(samples, i) for i, samples in enumerate(audio)))

    return asyncio.run(asyncio.wait_for(all_together(), seconds))


async def _last_result(connection) -> dict:
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


async def client_results(port: int, samples: np.ndarray, seconds: float = 60.0) -> list[dict]:
    """All results that the stock client program shows of int16 samples (S,) for a server on loopback.

    Raises RuntimeError with what it wrote where it fails or is not told the end.
    """
    with tempfile.TemporaryDirectory() as folder:
        soundfile.write(f"{folder}/a.wav", samples, RATE)
        flags = [f"--server-port={port}", "--seconds-per-message=0.01", f"{folder}/a.wav"]
        client = await asyncio.create_subprocess_exec(CLIENT, *flags, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _, written = await asyncio.wait_for(client.communicate(), seconds)
        finally:
            if client.returncode is None:
                client.kill()
                await client.wait()
    lines = written.decode().splitlines()
    if client.returncode or not any("Done!" in line for line in lines):
        raise RuntimeError(f"{CLIENT} ended with status {client.returncode}: {' | '.join(lines)}")
    return [json.loads(line[line.index("{") :]) for line in lines if '{"text"' in line]
