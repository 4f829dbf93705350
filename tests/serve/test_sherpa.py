"""Clients of sherpa-onnx's streaming server at our port for them: its stock program, and its messages one by one."""

import asyncio
import os
import socket

import numpy as np
import pytest
import stock_sherpa
from foreign_clients import sherpa_results
from serving import PCM, expected, healthy, reference, run, serving, until
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sumix_stream.serve.protocols.listener import Address
from sumix_stream.serve.protocols.sherpa import Sherpa

FLOATS = (PCM / np.float32(32768)).astype("<f4")


def listener() -> Sherpa:
    return Sherpa(Address("127.0.0.1", 0))


def shown(pieces: list[str]) -> list[str]:
    return [piece.replace("▁", " ") for piece in pieces]


def segments(results: list[dict]) -> list[dict]:
    return [result for result in results if result["is_final"]]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_messages_of_its_clients(workers):
    """Results grow within a segment, end with one that is final, and together have every token of the whole."""

    async def test():
        port_of = listener()
        async with serving(listeners=[port_of], workers=workers) as (server, port):
            results, _ = await asyncio.gather(sherpa_results(port_of.address.port, FLOATS), healthy(port))
            assert server.metrics.value("sumix_streams_opened_total", protocol="sherpa") == 1
            assert server.metrics.value("sumix_streams_opened_total") == 2
            return results

    results = run(test)
    keys = "text tokens timestamps ys_probs lm_probs context_scores segment words start_time is_final is_eof"
    assert all(list(result) == keys.split() for result in results)
    ends, alone = segments(results), expected(PCM)
    assert [end["text"] for end in ends] == [hypothesis.text for hypothesis in alone] and len(ends) >= 3
    assert [token for end in ends for token in end["tokens"]] == shown(reference(PCM))
    assert [end["segment"] for end in ends] == list(range(len(ends)))
    assert [end["is_eof"] for end in ends] == [False] * (len(ends) - 1) + [True]
    for end, hypothesis in zip(ends, alone, strict=True):
        assert np.allclose(np.add(end["start_time"], end["timestamps"]), hypothesis.timestamps, atol=2e-3)
        grows = [one for one in results if one["segment"] == end["segment"]]
        assert all(end["tokens"][: len(one["tokens"])] == one["tokens"] for one in grows)
    assert len(results) > len(ends)


@pytest.mark.skipif(stock_sherpa.CLIENT is None, reason=stock_sherpa.NEEDED)
def test_the_stock_client():
    async def test():
        port_of = listener()
        async with serving(listeners=[port_of]) as (server, _):
            results = await stock_sherpa.client_results(port_of.address.port, PCM)
            await until(lambda: server.num_streams == 0)
            return results

    assert [token for end in segments(run(test)) for token in end["tokens"]] == shown(reference(PCM))


FAULTS = {
    "another text": (["Stop"], 1007, "bad_message"),
    "JSON": (['{"config": 1}'], 1007, "bad_message"),
    "half a sample": ([b"\0\0\0"], 1007, "bad_audio"),
    "NaN": ([np.array([0.0, np.nan], "<f4").tobytes()], 1007, "bad_audio"),
    "16-bit samples": ([PCM.tobytes()], 1007, "bad_audio"),
    "a WAV file": ([b"RIFF\0\0\0\0WAVE" + bytes(100)], 1007, "bad_audio"),
    "an oversized message": ([bytes(1 << 21)], 1009, ""),
    "too much audio": ([FLOATS.tobytes()] * 4, 1008, "too_long"),
    "nothing": ([], 1008, "idle"),
    "empty messages": ([b""] * 50, 1008, "idle"),
}


