"""The unmodified `openai` SDK before a server of serving.py, and what the library finds."""

import io

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


def spell(monkeypatch) -> None:
    """Let the letters' tokenizer write, as hotwords need."""
    monkeypatch.setattr(LetterTokenizer, "unk_id", 0, raising=False)
    monkeypatch.setattr(LetterTokenizer, "encode", _letters, raising=False)


def _letters(self: LetterTokenizer, text: str) -> list[int]:
    return [ord(letter) - ord("a") + 1 for letter in text if letter != " "]
