"""What the server answers to HTTP: its page, how it is, and what protocols add. Requests are read by aiohttp."""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from importlib import resources
from typing import NamedTuple

from aiohttp import web
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from sumix_stream.serve.access import Asked, Refusal
from sumix_stream.serve.front import Front
from sumix_stream.serve.limits import Limits

BASE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_UPGRADE = re.compile(rb"\r\nupgrade:[ \t]*websocket[ \t]*\r\n", re.IGNORECASE)
_LINGER_SECONDS = 5.0  # that a body is read and thrown away after the answer, which would be lost otherwise

_log = logging.getLogger(__name__)


class Visit(NamedTuple):
    """A request, and the connection it came by."""

    request: web.BaseRequest
    front: Front

    @property
    def asked(self) -> Asked:
        """What access is decided by."""
        headers = self.request.headers
        return Asked(self.request.raw_path, lambda name: headers.getall(name, []), _peer(self.front.transport))


Answer = Callable[[Visit], Awaitable[web.StreamResponse]]


class Site:
    """Answers by path. One request a connection, so that limits of connections are limits of requests.

    Args:
        base_path: below which all paths are; a proxy may have taken it away.
        limits: `send_seconds` for an answer to be read.
        routes: path -> method -> answer; GET answers HEAD too. Of paths that are not named, that of the longest
            beginning which ends in a slash answers.
    """

    def __init__(self, base_path: str, limits: Limits, routes: Mapping[str, Mapping[str, Answer]]) -> None:
        self._base_path, self._limits, self._routes = base_path, limits, routes
        self._fronts: dict[object, Front] = {}  # by transport
        self._server = web.Server(
            self._handle,
            access_log=None,
            logger=_Silent("http"),
            lingering_time=_LINGER_SECONDS,
            auto_decompress=False,
            handler_cancellation=True,
        )

    def connection(self, front: Front) -> web.RequestHandler:
        """The protocol of a new connection, which is over with `left`."""
        self._fronts[front.transport] = front
        return self._server()

    def left(self, front: Front) -> None:
        self._fronts.pop(front.transport, None)

    async def close(self) -> None:
        """End what is under way."""
        await self._server.shutdown(2.0)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        front = self._fronts.get(request.transport)
        if front is None:  # it has gone
            raise ConnectionResetError
        try:
            response = await self._answer(Visit(request, front))
        except (web.HTTPException, ConnectionError):
            raise
        except Exception:
            _log.exception("an answer failed")
            response = text("the server failed\n", HTTPStatus.INTERNAL_SERVER_ERROR)
        response.force_close()
        front.within(self._limits.send_seconds + _LINGER_SECONDS)
        return response

    async def _answer(self, visit: Visit) -> web.StreamResponse:
        path = path_below(self._base_path, visit.request.raw_path)
        methods = (
            self._routes.get(path) or self._routes[max(filter(path.startswith, self._places), key=len, default="")]
        )
        method = visit.request.method
        found = methods.get("GET" if method == "HEAD" else method) or methods.get("*")
        if found is None:
            allowed = ", ".join(methods)
            return text(f"{path} takes {allowed}\n", HTTPStatus.METHOD_NOT_ALLOWED, Allow=allowed)
        return await found(visit)

    @functools.cached_property
    def _places(self) -> list[str]:
        return ["", *(path for path in self._routes if path.endswith("/") and path != "/")]


class _Silent(logging.Logger):
    """What the library would say of clients that break the rules."""

    def isEnabledFor(self, level: int) -> bool:
        return False


def text(
    body: str, status: HTTPStatus = HTTPStatus.OK, content_type: str = "text/plain", **headers: str
) -> web.Response:
    """An answer; `Retry_After="1"` becomes Retry-After: 1."""
    charset = "" if ";" in content_type else "; charset=utf-8"
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    kind = {"Content-Type": content_type + charset, "Server": "sumix"}
    return web.Response(body=body.encode(), status=status, headers=BASE_HEADERS | kind | given)


@functools.cache
def page() -> str:
    """The browser's page: one document with its style and its script in it."""
    folder = resources.files("sumix_stream.serve").joinpath("page")
    names = ("page.html", "page.css", "captions.js", "recordings.js", "page.js")
    html, style, *scripts = (folder.joinpath(name).read_text(encoding="utf-8") for name in names)
    script = "".join(scripts)
    return html.replace("<style>page.css<", f"<style>\n{style}<").replace("<script>page.js<", f"<script>\n{script}<")


@functools.cache
def page_policy() -> str:
    """Content security policy of the page: its own script and style, named by hash, and nothing from elsewhere."""

    def sources(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page(), re.S)
        digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {sources('script')} blob:; style-src {sources('style')}; "
        "connect-src 'self' ws: wss:; worker-src blob:; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def refuse(
    connection: ServerConnection, refusal: Refusal, body: str | None = None, content_type: str = "text/plain"
) -> Response:
    """The response to the handshake of a websocket that says why."""
    response = connection.respond(refusal.status, refusal.text if body is None else body)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = f"{content_type}; charset=utf-8"
    for name, value in {**BASE_HEADERS, **refusal.headers}.items():
        response.headers[name.replace("_", "-")] = value
    return response


def asked(connection: ServerConnection, request: Request) -> Asked:
    """What access is decided by, of the handshake of a websocket."""
    return Asked(request.path, request.headers.get_all, _peer(connection.transport))


def _peer(transport: object) -> str:
    peer = transport.get_extra_info("peername")
    return peer[0] if isinstance(peer, tuple) else ""


def upgrade_path(base: str, head: bytes) -> str | None:
    """The path of a request that asks for a websocket; None of another one."""
    if not _UPGRADE.search(head):
        return None
    target = head.partition(b"\r\n")[0].split(b" ")[1:2]
    return path_below(base, target[0].decode("latin-1")) if target else None


def path_below(base: str, path: str) -> str:
    """A request's path without the one that the server's are below; a proxy may have taken it away already."""
    path = path.partition("?")[0]
    return path[len(base) :] or "/" if base and (path + "/").startswith(base + "/") else path
