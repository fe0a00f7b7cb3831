"""The questions that a settings file names, as text and as token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from fusionroute.models.prompt import PromptFormat
from fusionroute.models.team import context_length
from fusionroute.moe.questions.leakage import overlap, refuse_overlap
from fusionroute.moe.questions.questions import Encoded, Question, encode_questions, fitting, read_questions
from fusionroute.moe.roma.settings import QuestionSettings, SourceSettings


def read_sources(sources: Sequence[SourceSettings], limit: int | None = None) -> list[Question]:
    """The questions of all sources, one after another; the first ``limit`` of them. Raises `DataError`."""
    questions: list[Question] = []
    for source in sources:
        if limit is not None and len(questions) >= limit:
            break
        read = read_questions(source.source, source.limit)
        questions += [replace(each, task=source.task) for each in read] if source.task else read
    return questions[:limit]


def encode_sources(
    sources: Sequence[SourceSettings],
    prompt_format: PromptFormat,
    model: Any,
    max_length: int | None = None,
    limit: int | None = None,
) -> tuple[list[Question], list[Encoded]]:
    """Questions that fit into the model, and their token ids; those that are too long are left out.

    Raises:
        DataError: a source is missing or malformed, or nothing fits.
    """
    longest = min(context_length(model), max_length or context_length(model))
    questions = fitting(read_sources(sources, limit), prompt_format, longest)
    return questions, encode_questions(questions, prompt_format)


def judging_sets(data: QuestionSettings) -> dict[str, list[Question]]:
    """Questions that must not be learned, by the name of their option. Raises `DataError`."""
    return {"data.dev": read_sources(data.dev), "data.evaluation": read_sources(data.evaluation)}


def refuse_same_texts(train: Sequence[Question], sets: Mapping[str, Sequence[Question]]) -> None:
    """Raise `DataError` where texts alone tell that questions stand in two sets; no model is needed for that."""
    for name, questions in sets.items():
        refuse_overlap(overlap(train, questions), train, name)
    refuse_overlap(overlap(sets["data.dev"], sets["data.evaluation"]), sets["data.dev"], "data.evaluation")


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills up a batch; no model sees it."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
