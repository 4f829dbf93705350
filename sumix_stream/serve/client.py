"""A small client of the server: for tests, load, and as an example of the protocol."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from sumix_stream.serve import protocol


class ServerError(RuntimeError):
    """The server ended the stream: its code and close code."""

    def __init__(self, code: str, message: str, close_code: int | None) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.close_code = code, close_code


@dataclass
class Transcript:
    """What came of one stream; times are in seconds."""

    segments: list[dict] = field(default_factory=list)  # final messages
    partials: list[dict] = field(default_factory=list)
    final_seconds: float = 0.0  # from `end` to the last result
    events: list[dict] = field(default_factory=list)  # messages of other kinds: started, speech_started, ...
    decoded_at: list[tuple[float, float]] = field(default_factory=list)  # (heard, since the first packet) of messages

    @property
    def text(self) -> str:
        return " ".join(segment["text"] for segment in self.segments if segment["text"])

    @property
    def words(self) -> list[dict]:
        return [word for segment in self.segments for word in segment["words"]]


async def transcribe(
    uri: str,
    samples: np.ndarray,
    sample_rate: int = protocol.DEFAULT_RATE,
    *,
    packet_seconds: float = 0.1,
    realtime: bool = False,
    options: Mapping[str, object] | None = None,
    commits: Sequence[float] = (),
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> Transcript:
    """Stream samples (S,), float32 in [-1, 1] or int16, and collect the results.

    Args:
        uri: such as ws://localhost:6006/stream.
        realtime: send packets as they would be spoken; otherwise as fast as the server takes them.
        options: further keys of `start`, such as {"second_pass": True}; see PROTOCOL.md.
        commits: seconds of audio after which what was said becomes final; a packet ends there.
    Raises:
        ServerError: the server reported an error. websockets' InvalidStatus: it refused the stream.
    """
    form = "s16le" if samples.dtype == np.int16 else "f32le"
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    how = {"compression": None, "proxy": None, "ping_timeout": None}  # pongs may wait behind our own audio
    async with connect(uri, additional_headers=headers, ssl=tls, **how) as connection:
        result, began = Transcript(), time.monotonic()
        reader = asyncio.create_task(_collect(connection, result, began))
        packet = max(1, int(packet_seconds * sample_rate))
        data = samples.astype(protocol.DTYPES[form], copy=False)
        committed = {min(len(data), round(seconds * sample_rate)) for seconds in commits}
        ends = sorted({*range(packet, len(data), packet), len(data), *committed})
        try:
            await connection.send(protocol.dump(type="start", sample_rate=sample_rate, format=form, **(options or {})))
            for start, end in zip([0, *ends], ends, strict=False):
                if realtime:
                    await asyncio.sleep(max(0.0, began + end / sample_rate - time.monotonic()))
                if end > start:
                    await connection.send(data[start:end].tobytes())
                if end in committed:
                    await connection.send(protocol.dump(type="commit"))
            ended = time.monotonic()
            await connection.send(protocol.dump(type="end"))
        except ConnectionClosed:
            ended = time.monotonic()  # the reader knows why
        await reader
        result.final_seconds = time.monotonic() - ended
        return result


async def _collect(connection: ClientConnection, result: Transcript, began: float) -> None:
    while True:
        try:
            message = json.loads(await connection.recv())
        except ConnectionClosed as closed:
            code = None if closed.rcvd is None else closed.rcvd.code
            raise ServerError("closed", "the connection was closed before the last result", code) from None
        if message["type"] == "error":
            await connection.wait_closed()
            raise ServerError(message["code"], message["message"], connection.close_code)
        if "decoded" in message:
            result.decoded_at.append((message["decoded"], time.monotonic() - began))
        if message["type"] == "partial":
            result.partials.append(message)
        elif message["type"] == "final":
            result.segments.append(message)
        elif message["type"] == "done":
            return
        elif message["type"] not in ("ready", "progress"):
            result.events.append(message)
