"""The prompts that preference pairs are made of, with reference answers where there are any."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fusionroute.errors import DataError, PromptError, SettingsError
from fusionroute.models.prompt import Prompt, PromptFormat
from fusionroute.rows import Row
from fusionroute.training.data.rows import PROMPT_FIELDS, present, read_example, read_prompt, read_rows
from fusionroute.training.settings import PairSettings


@dataclass(frozen=True)
class Question:
    """One row that was read: its number in the source (from 1), what is asked, and the answer it brings, if any."""

    number: int
    row: Row  # has a prompt in any case; what judges get
    ids: list[int]
    reference: str = ""


def read_questions(settings: PairSettings, prompt_format: PromptFormat) -> Iterator[Question]:
    """The prompts that the settings name, one at a time. Raises `DataError`, naming the row."""
    for number, row in enumerate(islice(read_rows(settings.prompts), settings.limit), start=1):
        try:
            prompt, reference = _read(row)
            question = Question(number, {**row, "prompt": prompt}, prompt_format.encode(prompt), reference)
        except (DataError, PromptError) as error:
            raise DataError(f"{settings.prompts}, row {number}: {error}") from error
        yield question


def _read(row: Row) -> tuple[Prompt, str]:
    """Prompt and reference answer, which is empty if there is none."""
    fields = present(row, PROMPT_FIELDS)
    if {"prompt", "completion"} <= fields.keys() or _is_answered(fields.get("messages")):
        return read_example(row)
    return read_prompt(row), ""


def _is_answered(messages: Any) -> bool:
    last = messages[-1] if isinstance(messages, Sequence) and messages else None
    return isinstance(last, Mapping) and last.get("role") == "assistant"


def survey(settings: PairSettings, prompt_format: PromptFormat) -> dict[str, Any]:
    """How many prompts, and a hash over all that their rows say. Every row is read before the first is answered."""
    digest, count, has_references = hashlib.sha256(), 0, False
    for question in read_questions(settings, prompt_format):
        digest.update(json.dumps(question.row, sort_keys=True, default=str).encode())
        count += 1
        has_references = has_references or bool(question.reference.strip())
    if not count:
        raise DataError(f"{settings.prompts} holds no rows; give at least one with {PROMPT_FIELDS}")
    if not (settings.samples or has_references):
        raise SettingsError(
            f"samples is 0 and {settings.prompts} has no reference answers ('completion'), so there is nothing to "
            "prefer; draw samples or add references"
        )
    return {"count": count, "hash": digest.hexdigest()}
