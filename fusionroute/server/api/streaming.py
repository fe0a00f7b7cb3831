"""Server-sent events: one request's answers as chunks, ended by [DONE] whatever happens."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fusionroute.server.api.answers import Answers, raise_failure
from fusionroute.server.api.errors import ApiError
from fusionroute.server.api.rendering import Rendering
from fusionroute.server.logs import entry
from fusionroute.server.ticket import Update

PATIENCE = 15.0  # seconds after which a comment keeps proxies from giving up on a silent connection
COMMENT = b": still there\n\n"
DONE = b"data: [DONE]\n\n"
LARGE = 2**15  # bytes, after which everybody else gets a turn
encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class EventStream(Response):
    """The reply to a request with ``stream``.

    It begins with the first tokens, or once a client has waited long enough for a sign of life: what fails before is
    an error reply with a status of its own, what fails later an event.

    Args:
        answers: not yet submitted.
    """

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, rendering: Rendering):
        self.answers, self.rendering = answers, rendering
        self.status_code, self.background, self.body = 200, None, b""
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.answers:
            first = await self.answers.next(PATIENCE)
            raise_failure(first or [])
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for piece in self._pieces(first):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except ApiError as error:
                entry(scope).update(status=error.status, error=error.code)
                await send({"type": "http.response.body", "body": event(error.body()), "more_body": True})
        await send({"type": "http.response.body", "body": DONE})

    async def _pieces(self, updates: list[Update] | None) -> AsyncIterator[bytes]:
        """Raises `ApiError` where an answer fails, and as `Answers`."""
        yield b"".join(event(chunk) for chunk in self.rendering.opening())
        while True:
            raise_failure(updates or [])
            if updates is None:
                yield COMMENT
            else:
                async for told in self._news(updates):
                    yield told
            if self.answers.is_complete:
                break
            updates = await self.answers.next(PATIENCE)
        if told := b"".join(event(chunk) for chunk in self.rendering.closing()):
            yield told

    async def _news(self, updates: list[Update]) -> AsyncIterator[bytes]:
        """One piece for all of a round, or several where it has brought much."""
        told = b""
        for update in updates:
            if update.prompt_logprobs:  # the figures of a whole prompt are one event, however long it takes to write
                told += await asyncio.to_thread(self._events, update)
            else:
                told += self._events(update)
            if len(told) >= LARGE:
                yield told
                told = b""
                await asyncio.sleep(0)
        if told:
            yield told

    def _events(self, update: Update) -> bytes:
        return b"".join(event(chunk) for chunk in self.rendering.news(update))


def event(data: Mapping[str, Any]) -> bytes:
    """One event. ASCII alone, since some clients take more characters for the end of a line than the standard does."""
    return b"data: " + encode(data).encode() + b"\n\n"
