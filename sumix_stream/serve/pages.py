"""The server's own paths: the page, how it is, its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

from sumix_stream.serve import protocol
from sumix_stream.serve.access import Refusal, unauthorised
from sumix_stream.serve.http import Answer, Visit, page, page_policy, text

if TYPE_CHECKING:
    from sumix_stream.serve.server import Server


def routes(server: Server) -> Mapping[str, Mapping[str, Answer]]:
    """Path -> method -> answer; "" = of any other path."""

    async def show_page(visit: Visit) -> web.Response:
        return text(page(), content_type="text/html", Content_Security_Policy=page_policy())

    async def health(visit: Visit) -> web.Response:
        state = server.health
        status = HTTPStatus.OK if state in ("ok", "degraded") else HTTPStatus.SERVICE_UNAVAILABLE
        body = protocol.dump(
            status=state,
            streams=server.num_streams,
            max_streams=server.limits.max_streams,
            workers=server.num_workers,
            workers_ok=server.num_responsive,
        )
        return text(body, status, "application/json")

    async def live(visit: Visit) -> web.Response:
        state = server.health
        status = HTTPStatus.SERVICE_UNAVAILABLE if state == "failed" else HTTPStatus.OK
        return text(protocol.dump(status=state), status, "application/json")

    async def metrics(visit: Visit) -> web.Response:
        if not server.access.is_open_to(visit.asked):
            return refused(unauthorised())
        return text(server.metrics.text(), content_type=server.metrics.content_type)

    async def upgrade(visit: Visit) -> web.Response:
        told = f"this is a websocket: connect to {protocol.PATH} with an Upgrade header\n"
        return text(told, HTTPStatus.UPGRADE_REQUIRED, Upgrade="websocket")

    async def nothing(visit: Visit) -> web.Response:
        return text("nothing is here; the page is at /\n", HTTPStatus.NOT_FOUND)

    return {
        "/": {"GET": show_page},
        "/health": {"GET": health},
        "/live": {"GET": live},
        "/metrics": {"GET": metrics},
        protocol.PATH: {"GET": upgrade},
        "": {"*": nothing},
    }


def refused(refusal: Refusal) -> web.Response:
    return text(refusal.text, refusal.status, **refusal.headers)
