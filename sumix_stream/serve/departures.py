"""Who has gone: where nobody reads from a client, because its audio waits, nothing else notices."""

from __future__ import annotations

import asyncio
import math
import socket
import sys
import time
from collections.abc import Iterable

from sumix_stream.serve.protocols.listener import Connected

_TCP_CLOSE, _TCP_CLOSE_WAIT = 7, 8  # of Linux's tcp_info.tcpi_state


class Departures:
    """Ends connections whose clients have gone.

    Args:
        patience: seconds that a client which has ended its sending may wait for results, where its protocol lets it.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._ended: dict[Connected, float] = {}  # that will send nothing more: since when it is known

    def look(self, connections: Iterable[Connected]) -> None:
        """To be called now and then, with all that stream."""
        now, ended = time.monotonic(), {}
        for connection in list(connections):
            transport = connection.transport
            if transport.is_closing():
                continue
            if has_ended_sending(transport):
                ended[connection] = self._ended.get(connection, now)
            patience = self._patience if connection.may_half_close else 0.0
            if is_reset(transport) or ended.get(connection, math.inf) + patience < now:
                transport.abort()
        self._ended = ended


def is_reset(transport: asyncio.BaseTransport) -> bool:
    """Whether the client has reset the connection; where nobody reads or writes, nothing else notices."""
    sock = _tcp_socket(transport)
    if sock is None:
        return False
    if sys.platform == "linux":
        return _tcp_state(sock) == _TCP_CLOSE
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def has_ended_sending(transport: asyncio.BaseTransport) -> bool:
    """Whether all that the client will ever send has come, read or not (FIN); where Linux does not tell, False.

    A client that has gone looks the same as one that only waits for its results.
    """
    sock = _tcp_socket(transport)
    return sock is not None and sys.platform == "linux" and _tcp_state(sock) == _TCP_CLOSE_WAIT


def _tcp_socket(transport: asyncio.BaseTransport) -> socket.socket | None:
    sock = transport.get_extra_info("socket")
    return None if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6) else sock


def _tcp_state(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
