"""From the distributions of one round to one more token per sequence."""

from collections.abc import Iterable
from collections.abc import Sequence as ListLike
from typing import Protocol

import torch
from torch import Tensor

from fusionroute.config import GenerationSettings
from fusionroute.engine.sequence import DECIDED_BY, Likeliest, Sequence, TraceRecord
from fusionroute.ops.penalties import penalise
from fusionroute.ops.sampling import draw, filter_logits, uniform

FUSED = "fused"  # whose candidates are those of the distribution that was written from, where several made it up
Opinion = tuple[str | ListLike[str], Tensor]  # whose it is, of all rows or of each, and logits [rows, vocabulary]
Candidates = tuple[tuple[str, Likeliest], ...]


class Drawing(Protocol):
    """What drawing a token needs to know. A `Sequence` does."""

    @property
    def settings(self) -> GenerationSettings: ...
    @property
    def seed(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def output_ids(self) -> list[int]: ...


def choose_tokens(logits: Tensor, sequences: ListLike[Drawing]) -> Tensor:
    """Greedy or sampled, each sequence by its own settings and its own random numbers.

    Args:
        logits: of the distribution to write from, ``[sequences, vocabulary]``, normalised or not; before penalties,
            which are taken off a copy.

    Returns:
        token ids ``[sequences]``.
    """
    if any(sequence.settings.is_penalised for sequence in sequences):
        logits = _penalised(logits, sequences)
    tokens = logits.argmax(-1)
    for settings, rows in _sampled(sequences).items():
        filtered = filter_logits(logits[rows], settings[0], settings[1], settings[2], settings[3])
        numbers = torch.tensor([uniform(sequences[row].seed, sequences[row].position) for row in rows])
        tokens[rows] = draw(filtered, numbers)
    return tokens


def _penalised(logits: Tensor, sequences: ListLike[Drawing]) -> Tensor:
    settings = [sequence.settings for sequence in sequences]
    return penalise(
        logits,
        [each.output_ids if each.settings.is_penalised else [] for each in sequences],
        [each.presence_penalty for each in settings],
        [each.frequency_penalty for each in settings],
    )


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
    opinions: ListLike[Opinion] | None = None,
) -> None:
    """Append one token to each sequence with the record of who wrote it.

    Args:
        tokens: ``[sequences]``.
        logits: what they were chosen from, ``[sequences, vocabulary]``; log-probabilities are computed if asked for.
        experts: who wrote, for each sequence.
        weights: routing weights, for each sequence.
        decided_by: codes of `ops.agreement.decided_by`, ``[sequences]``; None = the expert.
        opinions: all distributions that took part, for sequences that ask for candidates; None = ``logits`` alone,
            the expert's.
    """
    candidates = _candidates(sequences, [(experts, logits)] if opinions is None else opinions)
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
                candidates=candidates.get(row, ()),
            )
        )


def _candidates(sequences: ListLike[Sequence], opinions: Iterable[Opinion]) -> dict[int, Candidates]:
    """By row, for those that ask. Each opinion is worked out for all of them at once."""
    wanted = {row: count for row, each in enumerate(sequences) if (count := each.settings.candidates) is not None}
    found: dict[int, list[tuple[str, Likeliest]]] = {row: [] for row in wanted}
    for names, logits in opinions if wanted else ():
        said = likeliest(logits[list(wanted)].float().log_softmax(-1), max(wanted.values()))
        for (row, count), best in zip(wanted.items(), said, strict=True):
            found[row].append((names if isinstance(names, str) else names[row], best[:count]))
    return {row: tuple(each) for row, each in found.items()}


def likeliest(log_probabilities: Tensor, count: int) -> list[Likeliest]:
    """The ``count`` likeliest tokens of each row of ``[rows, vocabulary]``, all there are if there are fewer."""
    values, tokens = log_probabilities.topk(min(count, log_probabilities.shape[-1]))
    pairs = zip(tokens.tolist(), values.tolist(), strict=True)
    return [tuple(zip(row_tokens, row_values, strict=True)) for row_tokens, row_values in pairs]


def logprobs(wanted: int | None, logits: Tensor, token: int) -> tuple[float | None, Likeliest]:
    """The token's log-probability and the ``wanted`` likeliest tokens with theirs; of ``[vocabulary]`` logits."""
    if wanted is None:
        return None, ()
    log_probabilities = logits.float().log_softmax(-1)
    return float(log_probabilities[token]), likeliest(log_probabilities[None], wanted)[0]
