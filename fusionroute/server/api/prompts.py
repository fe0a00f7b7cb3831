"""From a request to token ids, generation settings and sequences. Runs in one thread of its own, never the loop's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jinja2
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from fusionroute.config import GenerationSettings, nearest
from fusionroute.engine.choice import FUSED
from fusionroute.engine.sequence import Sequence
from fusionroute.engine.text import GrowingText
from fusionroute.errors import PromptError, SettingsError
from fusionroute.models.prompt import Prompt
from fusionroute.models.vocabulary import ROUTER
from fusionroute.server.api.errors import (
    ApiError,
    bad_request,
    far_too_long,
    of_exception,
    of_validation,
    too_long,
    unknown_model,
)
from fusionroute.server.api.schemas import (
    GREEDY_BELOW,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    supported,
)
from fusionroute.server.api.security import ClientGone
from fusionroute.server.offer import Offered
from fusionroute.server.prompt_formats import AnyThreadFormat
from fusionroute.server.settings import ServerSettings

COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions
TOKEN = 4  # characters, as one of usual text has
LAST_WORD = 256  # tokens, at most, that the end of a cut text may have more of than it has where the text goes on
Request = TypeVar("Request", bound=GenerationRequest)
IsWanted = Callable[[], bool]


@dataclass(frozen=True)
class Echo:
    """A prompt as it stands before its answer.

    Attributes:
        offsets: the character of ``text`` at which each token begins.
    """

    text: str
    offsets: list[int]


@dataclass(frozen=True)
class Asked:
    """One request, ready for the worker.

    Attributes:
        sequences: ``n`` for each prompt, those of one prompt together; their place is the choice's index.
        n: answers to each prompt.
        echoes: one for each prompt if it is to stand before its answers, else none.
        writes: False if nothing but the prompts is asked for; the one token that the engine then writes is dropped.
        arrived_at: when the request came, in seconds of `time.monotonic`.
    """

    offered: Offered
    request: GenerationRequest
    sequences: list[Sequence]
    n: int
    echoes: list[Echo]
    writes: bool = True
    arrived_at: float | None = None

    @property
    def prompt_tokens(self) -> int:
        return sum(sequence.prompt_length for sequence in self.sequences[:: self.n])

    def echo(self, index: int) -> Echo | None:
        return self.echoes[index // self.n] if self.echoes else None


def parse(body: bytes, schema: type[Request]) -> Request:
    """Raises `ApiError` for whatever is wrong with a body, naming the field."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        for problem in problems:
            if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:  # it may be why another is missing
                unknown = str(problem["loc"][0])
                raise bad_request(nearest(unknown, supported(schema)), unknown, "unknown_parameter") from None
        raise of_validation(error, schema) from None


def for_chat(
    request: ChatRequest, offer: Mapping[str, Offered], settings: ServerSettings, is_wanted: IsWanted = lambda: True
) -> Asked:
    """Raises `ApiError` for what this model or this server cannot do."""
    offered = _offered(request, offer, settings)
    if offered.prompt_format.name is None:
        raise bad_request(f"The model {offered.id!r} reads text as it is; ask it by /v1/completions", "model")
    _check_pair(request, "top_logprobs", "logprobs")
    if None not in (request.max_tokens, request.max_completion_tokens):
        raise bad_request("max_tokens and max_completion_tokens are one option; drop max_tokens", "max_tokens")
    most = _answer_limit(request, settings.max_new_tokens, settings)
    likeliest = (request.top_logprobs or 0) if request.logprobs else None
    generation = _generation_settings(request, most, logprobs=likeliest)
    messages = [_message(message) for message in request.messages]
    ids = _messages_ids(offered, messages, settings)
    sequences = _sequences(offered, ids, messages, request, generation, settings)
    return Asked(offered, request, sequences, request.n or 1, [])


def for_completion(
    request: CompletionRequest,
    offer: Mapping[str, Offered],
    settings: ServerSettings,
    is_wanted: IsWanted = lambda: True,
) -> Asked:
    """Raises `ApiError` for what this model or this server cannot do, `ClientGone` once it is not wanted any more."""
    offered = _offered(request, offer, settings)
    n, echo = request.n or 1, bool(request.echo)
    if request.best_of not in (None, n):
        raise bad_request(f"best_of is not supported beyond n={n}; drop it", "best_of", "unsupported_parameter")
    if request.max_tokens == 0 and not echo:
        raise bad_request("max_tokens is 0, so there is nothing to do without echo; ask for at least 1", "max_tokens")
    if echo and request.logprobs is not None and not offered.scores_prompts:
        raise bad_request(f"The model {offered.id!r} gives no log-probabilities of prompts; drop echo", "echo")
    most = _answer_limit(request, COMPLETION_TOKENS, settings)
    scored = {"prompt_logprobs": request.logprobs} if echo else {}
    generation = _generation_settings(request, max(1, most), logprobs=request.logprobs, **scored)
    sequences: list[Sequence] = []
    echoes: list[Echo] = []
    prompts = _prompts(request)
    _check_count(len(prompts) * n, settings, "prompt")
    for prompt in prompts:
        if not is_wanted():
            raise ClientGone
        ids = _raw_ids(offered, prompt, settings)
        sequences += _sequences(offered, ids, prompt, request, generation, settings)
        echoes += [echo_of(offered.tokenizer, prompt, ids)] if echo else []
    return Asked(offered, request, sequences, n, echoes, writes=request.max_tokens != 0)


