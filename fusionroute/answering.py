"""What a team and an ensemble have in common: prompts in, completions or a stream of tokens out."""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass

from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.sequence import Completion, Sequence, TraceRecord
from fusionroute.engine.text import GrowingText
from fusionroute.errors import ModelOutputError, PromptError, SettingsError
from fusionroute.models.prompt import Prompt, PromptFormat


@dataclass(frozen=True)
class StreamedToken:
    """One token of a stream. ``text`` is what can be shown now: joined, the texts are the completion's text."""

    text: str
    token_id: int
    expert: str
    weights: tuple[float, ...]
    decided_by: str
    finish_reason: str | None
    verdict: str = ""
    support: tuple[float, ...] = ()


class TextByToken:
    """Cuts the text of an answer in the making by token, as far as later tokens cannot change it."""

    def __init__(self, sequence: Sequence):
        assert sequence.tokenizer is not None, "without a tokenizer there is no text"
        self.sequence = sequence
        self._growing = GrowingText(sequence.tokenizer)
        self._unread: list[int] = []  # tokens that `_growing` has not decoded: where one comes at a time, all of them
        self._seen, self._shown = 0, 0

    def new(self) -> list[tuple[TraceRecord, str]]:
        """The tokens since the last call, each with the text that it makes ready to be shown."""
        text, records = self.sequence.settled_text, self.sequence.trace[self._seen :]
        self._seen += len(records)
        return [(record, self._grow(record, text, is_newest=record is records[-1])) for record in records]

    def rest(self) -> str:
        """What became ready without another token, as it does when an answer is cancelled."""
        text = self.sequence.settled_text[self._shown :]
        self._shown += len(text)
        return text

    def _grow(self, record: TraceRecord, text: str, *, is_newest: bool) -> str:
        self._unread.append(record.token_id)
        begin, end = self._shown, len(text)
        if not is_newest:
            for token_id in self._unread:
                self._growing.push(token_id)
            self._unread.clear()
            end = min(len(self._growing.text), end)
        self._shown = max(begin, end)
        return text[begin : self._shown]


def check_batch(max_batch: int) -> None:
    if max_batch < 1:
        raise SettingsError(f"max_batch must be at least 1; got {max_batch}")


def check_prompts(prompts: ListLike[Prompt]) -> None:
    """Insist on a list of prompts. Raises `PromptError` for anything else, one prompt among it."""
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, ListLike):
        raise PromptError(f"prompts is a list of prompts; got {type(prompts).__name__}: write [prompt]")
    if (prompts and isinstance(prompts[0], int)) or (prompts and isinstance(prompts[0], dict)):
        raise PromptError("prompts is a list of prompts; got one prompt: write [prompt]")


def check_text(prompt: Prompt, place: str = "the prompt") -> None:
    """Insist on text that UTF-8 can hold. Raises `PromptError`, opened by ``place``, for half a character."""
    messages = [prompt] if isinstance(prompt, str) else prompt if isinstance(prompt, ListLike) else ()
    for message in messages:
        for text in message.values() if isinstance(message, Mapping) else [message]:
            try:
                str(text).encode()
            except UnicodeEncodeError as error:
                raise PromptError(
                    f"{place} is no valid text: {error.object[error.start]!r} at character {error.start + 1} is half a "
                    "character or a byte that was not UTF-8; cut or read it as UTF-8"
                ) from None


def complete(
    make_engine: Callable[[], Engine],
    prompt_format: PromptFormat,
    prompts: ListLike[Prompt],
    settings: GenerationSettings,
    on_finish: Callable[[Sequence], None] | None,
) -> list[Completion]:
    """Complete ``prompts``, in their order. All of them are read before an engine is made."""
    for at, prompt in enumerate(prompts, 1):
        check_text(prompt, f"prompt {at}" if len(prompts) > 1 else "the prompt")
    ids = [prompt_format.encode(prompt) for prompt in prompts]
    return make_engine().generate(ids, settings, on_finish, prompts)


def stream(
    engine: Engine, prompt_format: PromptFormat, prompt: Prompt, settings: GenerationSettings
) -> Iterator[StreamedToken]:
    """Complete one prompt token by token.

    Bad input is refused here, before the first token is asked for. A model that fails midway raises
    `ModelOutputError`.
    """
    check_text(prompt)
    ids = prompt_format.encode(prompt)
    engine.sequence(ids, settings, prompt)
    return _tokens(engine.stream(ids, settings, prompt))


def _tokens(rounds: Iterator[Sequence]) -> Iterator[StreamedToken]:
    cut: TextByToken | None = None
    for sequence in rounds:
        cut = cut or TextByToken(sequence)
        written = cut.new()
        for record, text in written:
            yield StreamedToken(
                text=text,
                token_id=record.token_id,
                expert=record.expert,
                weights=record.weights,
                decided_by=record.decided_by,
                finish_reason=sequence.finish_reason if record is written[-1][0] else None,
                verdict=record.verdict,
                support=record.support,
            )
        if sequence.error is not None:
            raise ModelOutputError(sequence.error)
