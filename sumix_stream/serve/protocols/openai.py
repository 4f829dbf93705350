"""OpenAI's API over HTTP: models, and transcriptions of uploaded recordings."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

from sumix_stream.serve.access import ANYBODY, unauthorised
from sumix_stream.serve.http import Answer, Visit, text
from sumix_stream.serve.logs import log_event
from sumix_stream.serve.protocol import dump
from sumix_stream.serve.protocols.openai_errors import RATE, ApiError, of_refusal
from sumix_stream.serve.protocols.openai_fields import shown
from sumix_stream.serve.protocols.openai_upload import Transcription

if TYPE_CHECKING:
    from sumix_stream.serve.server import Server

MODELS, TRANSCRIPTIONS, ELSE = "/v1/models", "/v1/audio/transcriptions", "/v1/"
_ALLOWED_HEADERS = "Authorization, Content-Type, OpenAI-Organization, OpenAI-Project, OpenAI-Beta"

NAME = "openai"  # in logs and metrics
_log = logging.getLogger(__name__)


class Api:
    """The paths of OpenAI's API.

    Args:
        model: the name that the server's model has for clients.
    """

    def __init__(self, server: Server, model: str) -> None:
        self.server, self.model = server, model
        self.num_uploads = 0
        self._created = int(time.time())

    @cached_property
    def token_ids(self) -> Mapping[str, int]:
        """Of the model's pieces."""
        tokenizer = self.server.recognizer.tokenizer
        return {tokenizer.piece(n): n for n in range(1, tokenizer.vocab_size)}

    def routes(self) -> Mapping[str, Mapping[str, Answer]]:
        """Path -> method -> answer."""
        allow = {"OPTIONS": self._allow}
        return {
            MODELS: {"GET": self._guarded(self._models), **allow},
            f"{MODELS}/": {"GET": self._guarded(self._one_model), **allow},
            TRANSCRIPTIONS: {"POST": self._guarded(self._transcribe), **allow},
            ELSE: {"OPTIONS": self._allow, "*": self._guarded(self._nothing)},
        }

    def _guarded(self, answer: Answer) -> Answer:
        """Errors in OpenAI's form; pages of allowed sites may read answers."""

        async def guarded(visit: Visit) -> web.StreamResponse:
            try:
                response = await answer(visit)
            except ApiError as error:
                response = error.response()
            except (ConnectionError, web.HTTPException):
                raise
            except Exception:
                _log.exception("an answer failed")
                fault = ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; try again", "server_error")
                response = fault.response()
            if not response.prepared:
                response.headers.update(self.page_headers(visit))
            return response

        return guarded

    def page_headers(self, visit: Visit) -> dict[str, str]:
        """What lets a page of another site read the answer, if it may."""
        origin = visit.request.headers.get("Origin")
        if origin is None or not self.server.access.admits_page(visit.asked):
            return {}
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}

    async def _allow(self, visit: Visit) -> web.Response:
        """What a browser asks before a request of a page of another site."""
        headers = self.page_headers(visit)
        if headers:
            headers |= {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Allow-Headers": _ALLOWED_HEADERS}
        response = text("", HTTPStatus.NO_CONTENT)
        response.headers.update(headers)
        return response

    async def _models(self, visit: Visit) -> web.Response:
        self._need_token(visit)
        return text(dump(object="list", data=[self._about_model()]), content_type="application/json")

    async def _one_model(self, visit: Visit) -> web.Response:
        self._need_token(visit)
        name = visit.request.path.rpartition(f"{MODELS}/")[2]
        if name != self.model:
            message = f"no model {shown(name)}; this server has {self.model}"
            raise ApiError(HTTPStatus.NOT_FOUND, message, code="model_not_found", param="model")
        return text(dump(**self._about_model()), content_type="application/json")

    def _about_model(self) -> dict:
        return {"id": self.model, "object": "model", "created": self._created, "owned_by": "sumix-stream"}

    async def _nothing(self, visit: Visit) -> web.Response:
        self._need_token(visit)
        known = f"GET {MODELS}, POST {TRANSCRIPTIONS} and the websocket /v1/realtime"
        raise ApiError(HTTPStatus.NOT_FOUND, f"nothing is here; of OpenAI's API this server has {known}")

    def _need_token(self, visit: Visit) -> None:
        if not self.server.access.is_open_to(visit.asked):
            raise of_refusal(unauthorised())

    async def _transcribe(self, visit: Visit) -> web.StreamResponse:
        server, front = self.server, visit.front
        front.protocol_name = NAME
        refusal = server.admit(front, visit.asked)
        if refusal is not None:
            raise of_refusal(refusal)
        began, name = time.monotonic(), uuid.uuid4().hex[:12]
        self.num_uploads += 1
        account = front.grant.account
        who = {} if account is None or account.name == ANYBODY else {"token": account.name}
        log_event(_log, "opened", stream=name, protocol=NAME, **who)
        transcription, reason = Transcription(self, visit), "disconnected"
        try:
            if self.num_uploads > server.limits.max_uploads:
                message = f"busy: {server.limits.max_uploads} recordings are being transcribed; try again"
                raise ApiError(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    message,
                    RATE,
                    code="rate_limit_exceeded",
                    headers={"Retry_After": "2"},
                )
            response = await transcription.run()
            reason = "done"
            return response
        except ApiError as error:
            reason = error.code or error.kind
            server.metrics.errors.labels(code=reason).inc()
            raise
        finally:
            self.num_uploads -= 1
            server.leave(front)
            if server.log_text:
                log_event(_log, "final", stream=name, result=transcription.text)
            seconds = round(time.monotonic() - began, 3)
            log_event(_log, "closed", stream=name, reason=reason, seconds=seconds, bytes=transcription.num_bytes)
