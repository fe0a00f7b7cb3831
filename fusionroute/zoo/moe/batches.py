"""Lessons as tensors: token ids, what is scored, and the routing that each token is given.

Letters in shapes: B lessons of S tokens, E experts. A row is one token of a batch, as in `fusionroute.models.gates`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fusionroute.models.prompt import CHAT_TEMPLATE, PromptFormat
from fusionroute.zoo.moe.lessons import Lesson
from fusionroute.zoo.moe.roster import READERS, ROLES
from fusionroute.zoo.schooling import UNSCORED


@dataclass(frozen=True)
class Row:
    """A lesson as token ids."""

    prompt: list[int]
    answer: list[int]
    experts: tuple[int, int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Batch:
    """Lessons side by side.

    Attributes:
        ids, labels: ``[B, S]``, padded behind, where a causal model never looks.
        experts: ``[B S, 2]``, the two of each row.
        is_token: bool ``[B S]``, false at padding.
    """

    ids: Tensor
    labels: Tensor
    experts: Tensor
    is_token: Tensor

    def routing(self, first_share: Tensor) -> Tensor:
        """``[B S, E]``: the first of a row's two experts gets that share ``[B S]`` of it, the second the rest."""
        shares = torch.stack([first_share, 1 - first_share], dim=1)
        return torch.zeros(len(self.experts), len(ROLES)).scatter(1, self.experts, shares)


def as_rows(lessons: Sequence[Lesson], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Prompts in the chat template, answers with their end."""
    form = PromptFormat(tokenizer, CHAT_TEMPLATE)
    return [Row(form.encode(each.prompt), form.encode_answer(each.answer), each.experts) for each in lessons]


def batch_of(rows: Sequence[Row], pad_id: int) -> Batch:
    """The last token of a prompt, which foretells the answer's first, belongs to the answer's experts."""
    longest = max(map(len, rows))
    pads = [longest - len(row) for row in rows]
    padded = list(zip(rows, pads, strict=True))
    readers = [
        [READERS] * (len(row.prompt) - 1) + [row.experts] * (len(row.answer) + 1) + [READERS] * pad
        for row, pad in padded
    ]
    return Batch(
        ids=torch.tensor([row.prompt + row.answer + [pad_id] * pad for row, pad in padded]),
        labels=torch.tensor([[UNSCORED] * len(row.prompt) + row.answer + [UNSCORED] * pad for row, pad in padded]),
        experts=torch.tensor(readers).flatten(0, 1),
        is_token=torch.tensor([[True] * len(row) + [False] * pad for row, pad in padded]).flatten(),
    )
