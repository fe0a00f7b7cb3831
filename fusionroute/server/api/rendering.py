"""What is told of answers in the making, to the client and to the log, whichever way the client asked."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fusionroute.engine.sequence import TraceRecord
from fusionroute.server.api import replies
from fusionroute.server.api.answers import Answer
from fusionroute.server.api.prompts import Asked
from fusionroute.server.api.token_text import TokenText
from fusionroute.server.ticket import Update

Written = Iterable[tuple[TraceRecord, str]]
Chunk = Mapping[str, Any]


class Rendering(ABC):
    """One request's replies: all at once, or in chunks.

    Args:
        log: the request's line in the log, which is told how it ends.
        log_text: whether the answers stand there too.
    """

    prefix: str  # of the reply's id
    whole: str  # what OpenAI calls the reply as an object
    piece: str  # and a chunk of it

    def __init__(self, asked: Asked, token_text: TokenText, log: dict[str, Any], *, log_text: bool):
        self.asked, self.token_text, self._log = asked, token_text, log
        self._head = {"id": replies.new_id(self.prefix), "created": replies.now(), "model": asked.offered.id}
        self._tokens = 0
        self._reasons: dict[int, str] = {}
        self._texts = [""] * len(asked.sequences) if log_text else None

    @abstractmethod
    def choice(self, index: int, answer: Answer) -> Mapping[str, Any]:
        """A whole answer."""

    @abstractmethod
    def chunk_choices(self, update: Update) -> Iterator[Mapping[str, Any]]:
        """What one update says."""

    def reply(self, answers: list[Answer]) -> Chunk:
        """Everything at once."""
        for index, answer in enumerate(answers):
            self._account(index, len(answer.written), answer.text, answer.finish_reason)
        choices = [self.choice(index, answer) for index, answer in enumerate(answers)]
        self._tell_log()
        return {**self._head, "object": self.whole, "choices": choices, "usage": self.usage}

    def opening(self) -> Iterator[Chunk]:
        """Chunks that need no token."""
        yield from ()

    def news(self, update: Update) -> Iterator[Chunk]:
        """The chunks of one update, which must be no failure."""
        text = "".join(text for _, text in update.written) + update.rest
        self._account(update.index, len(update.written), text, update.finish_reason)
        for choice in self.chunk_choices(update):
            yield self.chunk([choice])

    def closing(self) -> Iterator[Chunk]:
        """Chunks behind all answers."""
        self._tell_log()
        if self._gives_usage:
            yield {**self.chunk([]), "usage": self.usage}

    def chunk(self, choices: list[Mapping[str, Any]]) -> Chunk:
        chunk = {**self._head, "object": self.piece, "choices": choices}
        return {**chunk, "usage": None} if self._gives_usage else chunk

    def written(self, update: Update | Answer) -> list[tuple[TraceRecord, str]]:
        """The tokens to show; none where the engine had to write one that nobody asked for."""
        return update.written if self.asked.writes else []

    def provenance(self, written: Written) -> list[replies.Provenance]:
        asked, candidates = self.asked, self.asked.request.candidates is not None
        return [
            replies.provenance(record, text, asked.offered, self.token_text, candidates=candidates)
            for record, text in written
        ]

    @property
    def usage(self) -> replies.Usage:
        return replies.usage(self.asked.prompt_tokens, self._tokens)

    @property
    def _gives_usage(self) -> bool:
        options = self.asked.request.stream_options
        return bool(options and options.include_usage)

    def _account(self, index: int, tokens: int, text: str, finish_reason: str | None) -> None:
        if self.asked.writes:
            self._tokens += tokens
            if self._texts is not None:
                self._texts[index] += text
        if finish_reason is not None:
            self._reasons[index] = finish_reason

    def _tell_log(self) -> None:
        self._log["completion_tokens"] = self._tokens
        self._log["finish_reasons"] = [self._reasons[index] for index in sorted(self._reasons)]
        if self._texts is not None:
            self._log["texts"] = self._texts
