"""The contract between the engine and a way of writing together."""

from collections.abc import Callable
from collections.abc import Sequence as ListLike
from typing import Any, Protocol

from fusionroute.engine.runner import AnyRunner
from fusionroute.engine.sequence import Sequence

MakeRunner = Callable[[Any, str], AnyRunner]  # (model, name) to a runner; `Runner` itself is one


class Method(Protocol):
    """One round for all running sequences.

    Attributes:
        runners: every model the method asks; the engine frees and cuts back their caches.
        eos_ids: tokens that end an answer.
        context_length: positions that the smallest model can hold.
    """

    eos_ids: frozenset[int]
    context_length: int

    @property
    def runners(self) -> ListLike[AnyRunner]: ...

    def step(self, sequences: ListLike[Sequence]) -> None:
        """Append at least one token to every sequence, through `choice.append_tokens`."""
        ...
