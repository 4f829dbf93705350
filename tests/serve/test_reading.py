"""The reading side of a connection: its one timer, frames in any pieces, and how other threads reach the loop."""

import asyncio
import json
import threading
import time

import numpy as np
import pytest
from serving import PCM, assert_is, expected, make_recognizer, run, serving, uri
from websockets.asyncio.client import connect
from websockets.frames import Frame, Opcode

from sumix_stream.serve.client import transcribe
from sumix_stream.serve.engine import Event
from sumix_stream.serve.reading import DirectConnection, Mailbox


def test_who_waits_for_the_server_is_not_idle():
    """A sender that is paused for longer than it may be silent."""
    recognizer = make_recognizer()
    decode = recognizer.decode

    def slowly(streams):
        time.sleep(0.45)
        return decode(streams)

    async def test():
        async with serving(recognizer, pending_seconds=0.1, idle_seconds=0.3) as (_, port):
            recognizer.decode = slowly
            assert_is(await transcribe(uri(port), PCM[:32_000], packet_seconds=0.1), expected(PCM[:32_000]))

    run(test)


def test_audio_now_and_then_is_not_idle():
    """The timer starts again from the last packet, not from the first."""

    async def test():
        async with serving(idle_seconds=1.0) as (_, port), connect(uri(port)) as client:
            for _ in range(6):
                await client.send(PCM[:160].tobytes())
                await asyncio.sleep(0.25)
            await client.send('{"type": "end"}')
            assert [json.loads(message)["type"] async for message in client][-1] == "done"

    run(test)


def test_reports_of_many_threads_arrive_in_order_and_wake_the_loop_once():
    async def test():
        loop, wakes, got = asyncio.get_running_loop(), [], []
        mailbox, call = Mailbox(), loop.call_soon_threadsafe

        def counted(*arguments):
            wakes.append(arguments)
            return call(*arguments)

        loop.call_soon_threadsafe = counted
        done = asyncio.Event()

        def receive(events):
            got.extend(events)
            if len(got) == 4_000:
                done.set()

        def report(name):
            for n in range(1_000):
                mailbox.send(receive, [Event(name, str(n))])

        report("first")  # nothing is delivered while the loop is held up
        assert len(wakes) == 1 and not got
        threads = [threading.Thread(target=report, args=(f"thread {n}",)) for n in range(3)]
        for thread in threads:
            thread.start()
        await asyncio.wait_for(done.wait(), 10)
        for thread in threads:
            thread.join()
        for name in {event.kind for event in got}:
            assert [int(event.text) for event in got if event.kind == name] == list(range(1_000))

    run(test)


def test_nothing_overtakes_anything():
    """Text, whole messages and fragments in one piece of the connection: audio is not heard before its start."""
    samples = PCM[:24_000].astype("<f4") / 32768

    async def test():
        async with serving() as (_, port), connect(uri(port), compression=None) as client:
            data = [samples[start : start + 320].tobytes() for start in range(0, len(samples), 320)]
            await client.send('{"type": "start", "format": "f32le"}')
            for n, packet in enumerate(data):
                if n % 7 == 3:
                    await client.send([packet[:100], packet[100:101], packet[101:]])
                else:
                    await client.send(packet)
            await client.send('{"type": "end"}')
            return [json.loads(message) async for message in client]

    texts = [message["text"] for message in run(test) if message["type"] == "final"]
    assert texts == [hypothesis.text for hypothesis in expected(samples)]


UPGRADE = (
    "GET /stream HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(opcode: Opcode, data: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


async def upgraded(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A bare connection after its handshake."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(UPGRADE.encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def say(port: int, pieces: list[bytes]) -> list[dict]:
    """Send these bytes, a write each, over a bare connection; the server's text messages."""
    reader, writer = await upgraded(port)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.001)  # one read each, nearly always
    messages = []
    while True:
        head = await reader.readexactly(2)
        length = head[1]
        if length == 126:
            length = int.from_bytes(await reader.readexactly(2), "big")
        body = await reader.readexactly(length)
        if head[0] & 0x0F == Opcode.CLOSE:
            writer.close()
            return messages
        if head[0] & 0x0F == Opcode.TEXT:
            messages.append(json.loads(body))


@pytest.fixture
def parsed(monkeypatch) -> list[Frame]:
    """Frames of audio that the library's parser has taken apart, not ours."""
    seen, process = [], DirectConnection.process_event

    def noted(connection: DirectConnection, event: object) -> None:
        if isinstance(event, Frame) and event.opcode in (Opcode.BINARY, Opcode.CONT):
            seen.append(event)
        process(connection, event)

    monkeypatch.setattr(DirectConnection, "process_event", noted)
    return seen


@pytest.mark.parametrize("seed", range(4))
def test_frames_of_every_kind_in_pieces_of_every_size(seed):
    """Lengths on both sides of each of the three ways to write one, fragments, pings between, cut anywhere."""
    rng = np.random.default_rng(seed)
    samples, audio, start = np.tile(PCM, 3)[:120_000], [], 0
    for size in (0, 62, 63, 64, 1, 32_767, 32_768, 7, *rng.integers(1, 2_000, 1_000)):
        data = samples[start : start + size].tobytes()
        start += size
        if rng.random() < 0.1:
            middle = len(data) // 2
            ping = frame(Opcode.PING, b"between")
            audio.append(frame(Opcode.BINARY, data[:middle], fin=False) + ping + frame(Opcode.CONT, data[middle:]))
        else:
            audio.append(frame(Opcode.BINARY, data) + (frame(Opcode.PING, b"") if rng.random() < 0.05 else b""))
        if start >= len(samples):
            break
    sent = b"".join([frame(Opcode.TEXT, b'{"type": "start"}'), *audio, frame(Opcode.TEXT, b'{"type": "end"}')])
    cuts = np.sort(rng.choice(len(sent), 150, replace=False))
    pieces = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]

    async def test():
        async with serving() as (_, port):
            return await say(port, pieces)

    finals = [message["text"] for message in run(test) if message["type"] == "final"]
    assert finals == [hypothesis.text for hypothesis in expected(samples[:start])]


def test_common_packets_are_taken_apart_here(parsed):
    """What is quick must be what happens; nothing else would tell if the library changed within."""
    packets = [frame(Opcode.BINARY, PCM[at : at + 640].tobytes()) for at in range(0, 32_000, 640)]

    async def test():
        async with serving() as (_, port):
            return await say(port, [*packets, frame(Opcode.TEXT, b'{"type": "end"}')])

    assert run(test)[-1]["type"] == "done"
    assert len(parsed) <= 1  # perhaps the first, before anybody listens


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"\x82\x02ab", 1002),  # not masked
        (b"\xc2\x82\0\0\0\0ab", 1002),  # a reserved bit
        (b"\x80\x82\0\0\0\0ab", 1002),  # a fragment of nothing
        (b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", 1009),  # exabytes
        (b"\x02\x82\0\0\0\0ab\x82\x82\0\0\0\0ab", 1002),  # a message within another
    ],
)
def test_bad_frames_after_good_ones_reach_the_library(bad, code):
    good = frame(Opcode.BINARY, PCM[:640].tobytes())

    async def test():
        async with serving() as (_, port):
            reader, writer = await upgraded(port)
            for piece in (good, good + bad):
                writer.write(piece)
                await asyncio.sleep(0.05)
            data = await reader.read()
            writer.close()
            return data

    data = run(test)
    assert code.to_bytes(2, "big") in data[data.rindex(b"\x88") :]
