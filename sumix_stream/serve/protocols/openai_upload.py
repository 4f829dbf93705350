"""One transcription of OpenAI's API: the form of a request, its recording through a session, the answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import BodyPartReader, web

from sumix_stream.serve.events import Failed, Final, Happened, Partial
from sumix_stream.serve.http import BASE_HEADERS, Visit, text
from sumix_stream.serve.protocols.openai_answers import answer, usage
from sumix_stream.serve.protocols.openai_errors import SERVER, ApiError, wrong
from sumix_stream.serve.protocols.openai_fields import Form, read_form
from sumix_stream.serve.protocols.openai_text import GrowingText, text_of
from sumix_stream.serve.recordings import Recording
from sumix_stream.serve.uploads import Decoded, Spool, UploadError, decode
from sumix_stream.serve.within import within

if TYPE_CHECKING:
    from sumix_stream.serve.protocols.openai import Api

_READ_BYTES = 1 << 16  # of a body at a time
_LONGEST_FIELD = 16_384  # bytes of a field that is no file
_MOST_FIELDS = 256
_MULTIPART = "multipart/form-data"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_ACCEPTED = "flac, mp3, mp4, mpeg, mpga, m4a, ogg, opus, wav, webm"


class Transcription:
    """A request to transcribe, that was let in."""

    def __init__(self, api: Api, visit: Visit) -> None:
        self._api, self._server, self._visit = api, api.server, visit
        self._limits = api.server.limits
        self.num_bytes = 0  # of the recording
        self.text = ""  # once all is said

    async def run(self) -> web.StreamResponse:
        """The answer. Raises ApiError; whatever happens, nothing of the upload stays."""
        with contextlib.closing(Spool()) as spool:
            fields, name = await self._read_body(spool)
            form = read_form(fields, self._api.model, self._server.offer)
            try:
                async with decode(spool, name, self._limits.max_upload_seconds) as decoded:
                    return await self._transcribe(form, decoded)
            except UploadError as error:
                raise wrong(f"{error}; accepted: {_ACCEPTED}", "file", "invalid_file") from None

    async def _read_body(self, spool: Spool) -> tuple[dict[str, list[str]], str]:
        """Fields, and the name of the file, which is spooled."""
        request, limits = self._visit.request, self._limits
        if request.content_type != _MULTIPART:
            given = request.headers.get("Content-Type", "nothing")[:60]
            raise ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"send {_MULTIPART} with a file; got {given!a}")
        if "Content-Encoding" in request.headers:
            raise ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a body must not be compressed")
        if (request.content_length or 0) > limits.max_upload_bytes + _MOST_FIELDS * _LONGEST_FIELD:
            raise self._too_large()
        if request.headers.get("Expect", "").lower() == "100-continue":
            self._visit.front.transport.write(_CONTINUE)
        try:
            return await within(limits.upload_seconds, self._read_parts(spool))
        except asyncio.TimeoutError:
            message = f"the upload took longer than {limits.upload_seconds:g} s, or stood still"
            raise ApiError(HTTPStatus.REQUEST_TIMEOUT, message, code="upload_timeout") from None
        except (ApiError, ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # of whatever kind the library finds that the body is no form
            raise wrong(f"the body is no {_MULTIPART}: {type(error).__name__}", code="bad_form") from None

    async def _read_parts(self, spool: Spool) -> tuple[dict[str, list[str]], str]:
        fields: dict[str, list[str]] = {}
        name, num_fields = None, 0
        parts = await self._visit.request.multipart()
        while (part := await self._within(parts.next())) is not None:
            num_fields += 1
            if not isinstance(part, BodyPartReader) or num_fields > _MOST_FIELDS:
                raise wrong(f"a form has at most {_MOST_FIELDS} fields, none of them a form itself", code="bad_form")
            if part.name == "file" and name is not None:
                raise wrong("file is given twice", "file")
            if part.name == "file":
                name = _file_name(part.filename)
                await self._read_file(part, spool)
            else:
                fields.setdefault(part.name or "", []).append(await self._read_field(part))
        if name is None:
            raise wrong("file is missing: the recording to transcribe", "file", "missing_file")
        if not spool.num_bytes:
            raise wrong("file is empty", "file", "invalid_file")
        return fields, name

    async def _read_file(self, part: BodyPartReader, spool: Spool) -> None:
        while data := await self._within(part.read_chunk(_READ_BYTES)):
            self.num_bytes += len(data)
            if self.num_bytes > self._limits.max_upload_bytes:
                raise self._too_large()
            await spool.write(data)

    async def _read_field(self, part: BodyPartReader) -> str:
        found = b""
        while data := await self._within(part.read_chunk()):
            found += data
            if len(found) > _LONGEST_FIELD:
                raise wrong(f"{(part.name or '')[:60]!a} has more than {_LONGEST_FIELD} bytes", code="bad_form")
        return found.decode()

    async def _within(self, read):
        return await within(self._limits.idle_seconds, read)

    def _too_large(self) -> ApiError:
        message = f"the recording has more than the {self._limits.max_upload_bytes} bytes that are allowed; cut it"
        return ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, code="file_too_large", param="file")

    async def _transcribe(self, form: Form, decoded: Decoded) -> web.StreamResponse:
        server = self._server
        most_pending = server.offer.latency_seconds(form.options) + self._limits.pending_seconds
        recording = Recording(server.open_session, server.mailbox, decoded.sample_rate, form.options, most_pending)
        feeding = asyncio.create_task(self._feed(decoded, recording))
        try:
            happened = self._happened(recording)
            if form.stream:
                return await self._stream(happened, decoded)
            finals = [one async for one in happened if isinstance(one, Final)]
            self.text = text_of(finals)
            body, kind = answer(form, finals, decoded.seconds, self._api.token_ids)
            return text(body, content_type=kind)
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            recording.close()

    async def _feed(self, decoded: Decoded, recording: Recording) -> None:
        spend = self._visit.front.grant.spend
        try:
            async for samples in decoded.blocks():
                if not spend(len(samples) / decoded.sample_rate):
                    message = "the day's seconds of audio of this token are used up"
                    status, kind = HTTPStatus.TOO_MANY_REQUESTS, "insufficient_quota"
                    raise ApiError(status, message, kind, code=kind)
                await recording.push(samples)
            recording.end()
        except Exception as error:
            recording.fail(error)

    async def _happened(self, recording: Recording) -> AsyncIterator[Happened]:
        """What happens to the end. Raises ApiError, or what feeding raises."""
        async for one in recording.happened():
            if isinstance(one, Failed):
                if one.code == "bad_audio":
                    raise wrong(one.message, "file", "invalid_file")
                raise ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, one.message, SERVER, code=one.code)
            yield one

    async def _stream(self, happened: AsyncIterator[Happened], decoded: Decoded) -> web.StreamResponse:
        """The answer as server-sent events."""
        first = await anext(happened)  # what is wrong with the recording shows before it: an error has its own status
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "Server": "sumix", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=BASE_HEADERS | headers | self._api.page_headers(self._visit))
        response.force_close()
        await response.prepare(self._visit.request)
        growing, finals = GrowingText(), []

        async def tell(one: Happened) -> None:
            delta = growing.partial(one) if isinstance(one, Partial) else ""
            if isinstance(one, Final):
                finals.append(one)
                delta = growing.final(one)
            if delta:
                await self._send(response, {"type": "transcript.text.delta", "delta": delta})

        try:
            await tell(first)
            async for one in happened:
                await tell(one)
            self.text = text_of(finals)
            done = {"type": "transcript.text.done", "text": self.text, "usage": usage(decoded.seconds)}
            await self._send(response, done)
        except UploadError as error:  # beyond the first samples: the status was sent
            await self._send(response, {"error": wrong(str(error), "file", "invalid_file").error})
        except ApiError as error:
            await self._send(response, {"error": error.error})
        await response.write_eof()
        return response

    async def _send(self, response: web.StreamResponse, event: dict) -> None:
        """Raises ConnectionResetError where the client does not read."""
        data = json.dumps(event, ensure_ascii=False)
        try:
            await within(self._limits.send_seconds, response.write(f"data: {data}\n\n".encode()))
        except asyncio.TimeoutError:
            self._server.metrics.errors.labels(code="slow_reader").inc()
            self._visit.front.abort()
            raise ConnectionResetError from None


def _file_name(given: str | None) -> str:
    """For messages."""
    name = re.sub(r"[^\w.() -]", "_", (given or "the recording").replace("\\", "/").rpartition("/")[2])
    return name[-80:] or "the recording"
