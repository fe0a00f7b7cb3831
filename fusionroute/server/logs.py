"""One line of JSON for each request, and an id that stands in the reply too. No text of clients unless it is wanted."""

import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusionroute.server.metrics import Metrics

logger = logging.getLogger("fusionroute.server")
SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
GONE = 499  # what nginx calls a client that left before its reply; nobody receives it
_ENTRY = "fusionroute.entry"


def entry(scope: Scope) -> dict[str, Any]:
    """What the log line of this request will say beside method, path, status and time; handlers add to it."""
    found: dict[str, Any] = scope.setdefault(_ENTRY, {})
    return found


class Logged:
    """Outermost: nothing that goes wrong inside reaches the client but as an error reply.

    Args:
        refuse: the reply for an exception.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, refuse: Callable[[Exception], Response]):
        self.app, self.metrics, self.refuse = app, metrics, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, status, id = time.monotonic(), GONE, _request_id(scope)
        entry(scope)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", id.encode())]}
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            entry(scope)["exception"] = type(error).__name__
            logger.exception("request %s failed", id)
            if status == GONE:
                await self.refuse(error)(scope, receive, send_with_id)
        finally:
            self._tell(scope, id, status, time.monotonic() - begun)

    def _tell(self, scope: Scope, id: str, status: int, seconds: float) -> None:
        about = entry(scope)
        status = about.pop("status", status)  # a stream that failed midway began with 200
        endpoint = getattr(scope.get("route"), "path", "other")  # as the code names it, which is not how it was sent
        self.metrics.count_request(endpoint, about.get("model"), status, seconds)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": id,
            "method": scope["method"],
            "path": scope["path"][:256],
            "status": status,
            "seconds": round(seconds, 4),
            "client": (scope.get("client") or ("",))[0],
            **about,
        }
        logger.info(json.dumps(line, default=str))


def _request_id(scope: Scope) -> str:
    """The client's own, if it is one that may stand in a log and a header."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and SANE_ID.fullmatch(text := value.decode("latin-1")):
            return text
    return uuid.uuid4().hex
