"""Who may ask, and how much of the server one client may hold: keys, body limit, slow clients. Knows no endpoint."""

import asyncio
import hmac
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusionroute.server.errors import ApiError
from fusionroute.server.logs import GONE, entry

OPEN_PATHS = frozenset({"/", "/health", "/version"})
PAGE_PREFIX = "/playground/"  # the page's own files; what it asks of the API needs a key like anything else
CONNECTION = "fusionroute.connection"  # in a scope's state: what `run.Connection` lets a request do to its connection


class NeedsKey:
    """Refuses whoever brings no key, before anything of a body is read."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]):
        self.app, self.keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.keys and scope["type"] == "http" and not _is_open(scope["path"]):
            try:
                self.check(scope)
            except ApiError as error:
                return await error.response()(scope, receive, send)
        await self.app(scope, receive, send)

    def check(self, scope: Scope) -> None:
        given = _bearer(scope)
        if given is None:
            raise _no_access("You didn't provide an API key: send it as the header 'Authorization: Bearer KEY'.")
        # every key is compared, each in constant time, so that time tells nothing
        if not sum(hmac.compare_digest(given, key) for key in self.keys):
            raise _no_access("Incorrect API key provided.")


class TimedSending:
    """Lets a client go that does not take what is sent to it."""

    def __init__(self, app: ASGIApp, seconds: float):
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def timed(message: Message) -> None:
            try:
                async with asyncio.timeout(self.seconds):
                    await send(message)
            except TimeoutError:
                abort(scope)
                raise ClientGone from None

        try:
            await self.app(scope, receive, timed)
        except ClientGone:
            entry(scope).setdefault("status", GONE)
            abort(scope)


class LimitedBody:
    """Reads a request's body before anything else looks at it: not too much, and not for too long."""

    def __init__(self, app: ASGIApp, most: int, seconds: float):
        self.app, self.most, self.seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        try:
            body = await self.read(scope, receive)
        except ApiError as error:
            # the rest of the body is not waited for
            error.headers["Connection"] = "close"
            return await error.response()(scope, receive, send)
        except ClientGone:
            entry(scope)["status"] = GONE
            return
        await self.app(scope, _first(body, receive), send)

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        if _declared_length(scope) > self.most:
            raise self._too_large()
        body, more, end = bytearray(), True, time.monotonic() + self.seconds
        while more:
            try:
                async with asyncio.timeout(max(0.0, end - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    408, f"The request's body did not arrive within {self.seconds:g} seconds.", code="request_timeout"
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.most:
                raise self._too_large()
        return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The request's body is larger than {self.most} bytes.", code="request_too_large")


class NotCrowded:
    """Answers at once when more clients are connected than there should be."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = scope.get("state", {}).get(CONNECTION)
        if connection is not None and connection.is_crowded and scope["path"] not in OPEN_PATHS:
            error = ApiError(
                503,
                "Too many clients are connected; try again later.",
                type="server_error",
                code="too_many_connections",
                headers={"Retry-After": "1", "Connection": "close"},
            )
            return await error.response()(scope, receive, send)
        await self.app(scope, receive, send)


class ClientGone(Exception):
    """Nobody is there to answer; what the request holds is let go."""


def abort(scope: Scope) -> None:
    """Close the client's connection without waiting for it to take what is still to be sent."""
    connection = scope.get("state", {}).get(CONNECTION)
    if connection is not None:
        connection.abort()


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(PAGE_PREFIX)


def _no_access(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _bearer(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            return bytes(key.strip()) if scheme.lower() == b"bearer" and key.strip() else None
    return None


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _first(body: bytes, receive: Receive) -> Receive:
    """``receive`` that hands out ``body`` before it asks the server again."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
