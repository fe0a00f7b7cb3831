"""What both endpoints do with a request: read it, queue it, and tell its answers in one of two ways."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from fusionroute.server.api.answers import Answers, collect
from fusionroute.server.api.errors import bad_request
from fusionroute.server.api.intake import Intake, Prepare, Schema
from fusionroute.server.api.prompts import Asked
from fusionroute.server.api.rendering import Rendering
from fusionroute.server.api.schemas import ChatRequest, CompletionRequest
from fusionroute.server.api.streaming import EventStream
from fusionroute.server.logs import entry

# Each takes some 100 bytes of a reply, and of memory until then. An answer of 4096 tokens with 20 candidates of each of
# five distributions has 413 696, lm-eval's likelihoods of 32 texts of 4096 tokens 262 144.
MOST_TOLD = 2**19
LARGE = 2**13  # a reply that tells so many takes more time than anybody's stream should stand still
DEEP = 5  # a reply, its choices, one of them, its log-probabilities, their lists: what stands in those is small


async def answer(request: Request, schema: type[Schema], prepare: Prepare[Schema], kind: type[Rendering]) -> Response:
    """Raises what `Intake.take` and `collect` do."""
    intake: Intake = request.app.state.intake
    asked = await intake.take(request, schema, prepare)
    size = _check_told(asked)
    answers = Answers(intake.worker, asked, request.receive)
    rendering = kind(
        asked, intake.token_texts[asked.offered.id], entry(request.scope), log_text=intake.settings.log_prompts
    )
    if asked.request.stream:
        return EventStream(answers, rendering)
    collected = await collect(answers)

    def reply() -> Response:
        text = "".join(pieces(rendering.reply(collected), DEEP if size >= LARGE else 0))
        return Response(text.encode(), media_type="application/json")

    return await asyncio.to_thread(reply) if size >= LARGE else reply()


def told(asked: Asked) -> tuple[int, str]:
    """How many tokens with their figures the replies to a request may hold, likeliest ones beside them included.

    Returns:
        that, and the field that asks for most of them.
    """
    request, logprobs = asked.request, asked.sequences[0].settings.logprobs
    distributions = len(asked.offered.writers) + 2  # of each writer, the router, and what is written from
    by_field = {
        "top_logprobs" if isinstance(request, ChatRequest) else "logprobs": 0 if logprobs is None else 1 + logprobs,
        "candidates": (request.candidates or 0) * distributions,
        "provenance": 1 if request.provenance else 0,
    }
    with_prompt = isinstance(request, CompletionRequest) and request.echo
    tokens = sum(each.max_length - (0 if with_prompt else each.prompt_length) for each in asked.sequences)
    return tokens * sum(by_field.values()), max(by_field, key=lambda field: by_field[field])


def pieces(value: Any, depth: int = DEEP) -> Iterator[str]:
    """``value`` as compact JSON, in pieces: a large one written at once would hold the interpreter until it is done."""
    if depth and isinstance(value, dict) and value:
        for at, (key, inner) in enumerate(value.items()):
            yield f"{',' if at else '{'}{json.dumps(key, ensure_ascii=False)}:"
            yield from pieces(inner, depth - 1)
        yield "}"
    elif depth and isinstance(value, list) and value:
        for at, inner in enumerate(value):
            yield "," if at else "["
            yield from pieces(inner, depth - 1)
        yield "]"
    else:
        yield json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _check_told(asked: Asked) -> int:
    """How many tokens are `told`. Raises `ApiError` if those are too many."""
    size, field = told(asked)
    if size > MOST_TOLD:
        raise bad_request(
            f"This asks for figures of up to {size} tokens (all answers' tokens times what is told beside each); this "
            f"server gives at most {MOST_TOLD} to one request: lower {field}, the answers' length or their number",
            field,
            "request_too_large",
        )
    return size
