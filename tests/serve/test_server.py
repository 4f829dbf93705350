"""The server with clients that keep to the protocol."""

import asyncio
import json
import logging
import os
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from serving import PCM, RATE, assert_is, expected, healthy, http, make_recognizer, reference, run, serving, until, uri
from talkative import VOCAB_SIZE, LetterTokenizer, sound, talkative_model
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from sumix_stream.checksums import write_sums
from sumix_stream.serve.client import ServerError, transcribe
from sumix_stream.serve.commands import tls_context
from sumix_stream.serve.logs import JsonFormatter
from sumix_stream.tasks.checkpoint import save_model
from sumix_stream.tokenizer import train_tokenizer


@pytest.mark.parametrize("workers", [1, 3])
def test_many_clients_of_all_kinds_get_what_they_would_get_alone(workers):
    clients = [
        (RATE, sound(3.0, seed=1), 0.1),
        (RATE, (sound(4.1, seed=2) * 32767).astype(np.int16), 0.013),
        (8_000, sound(2.0, 8_000, seed=3), 0.5),
        (44_100, sound(2.0, 44_100, seed=4), 0.02),
        (RATE, sound(0.2, seed=5), 0.1),
        (RATE, np.zeros(0, np.float32), 0.1),
        (RATE, sound(9.0, seed=6), 9.0),
    ]

    async def test():
        async with serving(workers=workers) as (server, port):
            transcripts = await asyncio.gather(
                *(transcribe(uri(port), samples, rate, packet_seconds=packet) for rate, samples, packet in clients)
            )
            if workers == 1:
                assert server.metrics.value("sumix_batch_streams_sum") > server.metrics.value(
                    "sumix_batch_streams_count"
                )
            assert server.metrics.value("sumix_streams_opened_total") == len(clients)
            audio = sum(len(samples) / rate for rate, samples, _ in clients)
            assert server.metrics.value("sumix_audio_seconds_total") == pytest.approx(audio)
        return transcripts

    transcripts = run(test)
    for transcript, (rate, samples, _) in zip(transcripts, clients, strict=True):
        assert_is(transcript, expected(samples, rate))
    assert len(transcripts[-1].segments) > 4 and transcripts[-1].partials


def test_messages_are_as_the_protocol_says():
    async def test():
        async with serving() as (_, port), connect(uri(port)) as client:
            ready = json.loads(await client.recv())
            assert ready == {
                "type": "ready",
                "protocol": 2,
                "sample_rate": RATE,
                "chunk_seconds": 0.32,
                "latency_seconds": 0.3275,
                "max_seconds": 14_400.0,
                "max_message_bytes": 1 << 20,
                "idle_seconds": 30.0,
                "options": {
                    "chunk_seconds": [0.16, 2.56],
                    "left_context": [0, 64],
                    "beam": [1, 8],
                    "hotwords": 100,
                    "lm_scale": None,
                    "endpoint": [0.1, 60.0],
                    "second_pass": True,
                },
            }
            for packet in np.array_split(PCM, 20):  # no start: 16 kHz, 16 bits
                await client.send(packet.tobytes())
            await client.send('{"type": "end"}')
            messages = [json.loads(message) async for message in client]
            assert client.close_code == 1000
            return messages

    *results, done = run(test)
    finals = [message for message in results if message["type"] == "final"]
    assert done == {"type": "done", "segments": len(finals), "decoded": 4.0}
    assert {message["type"] for message in results} <= {"partial", "progress", "final"}
    decoded = [message["decoded"] for message in results]
    assert decoded == sorted(decoded)
    for message in finals:
        keys = {"type", "segment", "decoded", "reason", "text", "words", "tokens", "timestamps"}
        assert message.keys() == keys and message["reason"] == ("end" if message is finals[-1] else "endpoint")
        assert len(message["tokens"]) == len(message["timestamps"])
        assert " ".join(word["text"] for word in message["words"]) == message["text"]
        for word in message["words"]:
            assert word.keys() == {"text", "start", "end", "confidence"}
            assert 0 <= word["start"] <= word["end"] <= message["decoded"] and 0 < word["confidence"] <= 1


def test_partial_results_come_while_audio_goes_in():
    async def test():
        async with serving() as (_, port), connect(uri(port)) as client:
            await client.send(PCM[: RATE * 1].tobytes())
            while (message := json.loads(await client.recv()))["type"] != "partial":
                pass
            assert message["segment"] == 0 and message["words"] and message["decoded"] <= 1.0
            await client.send('{"type": "end"}')

    run(test)