def _offered(request: GenerationRequest, offer: Mapping[str, Offered], settings: ServerSettings) -> Offered:
    """The model that is asked, if nothing is wrong with what both ways of asking share."""
    if request.model not in offer:
        raise unknown_model(request.model, list(offer))
    if request.n is not None and request.n > settings.max_n:
        raise bad_request(f"n is {request.n}, but this server gives at most {settings.max_n} answers to a prompt", "n")
    _check_pair(request, "candidates", "provenance")
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options is only allowed when stream is true", "stream_options")
    offered = offer[request.model]
    clash = sorted({ROUTER, FUSED} & set(offered.writers)) if len(offered.writers) > 1 else []
    if request.candidates is not None and clash:
        raise bad_request(f"candidates would have two entries of the name {clash[0]!r}; drop it", "candidates")
    return offered


def _check_pair(request: GenerationRequest, name: str, needed: str) -> None:
    if getattr(request, name) is not None and not getattr(request, needed):
        raise bad_request(f"{name} needs {needed} to be true; set it or drop {name}", name)


def _check_count(answers: int, settings: ServerSettings, param: str) -> None:
    most = settings.max_waiting + settings.max_batch
    if answers > most:
        raise bad_request(f"This asks for {answers} answers at once; this server takes at most {most}", param)


def _answer_limit(request: GenerationRequest, default: int, settings: ServerSettings) -> int:
    field = _length_field(request)
    if field is None:
        return min(default, settings.max_new_tokens)
    asked: int = getattr(request, field)
    if asked > settings.max_new_tokens:
        raise bad_request(
            f"{field} is {asked}, but this server writes at most {settings.max_new_tokens} tokens per answer", field
        )
    return asked


def _length_field(request: GenerationRequest) -> str | None:
    """By which the request says how long an answer may be; None if it does not."""
    fields = ("max_tokens", "max_completion_tokens")
    return next((field for field in fields if getattr(request, field, None) is not None), None)


def _generation_settings(request: GenerationRequest, most: int, **more: Any) -> GenerationSettings:
    """In the library's words. Greedy decoding has nothing to filter, so filters beside temperature 0 say nothing."""
    temperature = 1.0 if request.temperature is None else request.temperature
    drawing: dict[str, Any] = {
        "do_sample": True,
        "temperature": temperature,
        "top_p": request.top_p,
        "top_k": request.top_k if request.top_k is not None and request.top_k > 0 else None,
        "min_p": request.min_p,
    }
    return GenerationSettings.parse(
        {
            **(drawing if temperature >= GREEDY_BELOW else {}),
            "max_new_tokens": most,
            "seed": request.seed,
            "stop": request.stop,
            "presence_penalty": request.presence_penalty or 0,
            "frequency_penalty": request.frequency_penalty or 0,
            "candidates": request.candidates,
            **more,
        }
    )


def _message(message: ChatMessage) -> dict[str, str]:
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return {"role": "system" if message.role == "developer" else message.role, "content": text}


def _messages_ids(offered: Offered, messages: list[dict[str, str]], settings: ServerSettings) -> list[int]:
    form = offered.prompt_format
    assert isinstance(form, AnyThreadFormat), "what is offered may be asked from any thread"
    try:
        if sum(len(message["content"]) for message in messages) > _unread(offered, settings):
            _check_text(offered, form.render(messages), settings, "messages")
        return form.encode(messages)
    except PromptError as error:
        raise bad_request(str(error), "messages") from None
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        why = f": {error}" if isinstance(error, jinja2.TemplateError) else ""
        raise bad_request(f"The model's chat template refuses these messages{why}", "messages") from None


def _prompts(request: CompletionRequest) -> list[str] | list[list[int]]:
    prompt: Any = request.prompt
    is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
    return [prompt] if is_one else prompt


def _raw_ids(offered: Offered, prompt: str | list[int], settings: ServerSettings) -> list[int]:
    """A text's tokens as they are, without a prompt format; token ids are checked."""
    if not offered.takes_token_ids and not isinstance(prompt, str):
        raise bad_request(
            f"Token ids speak to one tokenizer alone, and {offered.id!r} has several; send text or messages", "prompt"
        )
    if not offered.takes_token_ids and offered.prompt_format.name is not None:
        raise bad_request(
            f"Each model of {offered.id!r} puts a prompt in its own format; send it as a message to "
            "/v1/chat/completions",
            "prompt",
        )
    if isinstance(prompt, str):
        _check_text(offered, prompt, settings, "prompt")
    else:
        _check_length(len(prompt), offered, settings, "prompt")
    try:
        if offered.takes_token_ids and isinstance(prompt, str):
            ids = list(offered.tokenizer(prompt).input_ids)
            if not ids:
                raise PromptError("the prompt is empty; give at least one character or token id")
            return ids
        return offered.prompt_format.encode(prompt)
    except PromptError as error:
        raise bad_request(str(error), "prompt") from None


