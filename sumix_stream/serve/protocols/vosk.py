"""vosk-server's websocket: 16-bit samples, one JSON answer for each message of audio, `{"eof" : 1}`.

The protocol is described at https://alphacephei.com/vosk/server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from websockets.asyncio.server import ServerConnection

from sumix_stream.search.hypothesis import Word
from sumix_stream.serve import protocol
from sumix_stream.serve.events import Done, Event, Failed, Final, Partial, Progress
from sumix_stream.serve.options import MOST_BEAM
from sumix_stream.serve.protocol import MAX_TEXT, ProtocolError
from sumix_stream.serve.protocols.websocket import WebsocketListener, WebsocketTalk

DEFAULT_RATE = 8_000  # of vosk-server, where its client names none
_BEAM = 4  # of streams that ask for phrases or alternatives, where the server's own search is greedy
_ANY_OTHER = "[unk]"  # in a list of phrases: all that is not in it
_ALLOWED = '{"config": {...}} before the audio, {"eof": 1} after it, or {"reset": 1}'


class Vosk(WebsocketListener):
    """The port for clients of vosk-server."""

    name = "vosk"

    def talk(self, connection: ServerConnection) -> VoskTalk:
        return VoskTalk(self, connection)


class Config:
    """What a client has asked for in `config`. Keys that mean nothing here are not looked at.

    Raises ProtocolError naming the key that is wrong.
    """

    def __init__(self, own_beam: bool) -> None:
        self._own_beam = own_beam
        self.words, self._alternatives = True, 0
        self._asked: dict[str, Any] = {"sample_rate": DEFAULT_RATE, "format": "s16le"}

    def read(self, config: Any) -> None:
        if not isinstance(config, Mapping):
            raise _bad("config must be an object")
        if "sample_rate" in config:
            self._asked["sample_rate"] = self._whole(config, "sample_rate")
        if "words" in config:
            self.words = bool(config["words"])
        if "max_alternatives" in config:
            self._alternatives = min(self._whole(config, "max_alternatives"), MOST_BEAM)
        if "phrase_list" in config:
            phrases = config["phrase_list"]
            if not isinstance(phrases, Sequence) or not all(isinstance(one, str) for one in phrases):
                raise _bad("phrase_list must be a list of texts")
            self._asked["hotwords"] = [one for one in phrases if one != _ANY_OTHER]

    @property
    def asked(self) -> dict[str, Any]:
        """The keys of `start` in PROTOCOL.md."""
        asked = dict(self._asked)
        if self._alternatives or (asked.get("hotwords") and not self._own_beam):
            asked["beam"] = max(_BEAM, self._alternatives)
        if self._alternatives:
            asked["nbest"] = self._alternatives
        return asked

    @staticmethod
    def _whole(config: Mapping[str, Any], key: str) -> int:
        value = config[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != value // 1:
            raise _bad(f"{key} must be a whole number, 0 or above")
        return int(value)


def _bad(text: str) -> ProtocolError:
    return ProtocolError("bad_config", text, protocol.BAD_MESSAGE)


class VoskTalk(WebsocketTalk):
    """One stream. Only answers are sent, so that nobody need read ahead: what no answer has told waits for the next."""

    def __init__(self, listener: Vosk, connection: ServerConnection) -> None:
        self._finals: list[Final] = []
        self._partial = ""
        self._over: asyncio.Future[Done | Failed | None] = asyncio.get_running_loop().create_future()
        self._committed: asyncio.Event | None = None
        self._config = Config(own_beam=listener.server.recognizer.search.options.method != "greedy")
        super().__init__(listener, connection)

    def hear(self, event: Event) -> None:
        happened = event.happened
        if isinstance(happened, Partial | Progress):
            self._partial = happened.text if isinstance(happened, Partial) else ""
        elif isinstance(happened, Final):
            self._finals.append(happened)
            self._partial = ""
            if self._committed is not None and happened.reason == "commit":
                self._committed.set()
        elif isinstance(happened, Done | Failed):
            self._end(happened)

    def hung_up(self) -> None:
        self._end(None)

    async def take(self, message: str | bytes) -> bool:
        if isinstance(message, str):
            return await self._take_text(message)
        self._begin()
        await self.intake.take(message)
        await self.intake.until_taken()
        if not self._over.done():
            await self.send(self._answer())
        return False

    async def write(self) -> str:
        last = await self._over
        if last is None:
            return "disconnected"
        if isinstance(last, Done) or self._finals:
            await self.send(self._result())
        if isinstance(last, Done):
            await self.close(1000)
            return "done"
        await self.send(protocol.dump(error=last.message, code=last.code))
        await self.close(last.close_code, last.code)
        return last.code

    async def _take_text(self, message: str) -> bool:
        """Whether it is the last message."""
        try:
            content = json.loads(message) if len(message) <= MAX_TEXT else None
        except (ValueError, RecursionError):
            content = None
        content = content if isinstance(content, dict) else {}
        if "config" in content:
            if self.intake.session is not None:
                raise _bad("config must come before the audio")
            self._config.read(content["config"])
        elif content.get("eof"):
            self._begin()
            self.intake.end()
            return True
        elif content.get("reset"):
            await self._reset()
        else:
            fault = f"a text message is JSON of at most {MAX_TEXT} characters: {_ALLOWED}"
            raise ProtocolError("bad_message", fault, protocol.BAD_MESSAGE)
        return False

    async def _reset(self) -> None:
        self._begin()
        self._committed = asyncio.Event()
        self.intake.commit()
        waits = [asyncio.ensure_future(self._committed.wait()), self._over]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        waits[0].cancel()
        self._committed = None
        if not self._over.done():
            await self.send(self._result())

    def _begin(self) -> None:
        if self.intake.session is None:
            self.intake.start(**self._config.asked)

    def _end(self, last: Done | Failed | None) -> None:
        if not self._over.done():
            self._over.set_result(last)

    def _answer(self) -> str:
        """What is new: segments that have ended, or the open one so far."""
        return self._result() if self._finals else protocol.dump(partial=self._partial)

    def _result(self) -> str:
        """All segments that have ended since the last result, as one."""
        finals, self._finals = self._finals, []
        if any(final.alternatives for final in finals):
            return protocol.dump(alternatives=_alternatives(finals))
        text = " ".join(final.text for final in finals if final.text)
        words = [word for final in finals for word in final.words]
        if self._config.words and words:
            return protocol.dump(result=list(map(_word, words)), text=text)
        return protocol.dump(text=text)


def _word(said: Word) -> dict[str, Any]:
    times = {"end": round(said.end, 3), "start": round(said.start, 3)}
    return {"conf": round(said.confidence, 3), **times, "word": said.text}


def _alternatives(finals: Sequence[Final]) -> list[dict[str, Any]]:
    """The n-th of all segments makes the n-th; a segment that has fewer lends its last."""
    found = []
    for several in zip_longest(*(final.alternatives for final in finals)):
        chosen = [one or final.alternatives[-1] for one, final in zip(several, finals, strict=True)]
        text = " ".join(one.text for one in chosen if one.text)
        found.append({"confidence": round(sum(one.score for one in chosen), 3), "text": text})
    return found