def test_a_stream_that_ends_as_its_segment_becomes_too_long_keeps_its_last_word():
    samples = sound(4.0, seed=6)[: round(1.56 * RATE)]  # its last chunk passes the 1.5 s of a segment

    async def test():
        async with serving() as (_, port):
            return await transcribe(uri(port), samples)

    tokens = [token for segment in run(test).segments for token in segment["tokens"]]
    assert tokens == reference(samples)


def test_plain_http():
    async def test():
        async with serving(max_streams=3) as (server, port):
            status, headers, body = await http(port, "/health")
            told = {"status": "ok", "streams": 0, "max_streams": 3, "workers": 1, "workers_ok": 1}
            assert (status, json.loads(body)) == (200, told)
            assert headers["Content-Type"].startswith("application/json")
            async with connect(uri(port)):
                assert json.loads((await http(port, "/health"))[2])["streams"] == 1
                assert "\nsumix_streams 1.0\n" in (await http(port, "/metrics"))[2]
            await until(lambda: server.num_streams == 0)
            status, headers, body = await http(port, "/metrics")
            assert status == 200 and headers["Content-Type"].startswith("text/plain; version=")
            assert "\nsumix_streams 0.0\n" in body and "\nsumix_max_streams 3.0\n" in body
            assert (await http(port, "/stream"))[0] == 426
            for path in ("/nothing", "/../etc/passwd", "/page.html"):
                assert (await http(port, path))[0] == 404

    run(test)


def test_a_token_is_asked_for():
    async def test():
        async with serving(token="s3cret") as (server, port):
            assert (await http(port, "/metrics"))[0] == 401
            assert (await http(port, "/metrics", "Authorization: Bearer s3cret"))[0] == 200
            assert (await http(port, "/health"))[0] == (await http(port, "/"))[0] == 200
            for query in ("", "?token=wrong", "?token=", "?token=s3cret2"):
                with pytest.raises(InvalidStatus) as refused:
                    await transcribe(uri(port, query), PCM)
                assert refused.value.response.status_code == 401
            await transcribe(uri(port, "?token=s3cret"), PCM)
            await transcribe(uri(port), PCM, token="s3cret")
            assert server.metrics.value("sumix_refused_total", reason="token") == 4

    run(test)


def test_pages_of_other_sites_are_refused():
    async def test():
        async with serving() as (_, port):
            with pytest.raises(InvalidStatus) as refused:
                await connect(uri(port), origin="https://elsewhere.example")
            assert refused.value.response.status_code == 403
            async with connect(uri(port), origin=f"http://127.0.0.1:{port}"):
                pass

    run(test)


def test_tls(tmp_path):
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 1 -subj /CN=localhost "
        "-addext subjectAltName=IP:127.0.0.1".split(),
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    async def test():
        trusting = ssl.create_default_context(cafile=certificate)
        async with serving(tls=tls_context(certificate, key)) as (_, port):
            assert_is(await transcribe(uri(port, scheme="wss"), PCM, tls=trusting), expected(PCM))
            with pytest.raises(ssl.SSLError):
                await transcribe(uri(port, scheme="wss"), PCM, tls=ssl.create_default_context())

    run(test)
    with pytest.raises(ValueError, match=r"key.pem, .*cert.pem: no certificate and its key"):
        tls_context(key, certificate)
    with pytest.raises(ValueError, match="TLS needs both"):
        tls_context(certificate, None)
    assert tls_context(None, None) is None


def test_a_fast_sender_is_paused():
    """Audio far ahead of recognition waits with its sender, not in the server's memory."""
    waiting = []

    async def test():
        recognizer = make_recognizer()
        decode = recognizer.decode

        def slow(streams):
            sessions = list(server._engine._sessions)
            waiting.extend(session.pending_seconds for session in sessions)
            return decode(streams)

        async with serving(recognizer, pending_seconds=1.0) as (server, port):
            recognizer.decode = slow
            samples = sound(40.0)
            transcript = await transcribe(uri(port), samples, packet_seconds=0.5)
            assert_is(transcript, expected(samples))

    run(test)
    assert 0.5 < max(waiting) <= 0.33 + 1.0 + 0.5, "a chunk, a second, and the message that was one too many"


