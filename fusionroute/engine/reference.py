"""The same meaning with no cache and no batch: slow, obvious, and the judge of all the rest."""

from collections.abc import Sequence as ListLike
from typing import Any

import torch

from fusionroute.engine.method import Method
from fusionroute.engine.runner import Reading
from fusionroute.engine.sequence import Completion, Sequence


class UncachedRunner:
    """Reads every sequence from its beginning, alone, each time it is asked."""

    def __init__(self, model: Any, name: str):
        self.model, self.name, self.device = model.eval(), name, model.device

    @torch.inference_mode()
    def read(self, sequences: ListLike[Sequence], last: int = 1) -> Reading:
        outputs = [self.model(torch.tensor([s.token_ids], device=self.device), use_cache=False) for s in sequences]
        logits = torch.cat([output.logits[:, -last:] for output in outputs])
        if getattr(outputs[0], "route_logits", None) is None:
            return Reading(logits)
        return Reading(logits, torch.cat([output.route_logits[:, -last:] for output in outputs]))

    def rollback(self, sequence: Sequence, length: int) -> None:
        """There is nothing to forget."""

    def release(self, sequence: Sequence) -> None:
        """There is nothing to free."""


@torch.inference_mode()
def reference(method: Method, sequence: Sequence) -> Completion:
    """Write one answer, one token after the other, by a method built on `UncachedRunner`."""
    while not sequence.is_finished:
        method.step([sequence])
    return sequence.completion()
