"""The real nginx in front, with the configuration of deploy/: a sub-path, and two servers of which one drains."""

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conftest import ROOT
from serving import PCM, assert_is, expected, http, run, serving, until, uri
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from sumix_stream.serve.access import Access, read_networks
from sumix_stream.serve.client import transcribe

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx-light)")
AROUND = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {own}
}}
"""


@asynccontextmanager
async def nginx(folder: Path, ports: Sequence[int]) -> AsyncIterator[int]:
    """Its port, in front of servers at two ports."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = (ROOT / "deploy" / "nginx.conf").read_text()
    for old, new in (
        ("first:6006", f"127.0.0.1:{ports[0]}"),
        ("second:6006", f"127.0.0.1:{ports[1]}"),
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("/dev/stdout", f"{folder}/access.log"),
    ):
        assert own.count(old) == 1, old
        own = own.replace(old, new)
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder, own=own))
    process = subprocess.Popen([NGINX, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"])
    try:
        for _ in range(1000):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                assert process.poll() is None, (folder / "error.log").read_text()
                await asyncio.sleep(0.01)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def below(port: int, query: str = "") -> str:
    return f"ws://127.0.0.1:{port}/asr/stream{query}"


@pytest.mark.parametrize("base_path", ["", "/asr"])
def test_everything_works_below_a_path(base_path, tmp_path):
    """Whether the proxy takes the path away or not; pages of others are refused, and clients are told apart."""
    access = Access(streams_per_client=1, trusted_proxies=read_networks(["127.0.0.1"]))

    async def test():
        async with serving(access=access, base_path=base_path) as (server, own):
            if base_path:
                conf = (ROOT / "deploy" / "nginx.conf").read_text()
                assert "proxy_pass http://sumix/;" in conf
            async with nginx(tmp_path, [own, own]) as port:
                status, headers, page = await http(port, "/asr/", "Connection: close")
                assert status == 200 and "<script>" in page and headers["Content-Security-Policy"]
                status, headers, _ = await http(port, "/asr?token=x", "Connection: close")
                assert (status, headers["Location"].endswith("/asr/?token=x")) == (301, True)
                status, _, body = await http(port, "/asr/health", "Connection: close")
                assert (status, json.loads(body)["status"]) == (200, "ok")
                assert (await http(port, "/asr/live", "Connection: close"))[0] == 200
                assert (await http(port, "/asr/metrics", "Connection: close"))[0] == 404
                assert (await http(own, f"{base_path}/metrics"))[0] == 200
                assert_is(await transcribe(below(port), PCM), expected(PCM))
                await until(lambda: server.num_streams == 0)
                async with connect(below(port), origin=f"http://127.0.0.1:{port}"):
                    with pytest.raises(InvalidStatus) as refused:
                        await connect(below(port))
                    assert refused.value.response.status_code == 429, "one client, whom the proxy names"
                await until(lambda: server.num_streams == 0)
                with pytest.raises(InvalidStatus) as refused:
                    await connect(below(port), origin="https://elsewhere.example")
                assert refused.value.response.status_code == 403
            assert "token" not in (tmp_path / "access.log").read_text()

    run(test)


def test_one_of_two_servers_drains_while_streams_go_on(tmp_path):
    """Its stream ends exactly, new ones go to the other, and nobody sees an error."""

    async def speak(client, samples) -> list[dict]:
        await client.send(samples.tobytes())
        await client.send('{"type": "end"}')
        return [json.loads(message) async for message in client]

    async def test():
        async with serving() as (first, one), serving() as (second, two), nginx(tmp_path, [one, two]) as port:
            servers = {first: await connect(uri(one)), second: await connect(uri(two))}  # one stream each: equal load
            clients = [await connect(below(port)) for _ in range(2)]
            await until(lambda: (first.num_streams, second.num_streams) == (2, 2))
            for client in clients:
                await client.send(PCM[:16_000].tobytes())
            stopping = asyncio.create_task(first.stop())
            await until(lambda: first.draining)
            for _ in range(4):
                assert_is(await transcribe(below(port), PCM), expected(PCM))
            assert json.loads((await http(port, "/asr/health", "Connection: close"))[2])["status"] == "ok"
            for client in clients:
                messages = await speak(client, PCM[16_000:])
                finals = [message["text"] for message in messages if message["type"] == "final"]
                assert finals == [hypothesis.text for hypothesis in expected(PCM)] and messages[-1]["type"] == "done"
            await servers[first].close()
            await stopping
            first.stop = lambda: asyncio.sleep(0)  # it has stopped
            assert_is(await transcribe(below(port), PCM), expected(PCM))
            await servers[second].close()

    run(test)
