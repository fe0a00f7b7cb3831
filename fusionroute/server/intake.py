"""A request comes in: from its body to sequences, in the one thread that tokenises, so that the loop never waits."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import Request

from fusionroute.server.errors import bad_request
from fusionroute.server.logs import entry
from fusionroute.server.offer import Offered
from fusionroute.server.prompts import Asked, parse
from fusionroute.server.schemas import ChatRequest, CompletionRequest, GenerationRequest
from fusionroute.server.settings import ServerSettings
from fusionroute.server.spelling import spelling_by_id
from fusionroute.server.worker import Worker

Schema = TypeVar("Schema", bound=GenerationRequest)
Prepare = Callable[[Schema, Mapping[str, Offered], ServerSettings], Asked]


class Intake:
    """What the endpoints share.

    Attributes:
        spelling: how each model id's tokens are shown.
    """

    def __init__(self, worker: Worker, settings: ServerSettings):
        self.worker, self.settings, self.offer = worker, settings, worker.offer
        self.spelling = spelling_by_id(worker.offer)
        self._tokeniser = ThreadPoolExecutor(1, thread_name_prefix="fusionroute-tokeniser")

    async def take(self, request: Request, schema: type[Schema], prepare: Prepare[Schema]) -> Asked:
        """Raises `ApiError` for whatever is wrong with the request."""
        _check_content_type(request)
        body, loop = await request.body(), asyncio.get_running_loop()

        def prepared() -> Asked:
            return prepare(parse(body, schema), self.offer, self.settings)

        asked = await loop.run_in_executor(self._tokeniser, prepared)
        self._tell(request, asked)
        return asked

    def close(self) -> None:
        self._tokeniser.shutdown(wait=False, cancel_futures=True)

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
