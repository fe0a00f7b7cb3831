"""Preference pairs as token ids: the chosen and the rejected answer to one prompt, each a sequence of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from fusionroute.errors import DataError
from fusionroute.models.prompt import Prompt, PromptFormat
from fusionroute.rows import Row, Source, read_messages
from fusionroute.training.data.examples import DataReport, counted, encode_rows, refuse_empty
from fusionroute.training.data.rows import present, read_answer, read_text_or_messages, unknown_fields

PAIR_FIELDS = (
    "'prompt', 'chosen' and 'rejected' (strings or lists of messages), or 'chosen' and 'rejected' as whole "
    "conversations that differ in their last message"
)


@dataclass(frozen=True)
class PairDataReport(DataReport):
    """What became of the pairs that were read; ``cut`` counts answers, ``answer_tokens`` both sides."""

    identical: int = 0

    @property
    def dropped(self) -> int:
        return super().dropped + self.identical

    def __str__(self) -> str:
        parts = [f"{self.kept:,} preference pairs with {self.answer_tokens:,} answer tokens", *self._losses()]
        if self.identical:
            parts.append(f"{self.identical:,} dropped because both answers are the same")
        return "; ".join(parts)


def prepare_pairs(
    source: Source,
    prompt_format: PromptFormat,
    max_length: int,
    *,
    limit: int | None = None,
    draw_seed: int | None = None,
    exclude: Source | None = None,
) -> tuple[Dataset, PairDataReport]:
    """Tokenise preference pairs with the team's one prompt format, in a form that is scored like other examples.

    Args:
        source: as for `prepare`; each row has ``prompt``, ``chosen`` and ``rejected``, or ``chosen`` and ``rejected``
            are conversations that share all messages but the last. Of the latter a ``prompt`` that is text is not read.
        max_length: longer answers lose their end; pairs whose prompt leaves no room, and pairs that are the same after
            the cut, are dropped.
        limit: only so many rows: the first ones, or with ``draw_seed`` a random draw.
        exclude: rows with prompts that must not be learned; see `prepare`.

    Returns:
        two sequences for each pair that is kept, the chosen one in row 2k and the rejected one in row 2k + 1, with the
        columns of `prepare`.

    Raises:
        DataError: no file, no rows, a row of another form or conversations that part earlier (the row is named), or
            nothing left after dropping.
    """
    examples, counts = encode_rows(
        source, read_pair, prompt_format, max_length, limit=limit, draw_seed=draw_seed, exclude=exclude
    )
    report = PairDataReport(
        kept=len(examples) // 2, identical=counts["identical"], **counted(examples, counts, max_length, exclude)
    )
    refuse_empty(source, report)
    return examples.dataset(), report


def read_pair(row: Row) -> tuple[Prompt, str, str]:
    """Prompt, chosen and rejected answer of one row. Raises `DataError` if it has neither of the allowed forms."""
    fields = present(row, PAIR_FIELDS)
    if not {"chosen", "rejected"} <= fields.keys():
        raise unknown_fields(fields, PAIR_FIELDS)
    if _is_conversation(fields["chosen"]) or _is_conversation(fields["rejected"]):
        return _read_conversations(fields)
    if "prompt" not in fields:
        raise unknown_fields(fields, PAIR_FIELDS)
    prompt = read_text_or_messages(fields["prompt"], "prompt")
    return prompt, read_answer(fields["chosen"], "chosen"), read_answer(fields["rejected"], "rejected")


def _is_conversation(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 1


def _read_conversations(fields: Row) -> tuple[Prompt, str, str]:
    """The prompt is what both share; a ``prompt`` of messages besides must say the same."""
    chosen, rejected = read_messages(fields["chosen"], "chosen"), read_messages(fields["rejected"], "rejected")
    shared, prompt = chosen[:-1], fields.get("prompt", "")
    if _said(shared) != _said(rejected[:-1]):
        raise DataError("chosen and rejected differ before their last message, where they must be the same")
    if not isinstance(prompt, str) and _said(read_messages(prompt, "prompt")) != _said(shared):
        raise DataError("prompt is not what chosen and rejected share; leave it out, or give the answers alone")
    return shared, read_answer(chosen[-1:], "chosen"), read_answer(rejected[-1:], "rejected")


def _said(messages: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]
