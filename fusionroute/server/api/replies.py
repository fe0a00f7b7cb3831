"""The shapes of OpenAI's replies, and of what we add to them. As types they also describe the API in /openapi.json."""

import time
import uuid
from collections.abc import Iterable
from typing import Literal, NotRequired, cast

from typing_extensions import TypedDict

from fusionroute.engine.sequence import ENSEMBLED, PromptLogprob, TraceRecord
from fusionroute.server.api.token_text import TokenText
from fusionroute.server.offer import Offered

IMPOSSIBLE = -9999.0  # what OpenAI writes for a log-probability of minus infinity, which JSON cannot hold
FinishReason = Literal["stop", "length"]


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Candidate(TypedDict):
    token: str
    token_id: int
    logprob: float


class Provenance(TypedDict):
    """Who wrote one token: `TraceRecord`, with names."""

    token: str
    token_id: int
    text: str
    expert: str
    weights: dict[str, float]
    decided_by: Literal["both", "expert", "router", "neither"]
    verdict: NotRequired[str]
    ensembled: NotRequired[bool]
    support: NotRequired[dict[str, float]]
    candidates: NotRequired[dict[str, list[Candidate]]]


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class ChatAnswer(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatDelta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChatChoice(TypedDict):
    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    provenance: NotRequired[list[Provenance]]


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    provenance: NotRequired[list[Provenance]]


class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    provenance: NotRequired[list[Provenance]]


class ChatReply(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatChunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]


class TextReply(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: NotRequired[Usage | None]


class AboutModel(TypedDict):
    description: str
    writers: list[str]
    weighted: list[str]
    context_length: int
    scores_prompts: bool
    candidates: bool
    penalties: bool
    chat: bool


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["fusionroute"]
    fusionroute: AboutModel


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


class Error(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(TypedDict):
    error: Error


class Health(TypedDict):
    status: Literal["ok"]


class Version(TypedDict):
    version: str


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def now() -> int:
    return int(time.time())


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def model(offered: Offered, created: int) -> Model:
    return {
        "id": offered.id,
        "object": "model",
        "created": created,
        "owned_by": "fusionroute",
        "fusionroute": {
            "description": offered.description,
            "writers": list(offered.writers),
            "weighted": list(offered.weighted),
            "context_length": offered.context_length,
            "scores_prompts": offered.scores_prompts,
            "candidates": offered.draws_from_one,
            "penalties": offered.draws_from_one,
            "chat": offered.prompt_format.name is not None,
        },
    }


def chat_logprobs(records: Iterable[TraceRecord], token_text: TokenText) -> ChatLogprobs:
    content: list[TokenLogprob] = [
        {
            **_top(record.token_id, record.logprob, token_text),
            "top_logprobs": [_top(id, logprob, token_text) for id, logprob in record.top_logprobs],
        }
        for record in records
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: list[PromptLogprob], offsets: list[int], token_text: TokenText) -> TextLogprobs:
    """Of tokens with their log-probability (None where nothing stands before) and what was likeliest in their place."""
    return {
        "tokens": [token_text.text(id) for id, _, _ in tokens],
        "token_logprobs": [None if logprob is None else finite(logprob) for _, logprob, _ in tokens],
        "top_logprobs": [
            None if logprob is None else _by_text([*likeliest, (id, logprob)], token_text)
            for id, logprob, likeliest in tokens
        ],
        "text_offset": offsets,
    }


def provenance(
    record: TraceRecord, text: str, offered: Offered, token_text: TokenText, *, candidates: bool
) -> Provenance:
    """Args: ``text``: what the token made ready to be shown."""
    told: Provenance = {
        "token": token_text.text(record.token_id),
        "token_id": record.token_id,
        "text": text,
        "expert": record.expert,
        "weights": dict(zip(offered.weighted, record.weights, strict=False)),
        "decided_by": record.decided_by,  # type: ignore[typeddict-item]
    }
    if record.verdict:
        told["verdict"], told["ensembled"] = record.verdict, record.verdict in ENSEMBLED
    if record.support:
        told["support"] = dict(zip(offered.writers, record.support, strict=False))
    if candidates:
        told["candidates"] = {
            name: [
                {"token": token_text.text(id), "token_id": id, "logprob": finite(logprob)} for id, logprob in likeliest
            ]
            for name, likeliest in record.candidates
        }
    return told


def ended(finish_reason: str | None) -> FinishReason:
    """Of an answer that has; errors and cancelled ones never get here."""
    assert finish_reason in ("stop", "length"), finish_reason
    return cast(FinishReason, finish_reason)


def finite(logprob: float) -> float:
    return max(logprob, IMPOSSIBLE)


def _top(id: int, logprob: float | None, token_text: TokenText) -> TopLogprob:
    assert logprob is not None, "they were asked for"
    return {"token": token_text.text(id), "logprob": finite(logprob), "bytes": list(token_text.bytes_of(id))}


def _by_text(likeliest: Iterable[tuple[int, float]], token_text: TokenText) -> dict[str, float]:
    """By each token's text; of two that are written alike the likelier, which stands first."""
    found: dict[str, float] = {}
    for id, logprob in likeliest:
        found.setdefault(token_text.text(id), finite(logprob))
    return found
