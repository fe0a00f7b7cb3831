"""The answers to one request as they grow: from the worker's thread into the loop, and back if the client leaves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from starlette.types import Receive

from fusionroute.engine.sequence import PromptLogprob, TraceRecord
from fusionroute.server.api.errors import of_answer
from fusionroute.server.api.prompts import Asked
from fusionroute.server.api.security import ClientGone, until_gone
from fusionroute.server.ticket import Ticket, Update
from fusionroute.server.worker import Worker


class Answers:
    """Submits on entering; leaving before all answers have ended cancels the rest, whatever the reason.

    Args:
        receive: the request's, behind its body; it says when the client is gone.

    Raises, on entering: what `Worker.submit` does.
    """

    def __init__(self, worker: Worker, asked: Asked, receive: Receive):
        self._worker, self.asked, self._receive = worker, asked, receive
        self._rounds: asyncio.Queue[list[Update] | None] = asyncio.Queue()  # None: the client is gone
        self._loop = asyncio.get_running_loop()
        self._unfinished = len(asked.sequences)
        self._ticket: Ticket | None = None
        self._leaving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        asked = self.asked
        self._ticket = self._worker.submit(
            asked.offered.id, asked.sequences, self._on_update, arrived_at=asked.arrived_at
        )
        self._leaving = asyncio.create_task(self._leave_with_client())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._ticket is not None
        assert self._leaving is not None
        if self._unfinished:
            self._ticket.cancel()
        self._leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._leaving

    @property
    def is_complete(self) -> bool:
        return self._unfinished == 0

    async def next(self, seconds: float | None = None) -> list[Update] | None:
        """What the next round brought; None if it takes longer than that. Raises `ClientGone`."""
        try:
            async with asyncio.timeout(seconds):
                updates = await self._rounds.get()
        except TimeoutError:
            return None
        if updates is None:
            raise ClientGone
        self._unfinished -= sum(update.finish_reason is not None for update in updates)
        return updates

    async def rounds(self) -> AsyncIterator[list[Update]]:
        """All of them, until every answer has ended. Raises `ClientGone`."""
        while not self.is_complete:
            updates = await self.next()
            assert updates is not None
            yield updates

    def _on_update(self, updates: list[Update]) -> None:
        """In the worker's thread. A loop that is closed has nobody left to tell."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._rounds.put_nowait, updates)

    async def _leave_with_client(self) -> None:
        await until_gone(self._receive)
        assert self._ticket is not None
        self._ticket.cancel()
        self._rounds.put_nowait(None)


@dataclass
class Answer:
    """What one sequence has come to so far."""

    written: list[tuple[TraceRecord, str]] = field(default_factory=list)
    rest: str = ""
    finish_reason: str | None = None
    prompt_logprobs: list[PromptLogprob] | None = None

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.written) + self.rest

    def add(self, update: Update) -> None:
        self.written += update.written
        self.rest += update.rest
        self.finish_reason = update.finish_reason
        self.prompt_logprobs = update.prompt_logprobs or self.prompt_logprobs


async def collect(answers: Answers) -> list[Answer]:
    """All answers in the order of their indices. Raises `ApiError` if one fails, `ClientGone`, and as `Answers`."""
    collected = [Answer() for _ in answers.asked.sequences]
    async with answers:
        async for updates in answers.rounds():
            raise_failure(updates)
            for update in updates:
                collected[update.index].add(update)
    return collected


def raise_failure(updates: Iterable[Update]) -> None:
    """Raises the `ApiError` of the first of these that says its answer has failed: the whole request has, then."""
    for update in updates:
        if update.error is not None:
            raise of_answer(update.error)
