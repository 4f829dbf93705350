"""sherpa-onnx's streaming websocket: float samples at 16 kHz, `Done`; results with tokens, `Done!`.

What its server and client send is documented at https://k2-fsa.github.io/sherpa/onnx/websocket/online-websocket.html.
"""

from __future__ import annotations

from collections.abc import Sequence

from websockets.asyncio.server import ServerConnection

from sumix_stream.audio import MODEL_RATE
from sumix_stream.serve import protocol
from sumix_stream.serve.events import Done, Event, Failed, Final, Happened, Partial, Progress
from sumix_stream.serve.outbox import Outbox
from sumix_stream.serve.protocol import ProtocolError
from sumix_stream.serve.protocols.websocket import WebsocketListener, WebsocketTalk

DONE, LAST = "Done", "Done!"


class Sherpa(WebsocketListener):
    """The port for clients of sherpa-onnx's streaming server."""

    name = "sherpa"

    def talk(self, connection: ServerConnection) -> SherpaTalk:
        return SherpaTalk(self, connection)


class Results:
    """What happens in a stream as sherpa-onnx's JSON; a segment's times count from its beginning."""

    def __init__(self) -> None:
        self._segment, self._start = 0, 0.0

    def write(self, happened: Happened) -> str | None:
        """The message, None where the protocol has none."""
        if isinstance(happened, Done):
            return LAST
        if isinstance(happened, Progress):
            return self._result("", [], [])
        if isinstance(happened, Partial):
            return self._result(happened.text, happened.tokens, happened.timestamps)
        if isinstance(happened, Final):
            is_eof = happened.reason not in ("endpoint", "commit")
            text = self._result(happened.text, happened.tokens, happened.timestamps, True, is_eof)
            self._segment, self._start = happened.segment + 1, happened.decoded
            return text
        return None

    def _result(
        self,
        text: str,
        tokens: Sequence[str],
        timestamps: Sequence[float],
        is_final: bool = False,
        is_eof: bool = False,
    ) -> str:
        if timestamps:  # a segment that ended by its length may leave words of the last chunk to the next
            self._start = min(self._start, timestamps[0])
        return protocol.dump(
            text=text,
            tokens=[token.replace("▁", " ") for token in tokens],
            timestamps=[round(time - self._start, 3) for time in timestamps],
            ys_probs=[],
            lm_probs=[],
            context_scores=[],
            segment=self._segment,
            words=[],
            start_time=round(self._start, 3),
            is_final=is_final,
            is_eof=is_eof,
        )


class SherpaTalk(WebsocketTalk):
    """One stream; results come as they are made."""

    def __init__(self, listener: Sherpa, connection: ServerConnection) -> None:
        self._outbox, self._results = Outbox(listener.server.limits.max_unsent), Results()
        super().__init__(listener, connection)
        self.intake.start(sample_rate=MODEL_RATE, format="f32le")

    def hear(self, event: Event) -> None:
        self._outbox.put(event)

    def hung_up(self) -> None:
        self._outbox.end()

    async def take(self, message: str | bytes) -> bool:
        if isinstance(message, bytes):
            await self.intake.take(message)
            return False
        if message.strip() != DONE:
            fault = f"a text message must be {DONE!r}, at the end of the audio; audio is binary, float32 at 16 kHz"
            raise ProtocolError("bad_message", fault, protocol.BAD_MESSAGE)
        self.intake.end()
        return True

    async def write(self) -> str:
        while (event := await self._outbox.get()) is not None:
            if isinstance(event.happened, Failed):
                await self.close(event.happened.close_code, f"{event.happened.code}: {event.happened.message}")
                return event.happened.code
            if (text := self._results.write(event.happened)) is not None:
                await self.send(text)
            if event.close_code is not None:
                await self.close(event.close_code)
                return "done"
        if self._outbox.overflowed:
            self.server.drop(self.connection)
        return "slow_reader" if self.connection.dropped else "disconnected"