async def last_words(port: int, messages: list) -> tuple[int, str]:
    """Close code and the reason's code."""
    async with connect(f"ws://127.0.0.1:{port}", proxy=None, max_size=None) as client:
        try:
            for message in messages:
                await client.send(message)
            while True:
                received = await asyncio.wait_for(client.recv(), 20)
                assert "Traceback" not in received and ".py" not in received
        except ConnectionClosed:
            assert len(client.close_reason.encode()) <= 123
            return client.close_code, client.close_reason.partition(":")[0]


def test_faults_close_with_a_reason_and_healthy_streams_are_unharmed():
    async def test():
        port_of = listener()
        async with serving(listeners=[port_of], idle_seconds=2.0, max_seconds=14.0, max_streams=20) as (server, port):
            steady = asyncio.create_task(healthy(port, realtime=True))
            theirs = port_of.address.port
            found = await asyncio.gather(*(last_words(theirs, messages) for messages, _, _ in FAULTS.values()))
            for (name, (_, code, reason)), (got, told) in zip(FAULTS.items(), found, strict=True):
                assert (got, told if reason else "") == (code, reason), name
            await steady
            await until(lambda: server.num_streams == 0)
            assert server.metrics.value("sumix_errors_total", code="idle") == 2
            assert server.metrics.value("sumix_errors_total", code="too_big") == 1

    run(test)


def test_places_are_shared_and_come_back():
    """Ports of both protocols count for one limit; who is refused hears why before the upgrade."""

    async def test():
        port_of = listener()
        async with serving(listeners=[port_of], max_streams=1) as (server, port):
            async with connect(f"ws://127.0.0.1:{port_of.address.port}", proxy=None) as client:
                await client.send(FLOATS.tobytes())
                with pytest.raises(InvalidStatus) as refused:
                    await sherpa_results(port_of.address.port, FLOATS)
                assert refused.value.response.status_code == 503 and b"full" in refused.value.response.body
                with pytest.raises(InvalidStatus):
                    await healthy(port)
            await until(lambda: server.num_streams == 0 and server.num_sessions == 0)
            assert server.metrics.value("sumix_protocol_streams") == 0
            await healthy(port)

    run(test)


def test_a_fast_sender_who_never_reads_is_paused_and_dropped():
    long = np.tile(FLOATS, 3).tobytes()

    async def test():
        port_of = listener()
        limits = {"send_seconds": 0.5, "pending_seconds": 1.0, "max_message_bytes": 1 << 22}
        async with serving(listeners=[port_of], **limits) as (server, port):
            (listening,) = port_of.sockets
            with socket.socket(fileno=os.dup(listening.fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            client, waiting = await unread(port_of.address.port), []
            steady = asyncio.create_task(healthy(port))
            with pytest.raises(ConnectionClosed):
                while True:
                    await client.send(long)
                    waiting += [session.pending_seconds for session in list(server._engine._sessions)]
            assert max(waiting) < 1.0 + 0.5 + 12.0  # the limit, a chunk, and the message that went over it
            await steady
            await until(lambda: server.num_streams == 0)
            assert server.metrics.value("sumix_errors_total", code="slow_reader") == 1

    run(test)


async def unread(port: int) -> ClientConnection:
    """A client that never reads what it is sent."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    client = await connect(f"ws://127.0.0.1:{port}", sock=sock, proxy=None, ping_interval=None)
    client.transport.pause_reading()
    return client


def test_a_server_that_is_shut_down_says_so():
    async def test():
        port_of = listener()
        async with serving(listeners=[port_of], drain_seconds=0.2) as (server, _):
            async with connect(f"ws://127.0.0.1:{port_of.address.port}", proxy=None) as client:
                await client.send(FLOATS[:1600].tobytes())
                await until(lambda: server.num_sessions == 1)
                stopping = asyncio.create_task(server.stop())
                with pytest.raises(ConnectionClosed):
                    while True:
                        await client.recv()
                assert (client.close_code, client.close_reason.partition(":")[0]) == (1001, "going_away")
                await stopping
            server.stop = lambda: asyncio.sleep(0)  # it has been

    run(test)
