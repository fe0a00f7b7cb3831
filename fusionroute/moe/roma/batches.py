"""Questions to batches: prompt and right answer, and for RoMA what the routing is pulled towards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from fusionroute.errors import DataError
from fusionroute.moe.questions.questions import Encoded

IGNORED = -100
Where = Literal["first", "middle", "last"]


def chosen_tokens(length: int, where: Where = "last", count: int = 1) -> range:
    """Which positions of a prompt of ``length`` tokens are aligned: ``count`` in a row. Raises `DataError` if short."""
    if count > length:
        raise DataError(
            f"a prompt has {length} tokens, and the routing of {count} is to be aligned; lower tokens.count"
        )
    start = {"first": 0, "middle": (length - count) // 2, "last": length - count}[where]
    return range(start, start + count)


def chosen_of_all(encoded: Sequence[Encoded], where: Where, count: int) -> Tensor:
    """`chosen_tokens` of every question, ``[n, count]``. Raises `DataError` naming one that is too short."""
    for number, question in enumerate(encoded, start=1):
        if count > len(question.prompt):
            raise DataError(
                f"question {number} has a prompt of {len(question.prompt)} tokens, and the routing of {count} is to be "
                "aligned; lower tokens.count, or leave such questions out"
            )
    return torch.tensor([list(chosen_tokens(len(each.prompt), where, count)) for each in encoded])


def pad_right(questions: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Prompts with their right answers, all ``[b, S]``.

    Returns:
        ``input_ids``, ``attention_mask``, and ``labels``, where position t holds token t+1 if that is part of the
        answer, else −100.
    """
    ids = [torch.tensor([*each.prompt, *each.answers[each.right]]) for each in questions]
    labels = [torch.full_like(each, IGNORED) for each in ids]
    for question, sequence, wanted in zip(questions, ids, labels, strict=True):
        answer = slice(len(question.prompt), len(sequence))
        wanted[answer.start - 1 : answer.stop - 1] = sequence[answer]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean negative log-likelihood of each question's answer tokens. ``[b, S, V]``, ``[b, S]`` to ``[b]``."""
    is_answer = labels.ne(IGNORED)  # only these are made float32, of which a row is the whole vocabulary
    said = nn.functional.cross_entropy(_precise(logits[is_answer]), labels[is_answer], reduction="none")
    losses = said.new_zeros(labels.shape).masked_scatter(is_answer, said)
    return losses.sum(1) / is_answer.sum(1)


def answer_columns(labels: Tensor) -> Tensor:
    """Positions of ``[b, S]`` at which any answer is predicted, for ``logits_to_keep``.

    They count from the end, −1 being the last, so that a soft prompt in front of the text does not move them.
    """
    return labels.ne(IGNORED).any(0).nonzero().flatten() - labels.shape[1]


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@dataclass(frozen=True)
class Targets:
    """What each question's routing is pulled towards: rows of ``table``, constants, by place and weight.

    Attributes:
        table: ``[m, T, L·E]``, the routing of m questions at T tokens.
        index: ``[n, k]``, the neighbours of each of n questions as rows of ``table``.
        weight: ``[n, k]``, Eq. (6); all 0 for a question without neighbours.
    """

    table: Tensor
    index: Tensor
    weight: Tensor

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Targets ``[b, k, T, L·E]`` and weights ``[b, k]`` of the questions ``rows``."""
        return self.table[self.index[rows]], self.weight[rows]


class Rows(Dataset[int]):
    """Questions by their numbers alone; whoever makes a batch of them knows the rest."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> int:
        return row


class Collator:
    """Numbers of questions to one batch.

    Args:
        encoded: all questions.
        where, count: which tokens of each prompt are aligned; see `chosen_tokens`.

    Raises:
        DataError: a prompt is too short for that.
    """

    def __init__(
        self, encoded: Sequence[Encoded], targets: Targets, *, pad_id: int, where: Where = "last", count: int = 1
    ):
        self.encoded, self.targets, self.pad_id = encoded, targets, pad_id
        self.positions = chosen_of_all(encoded, where, count)

    def __call__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`pad_right`, and ``positions`` ``[b, T]`` of the aligned tokens, `Targets.of`, and ``row`` ``[b]``."""
        numbers = torch.tensor(list(rows))
        targets, weights = self.targets.of(numbers)
        return {
            **pad_right([self.encoded[row] for row in rows], self.pad_id),
            "positions": self.positions[numbers],
            "targets": targets,
            "weights": weights,
            "row": numbers,
        }
