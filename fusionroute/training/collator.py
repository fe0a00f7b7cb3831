"""Scored examples to one padded batch, every number at the position that predicts its token."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fusionroute.ops.agreement import informative
from fusionroute.training.scores import NLL, TOP

IGNORED = -100


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad on the right.

    Args:
        examples: rows of `load_scores`.

    Returns:
        ``input_ids`` and ``attention_mask`` ``[batch, positions]``; ``labels`` ``[batch, positions]``, where position
        t holds token t+1 if that is to be learned, else −100; ``expert_nll`` ``[batch, positions, experts]`` and
        ``informative`` ``[batch, positions]`` beside them, zero and False elsewhere.
    """
    rows = [_row(example) for example in examples]
    padding = {"labels": IGNORED}
    return {
        key: pad_sequence([row[key] for row in rows], batch_first=True, padding_value=padding.get(key, 0))
        for key in rows[0]
    }


def _row(example: dict[str, Any]) -> dict[str, Tensor]:
    ids = torch.tensor(example["input_ids"])
    nll = torch.tensor([values for name, values in example.items() if name.startswith(NLL)]).T
    choices = torch.tensor([values for name, values in example.items() if name.startswith(TOP)]).T
    answer = slice(example["prompt_length"] - 1, len(ids) - 1)
    row = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.full_like(ids, IGNORED),
        "expert_nll": torch.zeros(len(ids), nll.shape[1]),
        "informative": torch.zeros(len(ids), dtype=torch.bool),
    }
    row["labels"][answer] = ids[1:][answer]
    row["expert_nll"][answer] = nll
    row["informative"][answer] = informative(choices)
    return row
