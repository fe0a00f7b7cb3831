"""A request comes in: from its body to sequences, in the one thread that tokenises, so that the loop never waits."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive

from fusionroute.server.api.errors import bad_request, of_answer, shutting_down
from fusionroute.server.api.prompts import Asked, IsWanted, parse
from fusionroute.server.api.schemas import ChatRequest, CompletionRequest, GenerationRequest
from fusionroute.server.api.security import ClientGone, until_gone
from fusionroute.server.api.token_text import token_texts
from fusionroute.server.logs import entry
from fusionroute.server.offer import Offered
from fusionroute.server.settings import ServerSettings
from fusionroute.server.ticket import TIMEOUT
from fusionroute.server.worker import BusyError, Worker

LARGEST = 16  # bodies of the greatest size may wait to be read, or more smaller ones
LOOK = 0.1  # seconds after which a request that waits looks whether the server still takes any
Schema = TypeVar("Schema", bound=GenerationRequest)
Prepare = Callable[[Schema, Mapping[str, Offered], ServerSettings, IsWanted], Asked]


class Intake:
    """What the endpoints share.

    Attributes:
        token_texts: how each model id's tokens are shown.
    """

    def __init__(self, worker: Worker, settings: ServerSettings):
        self.worker, self.settings, self.offer = worker, settings, worker.offer
        self.token_texts = token_texts(worker.offer)
        self._tokeniser = ThreadPoolExecutor(1, thread_name_prefix="fusionroute-tokeniser")
        self._waiting = self._bytes = 0  # requests that are or will be read, and their bodies'

    async def take(self, request: Request, schema: type[Schema], prepare: Prepare[Schema]) -> Asked:
        """Read a request, unless too many others are to be read before.

        Raises:
            ApiError: for whatever is wrong with it, or if it cannot be read in time, or before the server stops.
            BusyError: too many.
            ClientGone: while it waited.
        """
        arrived_at = monotonic()
        _check_content_type(request)
        held = [await request.body()]  # emptied when nobody wants the answer any more
        about = entry(request.scope)

        def prepared() -> Asked:
            asked = parse(held[0], schema)
            if asked.model in self.offer:
                about["model"] = asked.model
            return prepare(asked, self.offer, self.settings, lambda: bool(held))

        with self._place(len(held[0])):
            try:
                asked = await self._in_turn(prepared, request.receive, arrived_at)
            finally:
                held.clear()
        self._tell(request, asked)
        return replace(asked, arrived_at=arrived_at)

    def close(self) -> None:
        self._tokeniser.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _place(self, size: int) -> Iterator[None]:
        most = self.settings.max_waiting + self.settings.max_batch  # the worker could not take more anyway
        if self._waiting >= most or (self._waiting and self._bytes + size > LARGEST * self.settings.max_body):
            raise BusyError(1)
        self._waiting, self._bytes = self._waiting + 1, self._bytes + size
        try:
            yield
        finally:
            self._waiting, self._bytes = self._waiting - 1, self._bytes - size

    async def _in_turn(self, work: Callable[[], Asked], receive: Receive, arrived_at: float) -> Asked:
        """What ``work`` gives; it is not begun, or not waited for, where the client or the server ends first."""
        begun = asyncio.get_running_loop().run_in_executor(self._tokeniser, work)
        gone = asyncio.create_task(until_gone(receive))
        either: set[asyncio.Future[Any]] = {begun, gone}
        try:
            while not begun.done():
                left = arrived_at + self.settings.time_limit - monotonic()
                if gone.done():
                    raise ClientGone
                if self.worker.is_stopping:
                    raise shutting_down()
                if left <= 0:
                    raise of_answer(TIMEOUT)
                await asyncio.wait(either, timeout=min(LOOK, left), return_when=asyncio.FIRST_COMPLETED)
            return begun.result()
        finally:
            begun.cancel()
            gone.cancel()

    def _tell(self, request: Request, asked: Asked) -> None:
        about = {
            "model": asked.offered.id,
            "stream": bool(asked.request.stream),
            "answers": len(asked.sequences),
            "prompt_tokens": asked.prompt_tokens,
            "user": asked.request.user,
        }
        if self.settings.log_prompts and isinstance(asked.request, ChatRequest):
            about["messages"] = [message.model_dump(exclude_none=True) for message in asked.request.messages]
        if self.settings.log_prompts and isinstance(asked.request, CompletionRequest):
            about["prompt"] = asked.request.prompt
        entry(request.scope).update({key: value for key, value in about.items() if value is not None})


def _check_content_type(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # not only for order's sake: no other site's page can send this type without being asked first
        raise bad_request(
            f"The body must be JSON, sent with the header 'Content-Type: application/json'; got {kind or 'none'}",
            code="unsupported_content_type",
        )
