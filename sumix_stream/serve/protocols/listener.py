"""Ports on which the server speaks other protocols, within its places and limits."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sumix_stream.serve.access import Grant
from sumix_stream.serve.protocol import ProtocolError

if TYPE_CHECKING:
    from sumix_stream.serve.server import Server

LOOPBACK = "127.0.0.1"


class Address(NamedTuple):
    """Where to listen; port 0 = any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(text: str) -> Address:
    """[HOST:]PORT, with loopback where no host is named. Raises ValueError saying what is wrong."""
    host, colon, port = text.strip().rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise ValueError(f"must be [HOST:]PORT with a port of 0 to 65535, got {text!r}")
    bare = host.removeprefix("[").removesuffix("]")
    if (colon and not bare) or (":" in bare and host != f"[{bare}]"):
        raise ValueError(f"must be [HOST:]PORT, an IPv6 address in brackets, got {text!r}")
    return Address(bare or LOOPBACK, int(port))


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Connected(Protocol):
    """A connection as the server counts it."""

    transport: asyncio.Transport
    grant: Grant | None  # its place among the streams, once it has had one
    protocol_name: str
    dropped: bool  # its reader was too slow
    may_half_close: bool  # a client that has closed its side may wait for results, `idle_seconds` at most


class Talk(Protocol):
    """A conversation with one client that can be ended."""

    def end(self, fault: ProtocolError) -> None:
        """Say what is wrong as the last thing."""


class Listener(ABC):
    """One port and its protocol, which has no place for a token: everybody who reaches the port may stream."""

    name: str  # of the protocol, in logs and metrics

    def __init__(self, address: Address) -> None:
        self.address = address
        self.talks: set[Talk] = set()  # under way

    async def start(self, server: Server) -> None:
        """Listen. Raises OSError naming the protocol where that cannot be."""
        try:
            await self.listen(server)
        except OSError as fault:
            raise OSError(f"--{self.name}: cannot listen on {self.address} ({fault.strerror or fault})") from None
        self.address = self.address._replace(port=self.sockets[0].getsockname()[1])

    @abstractmethod
    async def listen(self, server: Server) -> None:
        """Listen for a server that has been started."""

    @property
    @abstractmethod
    def sockets(self) -> tuple[socket.socket, ...]:
        """On which it listens."""

    @abstractmethod
    def close(self) -> None:
        """Take no more connections."""

    @abstractmethod
    async def wait_closed(self) -> None:
        """Until all connections are gone."""

    def end_all(self, fault: ProtocolError) -> None:
        """Have all conversations end."""
        for talk in list(self.talks):
            talk.end(fault)
