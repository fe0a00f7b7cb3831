"""Who may ask, and how much of the server one client may hold: keys, body limit, slow clients. Knows no endpoint."""

import asyncio
import hmac
import time
from ipaddress import ip_address

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusionroute.server.api.errors import ApiError
from fusionroute.server.logs import GONE, entry

OPEN_PATHS = frozenset({"/", "/health", "/version"})
PAGE_PREFIX = "/playground/"  # the page's own files; what it asks of the API needs a key like anything else
CONNECTION = "fusionroute.connection"  # in a scope's state: what `run.Connection` lets a request do to its connection
READ_ON = 16  # times what is allowed is read, and dropped: who is still sending at the end would never see why it came


class KnownHost:
    """Refuses who asks for another host: a page of a stranger's whose name was made to point to this machine.

    A browser takes such a page and this server for one site, so that neither the content type nor CORS keeps it away;
    but it says the page's own name. ``/health`` is for everybody.

    Args:
        hosts: that may be asked for beside this machine's own names and addresses; "*" = any.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]):
        self.app, self.hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health" or self.knows(host := _host(scope)):
            return await self.app(scope, receive, send)
        error = ApiError(
            403,
            f"This server does not answer as {host or 'a host without a name'}; start it with --allowed-host NAME for "
            "each name by which it is asked.",
            code="unknown_host",
            headers={"Connection": "close"},
        )
        await error.response()(scope, receive, send)

    def knows(self, host: str) -> bool:
        return "*" in self.hosts or host in self.hosts or _is_this_machine(host)


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
        declared = _declared_length(scope)
        if declared > self.most and (_waits_to_be_asked(scope) or declared > READ_ON * self.most):
            raise self._too_large()
        body, size, more, end = bytearray(), 0, True, time.monotonic() + self.seconds
        while more and size <= READ_ON * self.most:
            try:
                async with asyncio.timeout(max(0.0, end - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                if size > self.most:
                    break
                raise ApiError(
                    408, f"The request's body did not arrive within {self.seconds:g} seconds.", code="request_timeout"
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            if size <= self.most:
                body += message.get("body", b"")
            else:
                body.clear()
        if size > self.most:
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


async def until_gone(receive: Receive) -> None:
    """Wait until the client has hung up; for who has read the whole body."""
    while (await receive())["type"] != "http.disconnect":
        pass


def abort(scope: Scope) -> None:
    """Close the client's connection without waiting for it to take what is still to be sent."""
    connection = scope.get("state", {}).get(CONNECTION)
    if connection is not None:
        connection.abort()


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(PAGE_PREFIX)


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _no_access(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _bearer(scope: Scope) -> bytes | None:
    scheme, _, key = (_header(scope, b"authorization") or b"").partition(b" ")
    return bytes(key.strip()) if scheme.lower() == b"bearer" and key.strip() else None


def _host(scope: Scope) -> str:
    """The name or address alone, as `ServerSettings.allowed_hosts` has it; "" if the client names none."""
    host = (_header(scope, b"host") or b"").decode("latin-1").strip().lower()
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() and not host.endswith("]") else host).removesuffix(".")


def _declared_length(scope: Scope) -> int:
    length = _header(scope, b"content-length") or b""
    return int(length) if length.isdigit() else 0


def _waits_to_be_asked(scope: Scope) -> bool:
    """Whether the client sends its body only once it hears that it may, and has heard nothing yet."""
    return (_header(scope, b"expect") or b"").lower() == b"100-continue"


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    """The first of that name."""
    return next((bytes(value) for name, value in scope["headers"] if name == wanted), None)


def _first(body: bytes, receive: Receive) -> Receive:
    """``receive`` that hands out ``body`` before it asks the server again."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