def test_drain_lets_streams_finish_and_takes_no_new_ones():
    async def test():
        async with serving() as (server, port):
            async with connect(uri(port)) as client:
                await client.send(PCM[:RATE].tobytes())
                stopping = asyncio.create_task(server.stop())
                await until(lambda: server.draining)
                status, _, body = await http(port, "/health")
                assert (status, json.loads(body)["status"]) == (503, "draining")
                status, _, body = await http(port, "/live")
                assert (status, json.loads(body)) == (200, {"status": "draining"})
                with pytest.raises(InvalidStatus) as refused:
                    await connect(uri(port))
                assert refused.value.response.status_code == 503
                assert refused.value.response.body.startswith(b"draining: ")
                await client.send(PCM[RATE:].tobytes())
                await client.send('{"type": "end"}')
                messages = [json.loads(message) async for message in client]
                finals = [message["text"] for message in messages if message["type"] == "final"]
                assert finals == [hypothesis.text for hypothesis in expected(PCM)]
                assert messages[-1]["type"] == "done"
            await stopping
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", port)
            server.stop = lambda: asyncio.sleep(0)  # it has stopped

    run(test)


def test_drain_is_bounded():
    async def test():
        async with serving(drain_seconds=0.3) as (server, port), connect(uri(port)) as client:
            await client.send(PCM[:RATE].tobytes())
            await server.stop()
            messages = [json.loads(message) async for message in client]
            assert (messages[-1]["type"], messages[-1]["code"]) == ("error", "going_away")
            assert client.close_code == 1001
            server.stop = lambda: asyncio.sleep(0)

    run(test)


def test_logs_hold_events_and_neither_audio_nor_text_nor_token(caplog):
    async def test():
        async with serving(token="s3cret") as (server, port):
            await transcribe(uri(port, "?token=s3cret"), PCM)
            await until(lambda: server.num_streams == 0)

    with caplog.at_level(logging.INFO, "sumix_stream"):
        run(test)
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name.startswith("sumix_stream")]
    events = {event["event"]: event for event in map(json.loads, lines)}
    assert events.keys() == {"opened", "closed", "draining", "stopped"} and len(lines) == 4
    opened, closed = events["opened"], events["closed"]
    assert opened["stream"] == closed["stream"] and closed["reason"] == "done" and closed["bytes"] == PCM.nbytes
    text = expected(PCM)[0].text
    assert not any(secret in line for line in lines for secret in (text, text.split()[0] + " ", "s3cret", "127.0.0.1"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    letters = " ".join(chr(ord("a") + n) for n in range(VOCAB_SIZE - 3))
    save_model(directory, talkative_model(), train_tokenizer([letters], directory / "t.model", model_type="char"))
    write_sums(directory)
    return directory


def test_the_command_serves_and_ends_with_0_on_sigterm(checkpoint):
    command = [sys.executable, ROOT / "bin" / "serve", "--model", checkpoint, "--port", 0, "--chunk", "320ms"]
    environment = {**os.environ, "SUMIX_SERVE_TOKEN": "s3cret", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, env=environment)
    try:
        logged = map(json.loads, iter(process.stderr.readline, ""))
        listening = next(line for line in logged if not line["event"].startswith("runtime compiled"))
        assert listening["event"] == "listening" and listening["latency_seconds"] == 0.3275
        port = int(re.search(r":(\d+)/", listening["url"])[1])

        async def test():
            async with connect(uri(port, "?token=s3cret")) as client:
                await client.send(PCM.tobytes())
                process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.2)
                await client.send('{"type": "end"}')
                return [json.loads(message)["type"] async for message in client]

        assert run(test)[-2:] == ["final", "done"]
        assert process.wait(20) == 0
    finally:
        process.kill()
    logged = process.stderr.read()
    assert "Traceback" not in logged
    events = {json.loads(line)["event"] for line in logged.splitlines()}
    assert {event for event in events if not event.startswith("runtime ")} == {
        "opened",
        "draining",
        "closed",
        "stopped",
    }


def test_the_command_names_what_is_wrong(tmp_path):
    command = [sys.executable, str(ROOT / "bin" / "serve"), "--model", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and done.stderr.startswith("serve: no checkpoint at"), done.stderr


def test_a_client_hears_of_errors():
    async def test():
        async with serving() as (_, port):
            with pytest.raises(
                ServerError, match="bad_audio"
            ) as fault:  # well before the closing handshake is given up
                await asyncio.wait_for(transcribe(uri(port), np.full(60 * RATE, np.nan, np.float32)), 8)
            assert (fault.value.code, fault.value.close_code) == ("bad_audio", 1007)
            await healthy(port)

    run(test)


def test_tokenizer_of_the_tests_writes_words():
    """Otherwise comparing texts would prove little."""
    hypotheses = expected(PCM)
    assert len(hypotheses) >= 3
    assert sum(len(hypothesis.text.split()) for hypothesis in hypotheses) > 10
    assert LetterTokenizer().decode(hypotheses[0].tokens) == hypotheses[0].text
