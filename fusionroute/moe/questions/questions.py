"""What an MoE model is asked: a question with its right answer, as text and as token ids. Knows nothing of routing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fusionroute.errors import DataError, PromptError
from fusionroute.models.prompt import Prompt, PromptFormat, as_text
from fusionroute.rows import Row, Source, name_of, read_file, read_messages

FIELDS = (
    "'prompt' (a string or a list of messages) and 'answer' or 'completion' (a string), "
    "or 'messages' whose last one is the assistant's; 'options' (a list of strings) and 'task' if there are any"
)


@dataclass(frozen=True)
class Question:
    """One thing to ask, and what is right.

    With ``options`` a model answers by its likeliest option, without them by what it writes.

    Raises:
        DataError: the answer is empty or none of the options, or options are empty, repeated, or fewer than two.
    """

    prompt: Prompt
    answer: str
    options: tuple[str, ...] = ()
    task: str = ""

    def __post_init__(self) -> None:
        if not self.answer.strip():
            raise DataError("the answer is empty; give the right one")
        if not self.options:
            return
        if len(set(self.options)) < max(2, len(self.options)) or not all(option.strip() for option in self.options):
            raise DataError(f"options are two or more different texts; got {list(self.options)}")
        if self.answer not in self.options:
            raise DataError(
                f"the answer {self.answer!r} is none of the options {list(self.options)}; write it as there"
            )

    @property
    def text(self) -> str:
        """The prompt in plain words, as embedders and the leakage check read it."""
        return as_text(self.prompt)

    def as_row(self) -> dict[str, Any]:
        """What `read_questions` reads back."""
        row: dict[str, Any] = {"prompt": self.prompt, "answer": self.answer}
        return (
            row | ({"options": list(self.options)} if self.options else {}) | ({"task": self.task} if self.task else {})
        )


@dataclass(frozen=True)
class Encoded:
    """A question as token ids.

    Attributes:
        prompt: ready for the first answer token.
        answers: the options in their order, or the one free answer; each with the end-of-sequence token.
        right: place of the right one in ``answers``.
    """

    prompt: list[int]
    answers: tuple[list[int], ...]
    right: int

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest answer."""
        return len(self.prompt) + max(map(len, self.answers))


def read_questions(source: Source, limit: int | None = None) -> list[Question]:
    """Questions of a ``.jsonl`` or ``.parquet`` file, or of live rows; the first ``limit`` of them.

    A row has ``prompt`` (text or messages) and ``answer`` (or ``completion``), or ``messages`` of which the last is the
    assistant's answer; ``options`` if it is multiple choice; ``task`` if results are to be told apart by it.

    Raises:
        DataError: no such file, no rows, or a row of another form, which is named.
    """
    name = name_of(source)
    questions = []
    for number, row in enumerate(islice(_rows(source), limit), start=1):
        try:
            questions.append(_question(row))
        except DataError as error:
            raise DataError(f"{name}, row {number}: {error}") from error
    if not questions:
        raise DataError(f"{name} holds no questions; give at least one")
    return questions


def encode_questions(
    questions: Sequence[Question], prompt_format: PromptFormat, max_length: int | None = None
) -> list[Encoded]:
    """Token ids of every question, in order.

    Nothing is cut, for half an answer would be another one.

    Args:
        max_length: tokens that a prompt may have with its longest answer, such as the model's context; see `fitting`.

    Raises:
        DataError: a question is too long or cannot be rendered (its number is named, from 1), or the tokenizer has no
            end-of-sequence token.
    """
    encoded = [_encode(question, prompt_format, number) for number, question in enumerate(questions, start=1)]
    too_long = [at for at, each in enumerate(encoded) if max_length is not None and each.longest > max_length]
    if too_long:
        raise DataError(
            f"{len(too_long):,} of {len(encoded):,} questions do not fit into {max_length:,} tokens with their longest "
            f"answer (the first is number {too_long[0] + 1}, with {encoded[too_long[0]].longest:,}); "
            "leave them out, or allow more tokens"
        )
    return encoded


def fitting(questions: Sequence[Question], prompt_format: PromptFormat, max_length: int) -> list[Question]:
    """Those that `encode_questions` takes at ``max_length``. Raises `DataError` if nothing is left."""
    kept = [
        question
        for number, question in enumerate(questions, start=1)
        if _encode(question, prompt_format, number).longest <= max_length
    ]
    if not kept:
        raise DataError(f"none of the {len(questions):,} questions fits into {max_length:,} tokens; allow more")
    return kept


def _encode(question: Question, prompt_format: PromptFormat, number: int) -> Encoded:
    if prompt_format.tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-sequence token, with which every answer ends; set one")
    try:
        prompt = prompt_format.encode(question.prompt)
    except PromptError as error:
        raise DataError(f"question {number}: {error}") from error
    options = question.options or (question.answer,)
    answers = tuple(prompt_format.encode_answer(option) for option in options)
    return Encoded(prompt, answers, options.index(question.answer))


def _rows(source: Source) -> Iterator[Any]:
    if isinstance(source, (str, Path)):
        return _read_file(Path(source).expanduser())
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise DataError(f"questions are a file or a list of rows; got {type(source).__name__}")
    return iter(source)


def _read_file(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise DataError(f"no file of questions at {path}; give one that ends in .jsonl, .json or .parquet")
    return read_file(path)


def _question(row: Any) -> Question:
    if not isinstance(row, Mapping):
        raise DataError(f"a question is a mapping with {FIELDS}; got {type(row).__name__}")
    fields = {name: value for name, value in row.items() if value is not None}  # parquet fills absent ones with None
    prompt, answer = _prompt_and_answer(fields)
    return Question(prompt, answer, _options(fields.get("options", ())), _text(fields.get("task", ""), "task"))


def _prompt_and_answer(fields: Row) -> tuple[Prompt, str]:
    answer = fields.get("answer", fields.get("completion"))
    if "prompt" in fields and answer is not None:
        prompt = fields["prompt"] if isinstance(fields["prompt"], str) else _messages(fields["prompt"], "prompt")
        return prompt, _text(answer, "the answer")
    if "messages" in fields:
        messages = _messages(fields["messages"], "messages")
        if answer is not None:
            return messages, _text(answer, "the answer")
        if len(messages) > 1 and messages[-1]["role"] == "assistant":
            return messages[:-1], messages[-1]["content"]
    raise DataError(f"it has the fields {', '.join(map(repr, fields)) or '(none)'}; allowed are {FIELDS}")


def _options(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise DataError(f"options must be a list of texts; got {value!r}")
    return tuple(_text(option, "an option") for option in value)


def _messages(value: Any, field: str) -> list[dict[str, str]]:
    messages = read_messages(value, field)
    if not messages:
        raise DataError(f"{field} must be a list of messages; got []")
    return messages


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{what} must be text; got {value!r}")
    return value