def _sequences(
    offered: Offered,
    ids: list[int],
    prompt: Prompt,
    request: GenerationRequest,
    generation: GenerationSettings,
    settings: ServerSettings,
) -> list[Sequence]:
    """One for each of the ``n`` answers to a prompt; the first draws from the seed itself."""
    n, field, room = request.n or 1, _length_field(request), offered.engine.scheduler.token_limit
    param = "messages" if isinstance(request, ChatRequest) else "prompt"
    _check_length(len(ids), offered, settings, param)
    if field is None:  # what nobody asked for is no reason to refuse
        most = max(1, min(generation.max_new_tokens, room - len(ids)))
        generation = generation.model_copy(update={"max_new_tokens": most})
    try:
        sequences = [offered.engine.sequence(ids, _seeded(generation, i), prompt) for i in range(n)]
    except PromptError as error:
        raise bad_request(str(error), param) from None
    except SettingsError as error:
        raise _of_settings(error, request) from None
    if sequences[0].max_length > room:
        raise bad_request(
            f"Your {param} of {len(ids)} tokens and an answer of up to {sequences[0].max_length - len(ids)} need more "
            f"memory than this server has, which is that of {room} tokens; shorten the {param} or ask for fewer tokens",
            field if field is not None and len(ids) < room else param,
            "request_too_large",
        )
    return sequences


def _check_length(
    tokens: int, offered: Offered, settings: ServerSettings, param: str, refusal: Callable[..., ApiError] = too_long
) -> None:
    """Raises the ``refusal`` if a prompt of so many tokens does not fit."""
    if tokens >= offered.context_length:
        raise refusal(tokens, offered.context_length, param)
    if settings.max_prompt_tokens is not None and tokens > settings.max_prompt_tokens:
        raise refusal(tokens, settings.max_prompt_tokens, param, of="prompt")


def _check_text(offered: Offered, text: str, settings: ServerSettings, param: str) -> None:
    """Refuse a text that is far too long without tokenising all of it, which can take minutes.

    Its beginning says enough: but for the last word that was cut, a longer text has no fewer tokens. How many
    characters a token may have is not asked: runs of spaces or of unknown characters may be one, however long.
    """
    size = _unread(offered, settings)
    while size < len(text):
        tokens = len(offered.tokenizer(text[:size], add_special_tokens=False).input_ids)
        _check_length(tokens - LAST_WORD, offered, settings, param, far_too_long)
        size *= 2


def _unread(offered: Offered, settings: ServerSettings) -> int:
    """Characters of a text that is read at once, since it may well fit."""
    most = min(offered.context_length, settings.max_prompt_tokens or offered.context_length)
    return TOKEN * (most + LAST_WORD)


def _seeded(generation: GenerationSettings, index: int) -> GenerationSettings:
    if generation.seed is None or index == 0:
        return generation
    return generation.model_copy(update={"seed": generation.seed + index})


def _of_settings(error: SettingsError, request: GenerationRequest) -> ApiError:
    """A method's refusal of an option, under the name that the option has here."""
    named = next((name for name in type(request).model_fields if f"{name}=" in str(error)), None)
    refusal = of_exception(error)
    refusal.param = named
    return refusal


def echo_of(tokenizer: PreTrainedTokenizerBase, prompt: str | list[int], ids: list[int]) -> Echo:
    """A text as it was sent, token ids as all that they spell, control tokens included."""
    if isinstance(prompt, str) and tokenizer.is_fast:
        return Echo(prompt, _offsets(prompt, tokenizer(prompt, return_offsets_mapping=True).offset_mapping))
    growing, offsets = _Spelled(tokenizer), list[int]()
    for id in ids:
        offsets.append(len(growing.text))
        growing.push(id)
    growing.finish()
    if not isinstance(prompt, str):
        return Echo(growing.text, offsets)
    before = max(0, growing.text.find(prompt))  # what the tokenizer puts in front is not of the text
    return Echo(prompt, [min(max(0, offset - before), len(prompt)) for offset in offsets])


def _offsets(text: str, spans: list[tuple[int, int]]) -> list[int]:
    """Where each token begins, if all of ``text`` is to belong to some token.

    A span may leave out what its token was read from: spaces before it, and marks behind it that were composed with it.
    """
    offsets, reached = list[int](), 0
    for begin, end in spans:
        is_added = begin == end  # by the tokenizer itself, wherever it stands
        is_behind_marks = not is_added and text[reached:begin].strip()
        offsets.append(begin if is_behind_marks else reached if is_added else min(begin, reached))
        reached = max(reached, end)
    return offsets


class _Spelled(GrowingText):
    """With control tokens as they are spelled, which an answer does not show."""

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
