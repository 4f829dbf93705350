"""The unmodified `openai` SDK before a server of serving.py, and what the library finds."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import openai
import soundfile
from serving import PCM, RATE
from talkative import LetterTokenizer, talkative_model

from sumix_stream.streaming.recognizer import Recognizer


def file_of(samples: np.ndarray = PCM, rate: int = RATE, kind: str = "WAV") -> tuple[str, bytes]:
    data = io.BytesIO()
    soundfile.write(data, samples, rate, format=kind, subtype="PCM_16")
    return f"a.{kind.lower()}", data.getvalue()


def whole(samples: np.ndarray = PCM, rate: int = RATE):
    """The utterance under the server's context, by the library."""
    floats = samples / np.float32(32768) if samples.dtype == np.int16 else samples
    return Recognizer(talkative_model(), LetterTokenizer()).transcribe((floats, rate), 8, 4)


def sdk(port: int, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=600)


async def transcribed(port: int, file: tuple[str, bytes] | None = None, **options: object):
    async with sdk(port) as client:
        return await client.audio.transcriptions.create(file=file or file_of(), **{"model": "whisper-1", **options})


async def streamed(port: int, **options: object) -> list:
    """The events of a transcription that is streamed."""
    async with sdk(port) as client:
        asked = {"file": file_of(), "model": "whisper-1", "stream": True}
        return [event async for event in await client.audio.transcriptions.create(**asked, **options)]


@asynccontextmanager
async def speaking(port: int, session: dict | None = None) -> AsyncIterator:
    """The SDK's connection, after its settings were taken."""
    async with sdk(port) as client:
        async with client.realtime.connect(model="sumix", extra_query={"intent": "transcription"}) as connection:
            created = await connection.recv()
            assert created.type == "session.created" and created.session.type == "transcription"
            if session is not None:
                await connection.session.update(session=session)
                updated = await connection.recv()
                assert updated.type == "session.updated", updated
            yield connection


async def append(connection, samples: np.ndarray, packet: int = 4_801) -> None:
    """In pieces that cut samples in two."""
    data = samples.tobytes()
    for start in range(0, len(data), packet):
        piece = base64.b64encode(data[start : start + packet]).decode()
        await connection.input_audio_buffer.append(audio=piece)


async def completed(connection, count: int, seconds: float = 20.0) -> tuple[list[str], list]:
    """Transcripts of so many items, and all events before. Deltas only append, in items that are known.

    `seconds`: that an event may be waited for.
    """
    texts, events, deltas = [], [], {}
    while len(texts) < count:
        event = await asyncio.wait_for(connection.recv(), seconds)
        events.append(event)
        if event.type in ("conversation.item.added", "conversation.item.created"):
            deltas[event.item.id] = ""
        elif event.type.endswith("transcription.delta"):
            deltas[event.item_id] += event.delta
        elif event.type.endswith("transcription.completed"):
            texts.append(event.transcript)
            assert deltas[event.item_id] == event.transcript
    return texts, events


async def spoken(port: int, samples: np.ndarray, session: dict, seconds: float = 20.0) -> str:
    """The transcript of samples, under settings without turns: appended, and committed once."""

    async def speak() -> None:
        await append(connection, samples)
        await connection.input_audio_buffer.commit()

    async with speaking(port, session) as connection:
        _, ((text,), _) = await asyncio.gather(speak(), completed(connection, 1, seconds))
        return text


def spell(monkeypatch) -> None:
    """Let the letters' tokenizer write, as hotwords need."""
    monkeypatch.setattr(LetterTokenizer, "unk_id", 0, raising=False)
    monkeypatch.setattr(LetterTokenizer, "encode", _letters, raising=False)


def _letters(self: LetterTokenizer, text: str) -> list[int]:
    return [ord(letter) - ord("a") + 1 for letter in text if letter != " "]
