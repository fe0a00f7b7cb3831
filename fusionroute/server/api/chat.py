"""POST /v1/chat/completions"""

from collections.abc import Iterator

from fastapi import Request
from fastapi.responses import Response

from fusionroute.server.api import replies
from fusionroute.server.api.answers import Answer
from fusionroute.server.api.endpoint import answer
from fusionroute.server.api.prompts import for_chat
from fusionroute.server.api.rendering import Chunk, Rendering, Written
from fusionroute.server.api.schemas import ChatRequest
from fusionroute.server.ticket import Update


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    return await answer(request, ChatRequest, for_chat, ChatRendering)


class ChatRendering(Rendering):
    prefix, whole, piece = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, answer: Answer) -> replies.ChatChoice:
        choice: replies.ChatChoice = {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self.logprobs(answer.written),
            "finish_reason": replies.ended(answer.finish_reason),
        }
        if self.asked.request.provenance:
            choice["provenance"] = self.provenance(answer.written)
        return choice

    def opening(self) -> Iterator[Chunk]:
        for index in range(len(self.asked.sequences)):
            yield self.chunk([self.chunk_choice(index, {"role": "assistant", "content": ""})])

    def chunk_choices(self, update: Update) -> Iterator[replies.ChatChunkChoice]:
        text = "".join(text for _, text in update.written) + update.rest
        told = self.chunk_choice(update.index, {"content": text})
        if update.written:
            told["logprobs"] = self.logprobs(update.written)
        if update.written and self.asked.request.provenance:
            told["provenance"] = self.provenance(update.written)
        if text or told["logprobs"] or "provenance" in told:
            yield told
        if update.finish_reason is not None:
            last = self.chunk_choice(update.index, {})
            last["finish_reason"] = replies.ended(update.finish_reason)
            yield last

    def chunk_choice(self, index: int, delta: replies.ChatDelta) -> replies.ChatChunkChoice:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def logprobs(self, written: Written) -> replies.ChatLogprobs | None:
        request = self.asked.request
        assert isinstance(request, ChatRequest)
        return replies.chat_logprobs((record for record, _ in written), self.token_text) if request.logprobs else None
