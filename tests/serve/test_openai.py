"""The unmodified `openai` SDK as a client of transcriptions and models; texts are those of `transcribe`."""

import asyncio
import json
import re

import numpy as np
import openai
import pytest
from openai_client import file_of, sdk, spell, streamed, transcribed, whole
from serving import PCM, expected, http, library, run, serving, until
from talkative import LetterTokenizer, sound, talkative_model
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions
from sumix_stream.serve.access import Access, Account, Origins
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.recognizer import Recognizer

RULES = Endpointing.sherpa(rule3=1.5)


def test_a_transcription_is_that_of_the_library_in_every_form():
    files = file_of(), file_of(sound(2.0, 8_000, seed=3), 8_000, "FLAC")
    texts = whole().text, whole(np.round(sound(2.0, 8_000, seed=3) * 32768).astype(np.int16), 8_000).text

    async def test():
        async with serving() as (server, port):
            for file, text in zip(files, texts, strict=True):
                plain = await transcribed(port, file)
                assert plain.text == text and len(text) > 20
            assert (plain.usage.type, plain.usage.seconds) == ("duration", 2.0)
            both = {"response_format": "verbose_json", "timestamp_granularities": ["word", "segment"]}
            verbose = await transcribed(port, **both, language="en", temperature=0)
            assert (verbose.text, verbose.language, verbose.duration) == (texts[0], "en", 4.0)
            assert [token for segment in verbose.segments for token in segment.tokens] == whole().tokens
            assert len(verbose.segments) > 1 and [one.id for one in verbose.segments] == list(
                range(len(verbose.segments))
            )
            assert all(0 <= one.start <= one.end <= 4.08 and one.avg_logprob <= 0 for one in verbose.segments)
            assert [one.text for one in verbose.segments] == [one.text for one in expected(PCM) if one.text]
            assert "".join(one.word for one in verbose.words) == texts[0].replace(" ", "")
            assert all(0 <= one.start <= one.end <= 4.08 for one in verbose.words)
            only = await transcribed(port, response_format="verbose_json")
            assert only.words is None and only.segments[0].text == verbose.segments[0].text
            assert (await transcribed(port, response_format="text")).strip() == texts[0]
            srt, vtt = [await transcribed(port, response_format=form) for form in ("srt", "vtt")]
            assert srt.startswith("1\n00:00:00,") and vtt.startswith("WEBVTT\n\n00:00:00.")
            for captions in (srt, vtt):
                lines = [line for line in captions.splitlines()[1:] if not re.search(r"-->|^\d*$", line)]
                assert "".join(lines).replace(" ", "") == texts[0].replace(" ", "")
            await until(lambda: server.num_streams == 0)

    run(test)


def test_streamed_text_only_grows():
    async def test():
        async with serving() as (server, port):
            parts = await streamed(port)
            assert {part.type for part in parts[:-1]} == {"transcript.text.delta"} and len(parts) > 3
            assert "".join(part.delta for part in parts[:-1]) == parts[-1].text == whole().text
            assert parts[-1].type == "transcript.text.done"
            await until(lambda: server.num_streams == 0)

    run(test)


def test_the_second_pass_is_what_completes():
    model = Recognizer(talkative_model(), LetterTokenizer())
    segments = library(PCM, second_pass=True)
    assert any(text != streamed for text, streamed in segments)

    async def test():
        async with serving(model.streaming(8, 4, endpointing=RULES, second_pass=True)) as (_, port):
            found = await transcribed(port, response_format="verbose_json")
            parts = await streamed(port)
            assert [one.text for one in found.segments] == [text for text, _ in segments if text]
            assert parts[-1].text == found.text
            deltas = "".join(part.delta for part in parts[:-1])
            assert deltas.replace(" ", "") == "".join(text for _, text in segments).replace(" ", "")

    run(test)


def test_prompts_and_keywords_are_hotwords(monkeypatch):
    spell(monkeypatch)
    beam = SearchOptions(method="modified_beam")
    words = Hotwords.compile({"sss": None, "uu": None}, LetterTokenizer())
    boosted = [text for text, _ in library(PCM, search=beam, hotwords=words)]
    assert boosted != [text for text, _ in library(PCM, search=beam)]

    async def test():
        async with serving() as (_, port):
            asked = {"prompt": "sss, uu"}, {"extra_body": {"keywords": ["sss", "uu"]}}
            for options in asked:
                found = await transcribed(port, response_format="verbose_json", **options)
                assert [one.text for one in found.segments] == [text for text in boosted if text]
            with pytest.raises(openai.BadRequestError, match=r"prompt.*at most 100 phrases"):
                await transcribed(port, prompt=",".join(f"a{'b' * n}" for n in range(101)))

    run(test)


