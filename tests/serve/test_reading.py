"""The reading side of a connection: its one timer, and how other threads reach the loop."""

import asyncio
import json
import threading
import time

from serving import PCM, assert_is, expected, make_recognizer, run, serving, uri
from websockets.asyncio.client import connect

from sumix_stream.serve.client import transcribe
from sumix_stream.serve.engine import Event
from sumix_stream.serve.reading import Post


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
        post, call = Post(), loop.call_soon_threadsafe

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
                post.send(receive, [Event(name, str(n))])

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
