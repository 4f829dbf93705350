"""Options of the ports where other protocols are spoken."""

import asyncio

import pytest
from serving import run, serving, until

from sumix_stream.serve.access import Access, Account
from sumix_stream.serve.commands import make_listeners
from sumix_stream.serve.protocols.listener import Address, read_address
from sumix_stream.serve.protocols.sherpa import Sherpa


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("2700", ("127.0.0.1", 2700)),
        ("0.0.0.0:10300", ("0.0.0.0", 10300)),
        ("asr.example:0", ("asr.example", 0)),
        ("[::1]:6007", ("::1", 6007)),
    ],
)
def test_addresses(text, address):
    assert read_address(text) == Address(*address)
    assert read_address(str(read_address(text))) == Address(*address)


@pytest.mark.parametrize(
    "text", ["", "host", ":2700", "host:", "host:-1", "host:65536", "host:2700x", "::1:2700", "host:²"]
)
def test_addresses_that_are_none(text):
    with pytest.raises(ValueError, match=r"^--vosk must be \[HOST:\]PORT"):
        make_listeners(Access(), vosk=text)


def test_a_server_with_a_token_has_no_open_door_beside_it():
    access = Access([Account("all", "secret")])
    for name in ("wyoming", "vosk", "sherpa"):
        with pytest.raises(ValueError, match=f"--{name}: this protocol has no token.*--allow-unauthenticated"):
            make_listeners(access, **{name: "2700"})
    listeners = make_listeners(access, "1", "2", "0.0.0.0:3", allow_unauthenticated=True, model="m", languages=["de"])
    assert [(one.name, str(one.address)) for one in listeners] == [
        ("wyoming", "127.0.0.1:1"),
        ("vosk", "127.0.0.1:2"),
        ("sherpa", "0.0.0.0:3"),
    ]
    assert (listeners[0].model, listeners[0].languages) == ("m", ["de"]) and make_listeners(Access()) == []


def test_a_port_that_is_taken():
    async def test():
        first = Sherpa(Address("127.0.0.1", 0))
        async with serving(listeners=[first]) as (server, _):
            assert first.address.port > 0
            with pytest.raises(OSError, match=f"--sherpa: cannot listen on 127.0.0.1:{first.address.port}"):
                await Sherpa(first.address).start(server)

    run(test)


def test_half_open_connections_count_as_waiting():
    """Of all ports together; they are closed when they take too long."""

    async def test():
        listening = Sherpa(Address("127.0.0.1", 0))
        limits = {"max_waiting": 8, "handshake_seconds": 0.5}
        async with serving(listeners=[listening], **limits) as (server, port):
            ports = [port, listening.address.port] * 10
            crowd = [await asyncio.open_connection("127.0.0.1", one) for one in ports]
            await asyncio.sleep(0.2)
            assert server.metrics.value("sumix_connections") <= 9
            await until(lambda: server.metrics.value("sumix_connections") == 0)
            for _, writer in crowd:
                writer.transport.abort()

    run(test)
