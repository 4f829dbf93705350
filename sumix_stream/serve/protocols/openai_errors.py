"""Errors in the form of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web

from sumix_stream.serve.access import Refusal
from sumix_stream.serve.http import text

INVALID, SERVER, RATE = "invalid_request_error", "server_error", "rate_limit_error"
_OF_REFUSAL = {  # reason -> status, type, code
    "token": (HTTPStatus.UNAUTHORIZED, INVALID, "invalid_api_key"),
    "origin": (HTTPStatus.FORBIDDEN, INVALID, "origin_not_allowed"),
    "quota": (HTTPStatus.TOO_MANY_REQUESTS, "insufficient_quota", "insufficient_quota"),
    "draining": (HTTPStatus.SERVICE_UNAVAILABLE, SERVER, "draining"),
}


class ApiError(Exception):
    """An answer other than what was asked for.

    Args:
        param: the field that is wrong.
        headers: of the answer, such as Retry_After.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        kind: str = INVALID,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param, self.headers = status, kind, code, param, headers or {}

    @property
    def error(self) -> dict:
        return {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}

    @property
    def body(self) -> str:
        return json.dumps({"error": self.error}, ensure_ascii=False)

    def response(self, **headers: str) -> web.Response:
        return text(self.body, self.status, "application/json", **self.headers, **headers)


def wrong(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: a field is not as it must be."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, code=code, param=param)


def of_refusal(refusal: Refusal) -> ApiError:
    """Who is not let in: also that all streams are taken is a reason to come again."""
    busy = HTTPStatus.TOO_MANY_REQUESTS, RATE, "rate_limit_exceeded"
    status, kind, code = _OF_REFUSAL.get(refusal.reason, busy)
    return ApiError(status, refusal.text.strip(), kind, code=code, headers=refusal.headers)
