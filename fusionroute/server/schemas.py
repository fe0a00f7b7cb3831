"""What a request may say: OpenAI's fields and ours. Whatever else comes is refused by name, never ignored.

A field of OpenAI's that this server cannot follow is known here with the values that ask for nothing, since clients
send them unasked; any other value is an error. ``null`` always means "not said".
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_LIKELY = 20  # tokens beside each written one
GREEDY_BELOW = 1e-6  # such a temperature leaves the likeliest token alone, and dividing by less overflows

StopString = Annotated[str, Field(min_length=1, max_length=1024)]
TokenIds = Annotated[list[int], Field(min_length=1, fail_fast=True)]
Nothing = Annotated[list[Any], Field(max_length=0)]


class Strict(BaseModel):
    """A JSON object whose fields are all known, and of the very type that is named."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Neutral(Strict):
    """An object that says nothing."""


class StreamOptions(Strict):
    include_usage: bool | None = Field(None, description="A last chunk without choices gives the usage.")
    include_obfuscation: Literal[False] | None = None


class TextFormat(Strict):
    type: Literal["text"]


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"] = Field(description="developer is system's newer name")
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    # what an answer of OpenAI's holds beside its text and clients send back
    refusal: Literal[""] | None = None
    annotations: Nothing | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None
    name: None = None


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
    logit_bias: Neutral | None = None
    store: Literal[False] | None = None
    metadata: Neutral | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: None = None
    safety_identifier: None = None


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="max_tokens' newer name.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LIKELY, description="With logprobs.")
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = Field(None, description="Means nothing without tools.")
    functions: Nothing | None = None
    function_call: Literal["none", "auto"] | None = None
    audio: None = None
    prediction: None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None
    prompt_cache_retention: None = None


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
    suffix: Literal[""] | None = None


UNSUPPORTED = {  # fields of which nothing but the neutral value is understood
    *("logit_bias", "store", "metadata", "service_tier", "prompt_cache_key", "safety_identifier", "response_format"),
    *("modalities", "tools", "tool_choice", "functions", "function_call", "audio", "prediction", "reasoning_effort"),
    *("verbosity", "web_search_options", "prompt_cache_retention", "suffix", "include_obfuscation"),
    *("refusal", "annotations", "tool_calls", "name"),
}
