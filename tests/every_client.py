"""Clients of every protocol at one server of ours: what each is told of the same utterances."""

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import chromium
import numpy as np
import soundfile
import stock_sherpa
from foreign_clients import sherpa_results, vosk_answers, wyoming_events, wyoming_transcript
from openai_client import file_of, spoken, transcribed
from serving import RATE, serving, uri
from wyoming.client import AsyncTcpClient

from sumix_stream.audio import resample
from sumix_stream.serve.client import transcribe
from sumix_stream.serve.protocols.listener import Address
from sumix_stream.serve.protocols.sherpa import Sherpa
from sumix_stream.serve.protocols.vosk import Vosk
from sumix_stream.serve.protocols.wyoming import Wyoming
from sumix_stream.streaming.stream import Stream, StreamingRecognizer

SPACE, MARK = " ", "▁"  # sherpa-onnx shows the mark of a word's beginning as a space
REALTIME = {
    "type": "transcription",
    "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24_000}, "turn_detection": None}},
}

Tokens = list[str]


class Spoken(NamedTuple):
    """What the page's microphone was told, and the samples (S,), int16 or float32, that the server got of it."""

    tokens: Tokens
    samples: np.ndarray
    rate: int


class Clients:
    """Of a server with a recogniser, which has endpoints or not, and utterances: int16 (S,) at 16 kHz."""

    def __init__(self, recognizer: StreamingRecognizer, audio: Sequence[np.ndarray]) -> None:
        self.recognizer, self.audio = recognizer, audio

    def ask_ours(self) -> list[Tokens]:
        """Our own client."""

        async def asked() -> list[Tokens]:
            async with serving(self.recognizer, **self._room) as (_, port):
                return await self._each(self._ours, port)

        return asyncio.run(asked())

    def ask(self, browser: chromium.Browser | None) -> dict[str, list]:
        """All clients, a connection for each utterance, all at the same time; the page has one after the other.

        Returns:
            By the client's name its tokens of each utterance; of vosk and Wyoming letters, of OpenAI's realtime a text.
        """
        return asyncio.run(self._ask(browser))

    async def _ask(self, browser: chromium.Browser | None) -> dict[str, list[Tokens]]:
        sherpa, vosk, wyoming = (kind(Address("127.0.0.1", 0)) for kind in (Sherpa, Vosk, Wyoming))
        listeners = [sherpa, vosk, wyoming]
        async with serving(self.recognizer, listeners=listeners, **self._room) as (_, port):
            asked = {
                "our server": self._each(self._ours, port),
                "OpenAI's API": self._each(self._openai, port),
                "OpenAI, realtime": self._each(self._realtime, port),
                "port of sherpa-onnx": self._each(self._sherpa, sherpa.address.port),
                "port of vosk": self._each(self._vosk, vosk.address.port),
                "port of Wyoming": self._each(self._wyoming, wyoming.address.port),
            }
            if stock_sherpa.CLIENT is not None:
                asked["sherpa-onnx, C++ client"] = self._each(self._stock_client, sherpa.address.port)
            if browser is not None:
                asked["page, file"] = self._page(browser, port)
            return dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))

    @property
    def _room(self) -> dict[str, int]:
        """Limits that let all clients in at once."""
        return {"max_streams": 10 * len(self.audio), "max_uploads": len(self.audio)}

    async def _each(self, ask: Callable, port: int) -> list:
        """What `ask(port, i)` gives for all utterances at once."""
        return await asyncio.gather(*(ask(port, i) for i in range(len(self.audio))))

    async def _ours(self, port: int, i: int) -> Tokens:
        sizes = (0.1, 0.37, 1.0, 0.02)
        found = await transcribe(uri(port), self.audio[i], packet_seconds=sizes[i % len(sizes)])
        return [piece for final in found.segments for piece in final["tokens"]]

    async def _openai(self, port: int, i: int) -> Tokens:
        """The `openai` SDK, with a file."""
        told = await transcribed(port, file_of(self.audio[i]), response_format="verbose_json")
        return [self.recognizer.tokenizer.piece(token) for segment in told.segments for token in segment.tokens]

    async def _realtime(self, port: int, i: int) -> str:
        """The same SDK, with one commit."""
        return await spoken(port, at_24_khz(self.audio[i]), REALTIME, 600)

    async def _sherpa(self, port: int, i: int) -> Tokens:
        """The messages of sherpa-onnx's clients."""
        return _told(await sherpa_results(port, (self.audio[i] / np.float32(32768)).astype("<f4")))

    async def _stock_client(self, port: int, i: int) -> Tokens:
        """Its own program."""
        return _told(await stock_sherpa.client_results(port, self.audio[i], 600))

    async def _vosk(self, port: int, i: int) -> Tokens:
        return letters(" ".join(answer.get("text", "") for answer in await vosk_answers(port, self.audio[i])))

    async def _wyoming(self, port: int, i: int) -> Tokens:
        """PyPI's client of Wyoming."""
        async with AsyncTcpClient("127.0.0.1", port) as client:
            return letters(wyoming_transcript(await wyoming_events(client, self.audio[i])))

    async def _page(self, browser: chromium.Browser, port: int) -> list[Tokens]:
        """The browser's page, given one utterance after the other as a file. Raises AssertionError where it shows other
        words than it was sent."""
        found = []
        with tempfile.TemporaryDirectory() as folder:
            for i, samples in enumerate(self.audio):
                soundfile.write(f"{folder}/{i}.wav", samples, RATE)
                async with chromium.tab(browser, f"http://127.0.0.1:{port}/") as page:
                    found.append(await _drop(page, Path(f"{folder}/{i}.wav")))
        return found

    def speak(self, browser: chromium.Browser, longest: float) -> list[Spoken | None]:
        """The page, its microphone playing the utterance. None for utterances of more than `longest` seconds: they take
        as long as they are."""
        heard, found = [], []
        accept = self.recognizer.accept_waveform

        def listen(stream: Stream, rate: int, samples: np.ndarray) -> None:
            heard.append((rate, samples))
            accept(stream, rate, samples)

        self.recognizer.accept_waveform = listen

        async def one_by_one() -> None:
            async with serving(self.recognizer) as (_, port):
                for samples in self.audio:
                    if len(samples) > longest * RATE:
                        found.append(None)
                        continue
                    heard.clear()
                    soundfile.write(browser.microphone, np.concatenate([samples, np.zeros(RATE // 2, np.int16)]), RATE)
                    async with chromium.tab(browser, f"http://127.0.0.1:{port}/") as page:
                        tokens = await _speak(page, len(samples) / RATE)
                    found.append(Spoken(tokens, np.concatenate([part for _, part in heard]), heard[0][0]))

        asyncio.run(one_by_one())
        return found


@contextmanager
def browser_with_microphone() -> Iterator[chromium.Browser | None]:
    """Chromium whose microphone `speak` lets play utterances; None where there is no Chromium."""
    if chromium.PROGRAM is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder, chromium.chromium(Path(folder) / "speech.wav") as browser:
        yield browser


async def _speak(page: chromium.Page, seconds: float) -> Tokens:
    await page.call("Network.enable")
    await page.evaluate("document.getElementById('talk').click()")
    await page.until("document.getElementById('state').textContent.startsWith('Listening')")
    await asyncio.sleep(seconds + 0.3)
    await page.evaluate("document.getElementById('talk').click()")
    return await _result(page)


async def _drop(page: chromium.Page, path: Path) -> Tokens:
    await page.call("Network.enable")
    await page.drop_file(path, 300, 400)
    return await _result(page)


async def _result(page: chromium.Page) -> Tokens:
    await page.until("document.getElementById('state').textContent.startsWith('Done')", 600)
    finals = [message for message in map(json.loads, page.received) if message["type"] == "final"]
    shown = await page.evaluate("[...document.querySelectorAll('#final .w')].map(word => word.textContent)")
    assert shown == [word["text"] for final in finals for word in final["words"]]
    return [piece for final in finals for piece in final["tokens"]]


def at_24_khz(samples: np.ndarray) -> np.ndarray:
    """An utterance as OpenAI's realtime clients have to send it."""
    return int16(resample(samples / np.float32(32768), RATE, 24_000))


def int16(samples: np.ndarray) -> np.ndarray:
    """Of float32 samples in about [-1, 1]."""
    return np.round(32767 * samples.clip(-1, 1)).astype(np.int16)


def letters(text: str) -> Tokens:
    """A text for comparison: where a segment ends amid a word, texts have a space that tokens have not."""
    return list(text.replace(" ", ""))


def _told(results: Sequence[dict]) -> Tokens:
    """All tokens of sherpa-onnx's results."""
    (tokens,) = marked([[token for result in results if result["is_final"] for token in result["tokens"]]])
    return tokens


def marked(found: Sequence[Tokens]) -> list[Tokens]:
    """Tokens as sherpa-onnx shows them -> as the tokenizer has them."""
    return [[piece.replace(SPACE, MARK) for piece in tokens] for tokens in found]
