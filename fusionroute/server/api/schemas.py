"""What a request may say: OpenAI's fields and ours. Whatever else comes is refused by name, never ignored.

A field of OpenAI's that this server cannot follow is known here with the values that ask for nothing, since clients
send them unasked; any other value is an error. Such a field is `Unsupported`, and no message offers it. ``null`` always
means "not said".
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

MOST_LIKELY = 20  # tokens beside each written one
GREEDY_BELOW = 1e-6  # such a temperature leaves the likeliest token alone, and dividing by less overflows

StopString = Annotated[str, Field(min_length=1, max_length=1024)]
TokenIds = Annotated[list[int], Field(min_length=1, fail_fast=True)]
Nothing = Annotated[list[Any], Field(max_length=0)]
T = TypeVar("T")
_MARK = "unsupported"
Unsupported = Annotated[T | None, _MARK]  # of T's values all ask for nothing


class Strict(BaseModel):
    """A JSON object whose fields are all known, and of the very type that is named."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Neutral(Strict):
    """An object that says nothing."""


class StreamOptions(Strict):
    include_usage: bool | None = Field(None, description="A last chunk without choices gives the usage.")
    include_obfuscation: Unsupported[Literal[False]] = None


class TextFormat(Strict):
    type: Literal["text"]


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"] = Field(description="developer is system's newer name")
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    # what an answer of OpenAI's holds beside its text and clients send back
    refusal: Unsupported[Literal[""]] = None
    annotations: Unsupported[Nothing] = None
    audio: Unsupported[None] = None
    function_call: Unsupported[None] = None
    tool_calls: Unsupported[Nothing] = None
    name: Unsupported[None] = None


class GenerationRequest(Strict):
    """What both ways of asking share."""

    model: str = Field(max_length=256, description="One of GET /v1/models.")
    stream: bool | None = Field(None, description="Server-sent events, ended by [DONE].")
    stream_options: StreamOptions | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16, fail_fast=True)] | None = Field(
        None, description="Texts before which an answer ends."
    )
    n: int | None = Field(None, ge=1, description="Answers to each prompt.")
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="The same draws again; the answer of index i draws from seed + i."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="1 if not said; 0 takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="Only the k likeliest; 0 and -1 are off.")
    min_p: float | None = Field(None, ge=0, le=1, description="Only those with this share of the likeliest's.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    user: str | None = Field(None, max_length=512, description="Stands in the server's log.")
    provenance: bool | None = Field(None, description="Who wrote each token, with which weights.")
    candidates: int | None = Field(
        None, ge=0, le=MOST_LIKELY, description="With provenance: the likeliest tokens of each distribution."
    )
    logit_bias: Unsupported[Neutral] = None
    store: Unsupported[Literal[False]] = None
    metadata: Unsupported[Neutral] = None
    service_tier: Unsupported[Literal["auto", "default"]] = None
    prompt_cache_key: Unsupported[None] = None
    safety_identifier: Unsupported[None] = None


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="max_tokens' newer name.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LIKELY, description="With logprobs.")
    response_format: Unsupported[TextFormat] = None
    modalities: Unsupported[Annotated[list[Literal["text"]], Field(max_length=1)]] = None
    tools: Unsupported[Nothing] = None
    tool_choice: Unsupported[Literal["none", "auto"]] = None
    parallel_tool_calls: Unsupported[bool] = None  # means nothing without tools
    functions: Unsupported[Nothing] = None
    function_call: Unsupported[Literal["none", "auto"]] = None
    audio: Unsupported[None] = None
    prediction: Unsupported[None] = None
    reasoning_effort: Unsupported[Literal["none"]] = None
    verbosity: Unsupported[Literal["medium"]] = None
    web_search_options: Unsupported[None] = None
    prompt_cache_retention: Unsupported[None] = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions"""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
    ) = Field(description="A text, token ids, or a list of either.")
    max_tokens: int | None = Field(None, ge=0, description="16 if not said; 0 with echo alone.")
    echo: bool | None = Field(None, description="The prompt before its answer, with its log-probabilities if asked.")
    logprobs: int | None = Field(None, ge=0, le=MOST_LIKELY)
    best_of: int | None = Field(None, ge=1, description="Equal to n.")
    suffix: Unsupported[Literal[""]] = None


def supported(schema: type[BaseModel]) -> list[str]:
    """The fields by which something can be asked for."""
    return [name for name, field in schema.model_fields.items() if _MARK not in field.metadata]


UNSUPPORTED = frozenset(  # fields of which nothing but the neutral value is understood
    name
    for schema in (ChatRequest, CompletionRequest, ChatMessage, StreamOptions)
    for name in schema.model_fields.keys() - set(supported(schema))
)
