"""Who writes ahead: the contract of drafters, and what those that are language models share."""

from collections.abc import Sequence as ListLike
from typing import Protocol

import torch
from torch import Tensor

from fusionroute.engine.choice import choose_tokens
from fusionroute.engine.prefill import Budget
from fusionroute.engine.runner import AnyRunner
from fusionroute.engine.sequence import Sequence
from fusionroute.engine.speculation.positions import Positions


class Drafter(Protocol):
    """Proposes the next tokens of sequences.

    Attributes:
        runners: models that it asks beside the team's own.
        is_free: a draft costs no pass of a model.
        is_heard: asked for drafts of no length it says at next to no cost what it would have begun with, so that one
            knows how good it would be.
        guesses: that, of the last draft; None where it would have stopped before one.
        passes: of a model, that it took for the last draft.
    """

    runners: ListLike[AnyRunner]
    is_free: bool
    is_heard: bool
    guesses: dict[Sequence, int | None]
    passes: int

    def foresee(self, sequences: ListLike[Sequence], rooms: ListLike[int]) -> list[int]:
        """How many tokens it could draft for each, at most as many as there is room for."""
        ...

    def draft(self, positions: Positions, lengths: ListLike[int], sure: float, budget: Budget | None) -> list[int]:
        """Write at most so many tokens behind each sequence; none that ends an answer, for nothing stands behind it.

        Args:
            lengths: none beyond what was foreseen of the same sequences.
            sure: a model stops before a token of its own that it gives less probability than this.
            budget: what models may read of long texts in this round; None = as much as they like.

        Returns:
            ``lengths``, 0 for those of whom it had to read something first.
        """
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence has left or was cut back."""
        ...


def proposals(sequences: ListLike[Sequence], logits: Tensor, sure: float) -> list[int | None]:
    """A model's next token for each, or None where it is not ``sure`` enough, or where the answer ends.

    It is drawn as the sequence draws its own, by the same random number, so that equal distributions choose equally.

    Args:
        logits: ``[sequences, vocabulary]``.
    """
    tokens = choose_tokens(logits, sequences)
    own = _probabilities(logits, tokens).tolist() if sure else [1.0] * len(sequences)
    return [
        token if probability >= sure and not sequence.is_finished and token not in sequence.eos_ids else None
        for sequence, token, probability in zip(sequences, tokens.tolist(), own, strict=True)
    ]


def _probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    own = logits.gather(-1, tokens[:, None]).squeeze(-1)
    return (own - torch.logsumexp(logits, -1)).exp()
