"""What a packet of audio costs a server's process: its own reading of websocket frames, the library's, and aiohttp's.

    PYTHONPATH=tests .venv/bin/python tests/websocket_cost.py [ROUNDS]

Streams send 20 ms of audio at a time, as they would be spoken; each way receives them and counts, in turns.
"""

import asyncio
import multiprocessing
import resource
import socket
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

from aiohttp import WSMsgType, web
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import Frame, Opcode

from sumix_stream.serve import pacing
from sumix_stream.serve.guard import GuardedConnection
from sumix_stream.serve.limits import Limits

STREAMS, PACKETS = 64, 250
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
OPTIONS = {"compression": None, "ping_interval": None}
Count = Callable[[bytes], None]


class Guarded(GuardedConnection):
    """As the server's, without what comes before the upgrade."""

    limits = Limits()

    def data_received(self, data: bytes) -> None:
        if self._budget is None and b"\r\n\r\n" in data:
            self.begin(data, b"")
        else:
            super().data_received(data)


async def own(sock: socket.socket, count: Count) -> object:
    async def handler(connection: Guarded) -> None:
        connection.opened()
        connection.direct = count
        await connection.wait_closed()

    return await serve(handler, sock=sock, create_connection=Guarded, **OPTIONS)


async def library(sock: socket.socket, count: Count) -> object:
    async def handler(connection: ServerConnection) -> None:
        async for message in connection:
            count(message)

    return await serve(handler, sock=sock, **OPTIONS)


async def by_aiohttp(sock: socket.socket, count: Count) -> object:
    async def handler(request: web.BaseRequest) -> web.WebSocketResponse:
        response = web.WebSocketResponse(compress=False)
        await response.prepare(request)
        async for message in response:
            if message.type is WSMsgType.BINARY:
                count(message.data)
        return response

    return await asyncio.get_running_loop().create_server(web.Server(handler, access_log=None), sock=sock)


def speak(port: int) -> None:
    """A process of clients."""
    packet = Frame(Opcode.BINARY, bytes(640)).serialize(mask=True)
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(STREAMS)]
    for client in clients:
        client.sendall(REQUEST)
        client.recv(4096)
    began = time.monotonic()
    for n in range(PACKETS):
        for place, client in enumerate(clients):
            time.sleep(max(0.0, began + 0.02 * (n + place / STREAMS) - time.monotonic()))
            client.sendall(packet)
    time.sleep(0.5)


def measure(way: Callable[[socket.socket, Count], Awaitable[object]]) -> float:
    """Microseconds of processor a packet."""
    total = 0

    def count(message: bytes) -> None:
        nonlocal total
        total += 1

    async def receive() -> float:
        sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        server = await way(sock, count)
        clients = multiprocessing.get_context("spawn").Process(target=speak, args=(sock.getsockname()[1],))
        clients.start()
        while total < STREAMS:
            await asyncio.sleep(0.01)
        first, began = total, resource.getrusage(resource.RUSAGE_SELF)
        while total < STREAMS * PACKETS:
            await asyncio.sleep(0.05)
        ended = resource.getrusage(resource.RUSAGE_SELF)
        clients.join()
        server.close()
        used = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
        return 1e6 * used / (total - first)

    return pacing.run(receive())


def main() -> None:
    ways = {"own": own, "websockets": library, "aiohttp": by_aiohttp}
    found = {name: [] for name in ways}
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
        for name, way in ways.items():
            found[name].append(measure(way))
    for name, values in found.items():
        print(f"{name:12} {statistics.median(values):6.1f} us a packet ({', '.join(f'{v:.1f}' for v in values)})")


if __name__ == "__main__":
    main()
