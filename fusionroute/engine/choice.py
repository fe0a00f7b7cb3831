"""From the distributions of one round to one more token per sequence."""

from collections.abc import Sequence as ListLike
from typing import Protocol

import torch
from torch import Tensor

from fusionroute.config import GenerationSettings
from fusionroute.engine.sequence import DECIDED_BY, Sequence, TraceRecord
from fusionroute.ops.sampling import draw, filter_logits, uniform


class Drawing(Protocol):
    """What drawing a token needs to know. A `Sequence` does."""

    @property
    def settings(self) -> GenerationSettings: ...
    @property
    def seed(self) -> int: ...
    @property
    def position(self) -> int: ...


def choose_tokens(logits: Tensor, sequences: ListLike[Drawing]) -> Tensor:
    """Greedy or sampled, each sequence by its own settings and its own random numbers.

    Args:
        logits: of the distribution to write from, ``[sequences, vocabulary]``, normalised or not.

    Returns:
        token ids ``[sequences]``.
    """
    tokens = logits.argmax(-1)
    for settings, rows in _sampled(sequences).items():
        filtered = filter_logits(logits[rows], settings[0], settings[1], settings[2], settings[3])
        numbers = torch.tensor([uniform(sequences[row].seed, sequences[row].position) for row in rows])
        tokens[rows] = draw(filtered, numbers)
    return tokens


def _sampled(sequences: ListLike[Drawing]) -> dict[tuple, list[int]]:
    """Rows that sample, grouped by equal filters so that each group is one batched operation."""
    groups: dict[tuple, list[int]] = {}
    for row, sequence in enumerate(sequences):
        if not sequence.settings.is_greedy:
            groups.setdefault(_filters(sequence.settings), []).append(row)
    return groups


def _filters(settings: GenerationSettings) -> tuple:
    return settings.temperature, settings.top_k, settings.top_p, settings.min_p


def append_tokens(
    sequences: ListLike[Sequence],
    tokens: Tensor,
    logits: Tensor,
    *,
    experts: ListLike[str],
    weights: ListLike[ListLike[float]] | None = None,
    decided_by: Tensor | None = None,
) -> None:
    """Append one token to each sequence with the record of who wrote it.

    Args:
        tokens: ``[sequences]``.
        logits: what they were chosen from, ``[sequences, vocabulary]``; log-probabilities are computed if asked for.
        experts, weights: name and routing weights for each sequence.
        decided_by: codes of `ops.agreement.decided_by`, ``[sequences]``; None = the expert.
    """
    deciders = decided_by.tolist() if decided_by is not None else [1] * len(sequences)
    for row, (sequence, token) in enumerate(zip(sequences, tokens.tolist(), strict=True)):
        logprob, top = logprobs(sequence.settings.logprobs, logits[row], token)
        sequence.append(
            TraceRecord(
                token_id=token,
                expert=experts[row],
                weights=tuple(weights[row]) if weights is not None else (),
                decided_by=DECIDED_BY[deciders[row]],
                logprob=logprob,
                top_logprobs=top,
            )
        )


def logprobs(wanted: int | None, logits: Tensor, token: int) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """The token's log-probability and the ``wanted`` likeliest tokens with theirs; of ``[vocabulary]`` logits."""
    if wanted is None:
        return None, ()
    log_probabilities = logits.float().log_softmax(-1)
    values, tokens = log_probabilities.topk(min(wanted, len(log_probabilities)))
    return float(log_probabilities[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True))
