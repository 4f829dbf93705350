"""One connection of a client that speaks in real time: an utterance as websocket frames, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.uri import parse_uri

from sumix_stream.bench.serve.protocols import Listener, ServerProtocol


class Speech(NamedTuple):
    """An utterance as websocket frames. due: seconds from its start to the moment when each is sent."""

    frames: list[bytes]
    due: list[float]
    needed: list[int]  # frame that completes chunk 0, 1, ...; the rest of an utterance belongs to its last result

    @classmethod
    def make(cls, protocol: ServerProtocol, samples: np.ndarray, packet_seconds: float) -> Speech:
        rate = protocol.timebase.sample_rate
        size = max(1, round(packet_seconds * rate))
        starts = range(0, len(samples), size)
        frames = [_frame(protocol.packet(samples[start : start + size])) for start in starts]
        frames[-1] += b"".join(map(_frame, protocol.closing(len(samples))))
        frames[0] = b"".join(map(_frame, protocol.opening())) + frames[0]
        needed = []
        while (num_samples := protocol.needs(len(needed))) <= len(samples):
            needed.append((num_samples - 1) // size)
        return cls(frames, [min(start + size, len(samples)) / rate for start in starts], needed)


def _frame(message: str | bytes) -> bytes:
    opcode, data = (Opcode.TEXT, message.encode()) if isinstance(message, str) else (Opcode.BINARY, message)
    return Frame(opcode, data).serialize(mask=True)


class Talk(asyncio.Protocol):
    """One connection. What is written before the handshake is over waits for it.

    Args:
        began: when its first sample is spoken, on the loop's clock.
        heard: called after each message, with the number of chunks that were recognised before it.
    """

    def __init__(
        self,
        utterance: int,
        speech: Speech,
        listener: Listener,
        began: float,
        heard: Callable[[Talk, int], None] = lambda talk, before: None,
    ) -> None:
        self.utterance, self.speech, self.listener, self.began = utterance, speech, listener, began
        self.over = asyncio.Event()  # the last result is here, or the connection is gone
        self.fault: str | None = None
        self.num_sent = 0  # frames
        self._heard = heard
        self._waiting: list[bytes] | None = []
        self._transport: asyncio.Transport | None = None
        self._websocket: ClientProtocol | None = None

    @property
    def is_answered(self) -> bool:
        """Its handshake is done with, or the connection is gone."""
        return self._waiting is None or self.over.is_set()

    async def connect(self, protocol: ServerProtocol, port: int) -> None:
        self._websocket = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}{protocol.path}"), max_size=None)
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port)
        except OSError as error:
            self._end(type(error).__name__)

    def write(self, frame: bytes) -> None:
        if self._waiting is not None:
            self._waiting.append(frame)
        elif not self._transport.is_closing():
            self._transport.write(frame)

    def close(self) -> None:
        """Without a goodbye."""
        self._end("cut off")
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if self.over.is_set():
            transport.abort()
            return
        self._websocket.send_request(self._websocket.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._websocket.receive_data(data)
        for event in self._websocket.events_received():
            if not isinstance(event, Frame):
                if self._websocket.handshake_exc is not None:
                    self._end(f"HTTP {event.status_code}")
                else:
                    for frame in self._waiting:
                        self._transport.write(frame)
                    self._waiting = None
            elif event.opcode is Opcode.TEXT:
                before = self.listener.num_chunks
                self.listener.hear(bytes(event.data).decode())
                self._heard(self, before)
                if self.listener.fault or self.listener.is_final:
                    self._end(self.listener.fault)
            elif event.opcode is Opcode.CLOSE:
                self._end(f"closed with {Close.parse(event.data).code}")
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("connection lost")

    def _flush(self) -> None:
        for data in self._websocket.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()

    def _end(self, fault: str | None) -> None:
        if not self.over.is_set():
            self.fault = None if self.listener.is_final else fault
            self.over.set()
