"""OpenAI's realtime transcription by its SDK: texts are those of the library, deltas only append."""

import asyncio
import base64
import json
import threading

import numpy as np
import pytest
from openai_client import append, completed, speaking, spell, streamed, whole
from serving import expected, make_recognizer, run, serving, until
from talkative import LetterTokenizer, sound, talkative_model
from websockets.asyncio.client import connect

from sumix_stream.audio.pcm import ENCODINGS
from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.recognizer import Recognizer

PCM_24 = (sound(3.0, 24_000, seed=7) * 32767).astype(np.int16)
QUIET = np.zeros(3 * 24_000, np.int16)
GENERAL = {"type": "transcription", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24_000}}}}
GENERAL_COMMITS = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}


async def turns(port: int, samples: np.ndarray, session: dict, commits: bool = True, count: int = 1) -> list[str]:
    async with speaking(port, session) as connection:
        await append(connection, samples)
        if commits:
            await connection.input_audio_buffer.commit()
        return (await completed(connection, count))[0]


def test_commits_of_a_realtime_session_are_what_the_library_commits():
    """Without turns a segment of the server's greatest length ends no item, and nothing is told of speech."""
    second = PCM_24[: 24_000 * 2 // 3]

    async def test():
        async with serving() as (_, port), speaking(port, GENERAL_COMMITS) as connection:
            await append(connection, PCM_24)
            await connection.input_audio_buffer.commit()
            await append(connection, second)
            await connection.input_audio_buffer.commit()
            texts, events = await completed(connection, 2)
            kinds = [event.type for event in events]
            assert not [kind for kind in kinds if "speech" in kind] and kinds.count("input_audio_buffer.committed") == 2
            first, other = [event for event in events if event.type == "conversation.item.added"]
            assert first.previous_item_id is None and other.previous_item_id == first.item.id
            return texts

    recognizer = make_recognizer()
    stream = recognizer.create_stream(endpointing=Endpointing.sherpa(60, 60, 60))
    wanted = []
    for samples in (PCM_24, second):
        recognizer.accept_waveform(stream, 24_000, samples)
        while recognizer.decode([stream]):
            pass
        wanted.append(recognizer.commit(stream).final().hypothesis.text)
    assert run(test) == wanted and all(wanted)


def test_a_client_that_never_commits_gets_the_servers_turns():
    spoken = np.concatenate([PCM_24, QUIET, PCM_24[:40_000], QUIET])
    wanted = [one.text for one in expected(spoken, 24_000) if one.text]
    assert len(wanted) > 2

    async def test():
        async with serving() as (_, port), speaking(port, GENERAL) as connection:
            await append(connection, spoken)
            texts, events = await completed(connection, len(wanted) - 1)
            marks = [e for e in events if e.type.startswith("input_audio_buffer.")]
            kinds = [mark.type.removeprefix("input_audio_buffer.") for mark in marks]
            assert kinds[: 3 * len(texts)] == ["speech_started", "speech_stopped", "committed"] * len(texts)
            times = [getattr(m, "audio_start_ms", getattr(m, "audio_end_ms", None)) for m in marks]
            times = [time for time in times if time is not None]
            assert times == sorted(times) and times[-1] > 2_000
            return texts

    assert run(test) == wanted[:-1]


def test_the_earlier_flat_form_and_g711():
    codes = np.random.default_rng(0).integers(0, 256, 16_000).astype(np.uint8)
    for form, encoding in (("g711_ulaw", "mulaw"), ("g711_alaw", "alaw")):
        samples = ENCODINGS[encoding].decode(codes)
        session = {
            "input_audio_format": form,
            "input_audio_transcription": {"model": "gpt-4o-transcribe", "language": "en"},
            "turn_detection": None,
        }

        async def test(session=session):
            async with serving() as (_, port):
                beta = {"OpenAI-Beta": "realtime=v1"}
                uri = f"ws://127.0.0.1:{port}/v1/realtime?intent=transcription"
                async with connect(uri, additional_headers=beta) as client:
                    assert json.loads(await client.recv())["type"] == "transcription_session.created"
                    await client.send(json.dumps({"type": "transcription_session.update", "session": session}))
                    updated = json.loads(await client.recv())
                    assert updated["type"] == "transcription_session.updated"
                    assert session.items() <= updated["session"].items()
                    audio = base64.b64encode(codes.tobytes()).decode()
                    await client.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
                    await client.send('{"type": "input_audio_buffer.commit"}')
                    kinds = set()
                    while not (event := json.loads(await client.recv()))["type"].endswith(".completed"):
                        kinds.add(event["type"])
                    assert "conversation.item.created" in kinds and "conversation.item.added" not in kinds
                    return event["transcript"]

        assert run(test) == whole(samples, 8_000).text


def test_what_is_cleared_is_not_heard():
    async def test():
        async with serving() as (_, port), speaking(port, GENERAL_COMMITS) as connection:
            await append(connection, PCM_24[:30_001])
            await connection.input_audio_buffer.clear()
            await append(connection, PCM_24)
            await connection.input_audio_buffer.commit()
            await append(connection, PCM_24[:30_001])
            await connection.input_audio_buffer.clear()  # the commit's result comes all the same
            await append(connection, PCM_24)
            await connection.input_audio_buffer.commit()
            texts, kinds = [], []
            while len(texts) < 2:
                event = await connection.recv()
                kinds.append(event.type)
                texts += [event.transcript] if event.type.endswith(".completed") else []
            assert kinds.count("input_audio_buffer.cleared") == 2
            return texts

    assert run(test) == [whole(PCM_24, 24_000).text] * 2


def test_settings_may_change_between_turns_and_hotwords_are_of_a_session(monkeypatch):
    spell(monkeypatch)

    async def test():
        async with serving() as (_, port), speaking(port, GENERAL_COMMITS) as connection:
            await append(connection, PCM_24)
            change = {
                "audio": {"input": {"transcription": {"model": "sumix", "prompt": "sss"}}},
                "type": "transcription",
            }
            await connection.session.update(session=change)
            refused = await until_type(connection, "error")
            assert "commit or clear" in refused.error.message
            await connection.input_audio_buffer.commit()
            (plain,), _ = await completed(connection, 1)
            await connection.session.update(session=change)
            await until_type(connection, "session.updated")
            await append(connection, PCM_24)
            await connection.input_audio_buffer.commit()
            return plain, (await completed(connection, 1))[0][0]

    plain, boosted = run(test)
    beam, words = SearchOptions(method="modified_beam"), Hotwords.compile({"sss": None}, LetterTokenizer())
    recognizer = Recognizer(talkative_model(), LetterTokenizer()).streaming(8, 4, search=beam)
    stream = recognizer.create_stream(hotwords=words)
    recognizer.accept_waveform(stream, 24_000, PCM_24)
    recognizer.input_finished(stream)
    while recognizer.decode([stream]):
        pass
    assert (plain, boosted) == (whole(PCM_24, 24_000).text, stream.result().text) and plain != boosted


async def until_type(connection, kind: str):
    while (event := await asyncio.wait_for(connection.recv(), 20)).type != kind:
        pass
    return event


def test_a_session_whose_results_do_not_come_is_ended():
    """Clearing waits for the results of commits before it: of a recogniser that stands still, not for ever."""
    recognizer, may_go_on = make_recognizer(), threading.Event()
    decode = recognizer.decode

    def stuck(streams):
        may_go_on.wait(30)
        return decode(streams)

    async def test():
        async with serving(recognizer, idle_seconds=0.5) as (server, port):
            recognizer.decode = stuck  # not before: the server warms up
            try:
                async with speaking(port, GENERAL_COMMITS) as client:
                    await append(client, PCM_24[:48_000])
                    await client.input_audio_buffer.commit()
                    await client.input_audio_buffer.clear()
                    error = (await until_type(client, "error")).error
                    await until(lambda: server.num_streams == 0)
            finally:
                may_go_on.set()
            return error

    error = run(test)
    assert error.code == "internal" and "do not come" in error.message


SETTINGS = {
    "session.type": {"type": "realtime"},
    "format": {"audio": {"input": {"format": {"type": "audio/mp3"}}}},
    "rate": {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}},
    "turn_detection.type": {"turn_detection": {"type": "semantic_vad"}},
    "turn_detection.silence_duration_ms": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 1}},
    "model": {"input_audio_transcription": {"model": "gpt-5"}},
    "language": {"input_audio_transcription": {"language": 3}},
    "session.include": {"include": ["item.input_audio_transcription.logprobs"]},
    "session.audio.input": {"audio": {"input": {"volume": 3}}},
    "session.audio": {"audio": []},
    "session": {"voice": "alloy"},
}


def test_a_wrong_setting_is_named_and_changes_nothing():
    async def test():
        async with serving() as (_, port), speaking(port) as connection:
            for n, (param, session) in enumerate(SETTINGS.items()):
                if param == "session.audio":
                    continue
                message = {"type": "session.update", "event_id": f"event {n}", "session": session}
                await connection.send(message)
                error = (await until_type(connection, "error")).error
                assert (error.param, error.event_id) == (param, f"event {n}"), error
                assert error.type == "invalid_request_error"
            silence = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 200}
            await connection.send({"type": "session.update", "session": {"turn_detection": silence}})
            told = await until_type(connection, "transcription_session.updated")
            assert told.session["turn_detection"]["silence_duration_ms"] == 200
            await append(connection, np.concatenate([PCM_24[:24_000], QUIET[:24_000], PCM_24[:24_000]]))
            await completed(connection, 1)

    run(test)


@pytest.mark.slow
def test_worker_processes_give_the_same():
    async def test():
        async with serving(workers=2) as (_, port):
            found, spoken = await asyncio.gather(streamed(port), turns(port, PCM_24, GENERAL_COMMITS))
            assert found[-1].text == whole().text and spoken == [whole(PCM_24, 24_000).text]

    run(test)
