"""Scored examples and pairs to one padded batch, every number at the position that predicts its token."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fusionroute.models.vocabulary import ROUTER
from fusionroute.ops.agreement import informative
from fusionroute.training.scoring.scores import NLL, TOP

IGNORED = -100
NO_PAIR = -1

Row = dict[str, Any]  # one sequence, as `load_scores` returns it
Item = Row | tuple[Row, Row]  # an example to learn from, or a pair: the chosen sequence, then the rejected one


class Collator:
    """Pads on the right.

    Args:
        experts: names, in the order of the route head. None at all stand for one that knows everything (its loss is
            zero everywhere), so that neither loss has anything to say about experts: the fine-tuned baseline.
    """

    def __init__(self, experts: Sequence[str]):
        self.experts = tuple(experts)

    def __call__(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Sequences in the order of the items, a pair's two beside each other.

        Returns:
            ``input_ids`` and ``attention_mask`` ``[sequences, positions]``; ``labels`` beside them, where position t
            holds token t+1 if that is part of the answer, else −100; ``expert_nll`` ``[sequences, positions,
            experts]`` and ``informative`` ``[sequences, positions]``, zero and False elsewhere; and for each sequence
            its ``row`` in the source (0 if unknown), its place ``answer`` among the batch's answers of pairs (2k the
            chosen one of pair k, 2k + 1 the rejected one, −1 an example), and ``reference``, the log-probability
            that the router of stage 1 gives to such an answer.
        """
        rows, answers, pairs = [], [], 0
        for item in items:
            is_pair = isinstance(item, tuple)
            rows += [self._row(row, is_pair) for row in (item if isinstance(item, tuple) else (item,))]
            answers += [2 * pairs, 2 * pairs + 1] if is_pair else [NO_PAIR]
            pairs += is_pair
        padding = {"labels": IGNORED}
        batch = {
            key: pad_sequence([row[key] for row in rows], batch_first=True, padding_value=padding.get(key, 0))
            for key in rows[0]
        }
        return batch | {
            "row": batch["row"][:, 0],
            "reference": batch["reference"][:, 0],
            "answer": torch.tensor(answers),
        }

    def _row(self, example: Row, is_pair: bool) -> dict[str, Tensor]:
        ids = torch.tensor(example["input_ids"])
        answer = slice(example["prompt_length"] - 1, len(ids) - 1)
        row = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.full_like(ids, IGNORED),
            "expert_nll": torch.zeros(len(ids), max(len(self.experts), 1)),
            "informative": torch.zeros(len(ids), dtype=torch.bool),
            "row": torch.tensor([example.get("row", 0)]),
            "reference": torch.tensor([-sum(example[NLL + ROUTER]) if is_pair else 0.0]),
        }
        row["labels"][answer] = ids[1:][answer]
        if self.experts:
            row["expert_nll"][answer] = torch.tensor([example[NLL + name] for name in self.experts]).T
            choices = torch.tensor([example[TOP + name] for name in self.experts]).T
            row["informative"][answer] = informative(choices)
        return row
