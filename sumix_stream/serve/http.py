"""What the server answers to plain HTTP, and whom it lets stream."""

import base64
import functools
import hashlib
import re
from http import HTTPStatus
from importlib import resources

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from sumix_stream.serve.access import Asked, Refusal

_BASE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@functools.cache
def page() -> str:
    """The browser's page: one document with its style and its script in it."""
    folder = resources.files("sumix_stream.serve").joinpath("page")
    html, style, script = (
        folder.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
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


def answer(
    connection: ServerConnection, status: HTTPStatus, body: str, content_type: str = "text/plain", **headers: str
) -> Response:
    """A response with the headers that all of them have; `Retry_After="1"` becomes Retry-After: 1."""
    response = connection.respond(status, body)
    del response.headers["Content-Type"]
    charset = "" if ";" in content_type else "; charset=utf-8"
    response.headers["Content-Type"] = content_type + charset
    for name, value in (_BASE_HEADERS | headers).items():
        response.headers[name.replace("_", "-")] = value
    return response


def is_upgrade(request: Request) -> bool:
    """Whether a websocket is asked for."""
    return any(value.lower() == "websocket" for value in request.headers.get_all("Upgrade"))


def refuse(connection: ServerConnection, refusal: Refusal) -> Response:
    """The response that says why."""
    return answer(connection, refusal.status, refusal.text, **refusal.headers)


def asked(connection: ServerConnection, request: Request) -> Asked:
    """What access is decided by."""
    peer = connection.transport.get_extra_info("peername")
    address = peer[0] if isinstance(peer, tuple) else ""
    return Asked(request.path, request.headers.get_all, address)


def path_below(base: str, path: str) -> str:
    """A request's path without the one that the server's are below; a proxy may have taken it away already."""
    path = path.partition("?")[0]
    return path[len(base) :] or "/" if base and (path + "/").startswith(base + "/") else path
