"""POST /v1/completions"""

from collections.abc import Iterator
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from fusionroute.engine.sequence import PromptLogprob
from fusionroute.server.api import replies
from fusionroute.server.api.answers import Answer
from fusionroute.server.api.endpoint import answer
from fusionroute.server.api.prompts import Echo, for_completion
from fusionroute.server.api.rendering import Rendering, Written
from fusionroute.server.api.schemas import CompletionRequest
from fusionroute.server.ticket import Update


async def completions(request: Request) -> Response:
    """Continue a text, or token ids, as they are."""
    return await answer(request, CompletionRequest, for_completion, TextRendering)


class TextRendering(Rendering):
    """A text begins with its prompt where that is to be echoed, and so do its log-probabilities."""

    prefix, whole, piece = "cmpl", "text_completion", "text_completion"

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._told = [0] * len(self.asked.sequences)  # characters of each text
        self._begun: set[int] = set()

    def choice(self, index: int, answer: Answer) -> replies.TextChoice:
        return self._part(index, answer)

    def chunk_choices(self, update: Update) -> Iterator[replies.TextChoice]:
        part = self._part(update.index, update)
        if part["text"] or part["finish_reason"] or part["logprobs"] or part.get("provenance"):
            yield part

    def _part(self, index: int, part: Update | Answer) -> replies.TextChoice:
        """What comes next of a text: all of it, or what an update brought."""
        echo = None if index in self._begun else self.asked.echo(index)
        echoed, written = echo.text if echo else "", self.written(part)
        rest = part.rest if self.asked.writes else ""
        # of an answer that may have no token its length is the end, whatever the engine's one was
        reason = part.finish_reason if self.asked.writes else part.finish_reason and "length"
        logprobs = self._logprobs(echo, part.prompt_logprobs, written, begin=self._told[index] + len(echoed))
        text = echoed + "".join(text for _, text in written) + rest
        self._begun.add(index)
        self._told[index] += len(text)
        choice: replies.TextChoice = {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": None if reason is None else replies.ended(reason),
        }
        if self.asked.request.provenance:
            choice["provenance"] = self.provenance(written)
        return choice

    def _logprobs(
        self, echo: Echo | None, prompt: list[PromptLogprob] | None, written: Written, begin: int
    ) -> replies.TextLogprobs | None:
        """Args: ``begin``: the character at which the first of ``written`` stands."""
        request = self.asked.request
        assert isinstance(request, CompletionRequest)
        if request.logprobs is None:
            return None
        tokens, offsets = (list(prompt), list(echo.offsets)) if echo and prompt else ([], [])
        for record, text in written:
            tokens.append((record.token_id, record.logprob, record.top_logprobs))
            offsets.append(begin)
            begin += len(text)
        return replies.text_logprobs(tokens, offsets, self.token_text)
