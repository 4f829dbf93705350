"""A fast sender is paused by not being read: pongs wait behind its audio, and nobody may be dropped for that."""

import time

import pytest
import websockets.asyncio.client
import websockets.asyncio.server
from serving import PCM, assert_is, expected, make_recognizer, run, serving, uri

from sumix_stream.serve import client, server

SOON = 0.1  # seconds between pings, and what a pong may take where somebody cares


@pytest.mark.parametrize("side", [server, client], ids=["server", "client"])
def test_late_pongs_do_no_harm(side, monkeypatch):
    library = {server: websockets.asyncio.server.serve, client: websockets.asyncio.client.connect}[side]

    def impatient(*arguments, **options):
        return library(*arguments, **{"ping_timeout": SOON, "ping_interval": SOON, **options})

    monkeypatch.setattr(side, library.__name__, impatient)
    recognizer = make_recognizer()
    decode = recognizer.decode

    def slowly(streams):
        time.sleep(SOON)
        return decode(streams)

    recognizer.decode = slowly

    async def test():
        async with serving(recognizer, pending_seconds=0.1) as (_, port):
            assert_is(await client.transcribe(uri(port), PCM, packet_seconds=0.02), expected(PCM))

    run(test)
