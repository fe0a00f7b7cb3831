"""The same meaning with no cache and no batch: slow, obvious, and the judge of all the rest."""

from collections.abc import Sequence as ListLike
from typing import Any

import torch
from torch import Tensor

from fusionroute.engine.method import Method
from fusionroute.engine.runner import Readable, Reading
from fusionroute.engine.sequence import Completion, Sequence


class UncachedRunner:
    """Reads every sequence from its beginning, alone, each time it is asked."""

    def __init__(self, model: Any, name: str):
        self.model, self.name, self.device = model.eval(), name, model.device

    @torch.inference_mode()
    def read(self, sequences: ListLike[Readable], last: int | ListLike[int] = 1) -> Reading:
        lasts = [last] * len(sequences) if isinstance(last, int) else last
        outputs = [self.model(torch.tensor([s.token_ids], device=self.device), use_cache=False) for s in sequences]
        logits = _stacked([output.logits[0] for output in outputs], lasts)
        if getattr(outputs[0], "route_logits", None) is None:
            return Reading(logits)
        return Reading(logits, _stacked([output.route_logits[0] for output in outputs], lasts))

    def rollback(self, sequence: Readable, length: int) -> None:
        """There is nothing to forget."""

    def release(self, sequence: Readable) -> None:
        """There is nothing to free."""


def _stacked(rows: ListLike[Tensor], lasts: ListLike[int]) -> Tensor:
    """The last rows of each, ``[sequences, widest, …]``, with nothing in front of those that have fewer."""
    stacked = rows[0].new_zeros(len(rows), max(lasts), rows[0].shape[-1])
    for at, (row, last) in enumerate(zip(rows, lasts, strict=True)):
        stacked[at, -last:] = row[-last:]
    return stacked


@torch.inference_mode()
def reference(method: Method, sequence: Sequence) -> Completion:
    """Write one answer, one token after the other, by a method built on `UncachedRunner`."""
    while not sequence.is_finished:
        method.step([sequence])
    return sequence.completion()
