"""Clients of other protocols at our server's ports for them, as their documentation has them."""

import json

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from wyoming.asr import Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event

VOSK_CONFIG = '{"config" : {"sample_rate" : 16000}}'
VOSK_EOF = '{"eof" : 1}'


async def sherpa_results(port: int, samples: np.ndarray, packet: int = 1600) -> list[dict]:
    """All results of float32 samples (S,) up to `Done!`; then the server has closed the connection."""
    found = []
    async with connect(f"ws://127.0.0.1:{port}", proxy=None) as client:
        for start in range(0, len(samples), packet):
            await client.send(samples[start : start + packet].tobytes())
        await client.send("Done")
        async for message in client:
            found.append(message)
    assert client.close_code == 1000 and found.pop() == "Done!"
    return list(map(json.loads, found))


async def vosk_answers(
    port: int, samples: np.ndarray, config: str | None = VOSK_CONFIG, packet: int = 8000
) -> list[dict]:
    """A message of int16 samples (S,), its one answer, and so on; at the end one answer more, and the connection is
    closed."""
    answers = []
    async with connect(f"ws://127.0.0.1:{port}", proxy=None) as client:
        if config is not None:
            await client.send(config)
        for start in range(0, len(samples), packet):
            await client.send(samples[start : start + packet].tobytes())
            answers.append(await _answer(client))
        await client.send(VOSK_EOF)
        answers.append(await _answer(client))
        assert [message async for message in client] == []
    assert client.close_code == 1000
    return answers


async def _answer(client: ClientConnection) -> dict:
    return json.loads(await client.recv())


async def wyoming_events(
    client: AsyncTcpClient, samples: np.ndarray, rate: int = 16_000, packet: int = 1024
) -> list[Event]:
    """An utterance, of int16 or int32 samples (S,) or (S, channels); all events up to `transcript-stop` or an error."""
    form = {"rate": rate, "width": samples.dtype.itemsize, "channels": 1 if samples.ndim == 1 else samples.shape[1]}
    await client.write_event(AudioStart(**form).event())
    for start in range(0, len(samples), packet):
        audio = samples[start : start + packet].tobytes()
        await client.write_event(AudioChunk(**form, audio=audio).event())
    await client.write_event(AudioStop().event())
    events = [await client.read_event()]
    while not (TranscriptStop.is_type(events[-1].type) or Error.is_type(events[-1].type)):
        events.append(await client.read_event())
    return events


def wyoming_transcript(events: list[Event]) -> str:
    """The text, once it has been seen that the order is right and that chunks together are the transcript."""
    first, *chunks, last, stop = events
    assert TranscriptStart.is_type(first.type) and TranscriptStop.is_type(stop.type)
    text = Transcript.from_event(last).text
    assert "".join(TranscriptChunk.from_event(chunk).text for chunk in chunks) == text
    return text