WRONG = {
    "model": ({"model": "gpt-5"}, 404, "sumix"),
    "response_format": ({"response_format": "xml"}, 400, "verbose_json"),
    "temperature": ({"temperature": 2}, 400, "0 to 1"),
    "language": ({"language": "klingon!"}, 400, "en"),
    "timestamp_granularities": ({"timestamp_granularities": ["word"]}, 400, "verbose_json"),
    "include": ({"include": ["logprobs"]}, 400, "known: file, model"),
    "file": ({"file": ("a.mp3", b"these are no samples")}, 400, "accepted: flac, mp3"),
    "damaged": ({"file": ("a.flac", file_of(kind="FLAC")[1][:30_000])}, 400, "a.flac"),
    "empty": ({"file": ("a.wav", b"")}, 400, "empty"),
    "long": ({"file": file_of(np.zeros(16_000 * 9, np.int16))}, 400, "8 s that are allowed"),
    "large": ({"file": ("a.wav", bytes(400_000))}, 413, "300000 bytes"),
}


def test_what_is_wrong_is_said_in_openais_form():
    async def test():
        async with serving(max_upload_seconds=8.0, max_upload_bytes=300_000) as (server, port):
            for name, (options, status, said) in WRONG.items():
                with pytest.raises(openai.APIStatusError) as raised:
                    await transcribed(port, **options)
                error = raised.value
                assert error.status_code == status and said in error.body["message"], (name, error.body)
                assert error.body["type"] == "invalid_request_error"
                assert "Traceback" not in str(error.body) and ".py" not in str(error.body)
                param = "file" if name in ("damaged", "empty", "long", "large") else name
                assert error.body["param"] == param
            assert (await transcribed(port)).text == whole().text
            status, headers, body = await http(port, "/v1/audio/transcriptions")
            assert (status, headers["Allow"]) == (405, "POST, OPTIONS")
            status, _, body = await http(port, "/v1/chat/completions")
            assert status == 404 and "/v1/models" in json.loads(body)["error"]["message"]
            await until(lambda: server.num_streams == server.num_sessions == 0)

    run(test)


def test_models():
    async def test():
        async with serving() as (_, port), sdk(port) as client:
            (model,) = [one async for one in await client.models.list()]
            assert (await client.models.retrieve(model.id)) == model and model.object == "model"
            assert (await transcribed(port, model=model.id)).text == whole().text
            with pytest.raises(openai.NotFoundError, match="sumix"):
                await client.models.retrieve("whisper-2")

    run(test)


def test_who_is_let_in():
    """A token, pages of other sites, all streams taken, a day's seconds, a server that drains."""
    account, origins = Account("a", "s3cret", seconds_a_day=5.0), Origins(["https://app.example"])

    async def test():
        async with serving(access=Access([account], origins), max_streams=1) as (server, port):
            for call in (
                lambda: transcribed(port),
                lambda: sdk(port).models.list(),
                lambda: sdk(port).get("/x", cast_to=object),
            ):
                with pytest.raises(openai.AuthenticationError) as raised:
                    await call()
                assert raised.value.code == "invalid_api_key"
            client = sdk(port, "s3cret")
            ask = client.audio.transcriptions.create
            asked = {"file": file_of(), "model": "whisper-1"}
            with pytest.raises(openai.PermissionDeniedError):
                await ask(**asked, extra_headers={"Origin": "https://evil.example"})
            of_page = {"Origin": "https://app.example"}
            answer = await client.audio.transcriptions.with_raw_response.create(**asked, extra_headers=of_page)
            assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
            await until(lambda: server.num_streams == 0)
            async with connect(f"ws://127.0.0.1:{port}/v1/realtime", subprotocols=SHOWN) as taken:
                assert taken.subprotocol == "realtime"
                with pytest.raises(openai.RateLimitError) as raised:
                    await ask(**asked)
                assert raised.value.response.headers["Retry-After"] == "2" and "full" in str(raised.value)
            await until(lambda: server.num_streams == 0)
            with pytest.raises(openai.RateLimitError) as raised:
                await ask(**asked)
            assert raised.value.code == "insufficient_quota"
            await until(lambda: server.num_streams == 0)
            account.seconds_a_day, server.draining = None, True
            with pytest.raises(openai.InternalServerError) as raised:
                await ask(**asked)
            assert raised.value.status_code == 503
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"ws://127.0.0.1:{port}/v1/realtime?token=wrong")
            assert json.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"
            server.draining = False
            await client.close()

    run(test)


SHOWN = ["realtime", "openai-insecure-api-key.s3cret"]


def test_pages_of_allowed_sites_may_ask_first():
    async def test():
        access = Access(origins=Origins(["https://app.example"]))
        async with serving(access=access) as (_, port):
            for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                lines = ("OPTIONS /v1/audio/transcriptions HTTP/1.1", "Host: x", f"Origin: {origin}", "", "")
                writer.write("\r\n".join(lines).encode())
                answer = (await reader.read()).decode()
                assert answer.startswith("HTTP/1.1 204 ") and ("Access-Control-Allow-Origin" in answer) == allowed
                writer.close()

    run(test)
