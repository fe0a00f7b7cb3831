"""Collab (arXiv 2503.21720): per token, every expert proposes, looks ahead by itself, and a scorer picks the best."""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusionroute.engine.choice import append_tokens
from fusionroute.engine.method import GreedyOnly, MakeRunner
from fusionroute.engine.prefill import Asked
from fusionroute.engine.rollout import extend, pass_on_failures, realign, release, shadow_of, unfinished
from fusionroute.engine.runner import AnyRunner, Runner
from fusionroute.engine.scorer import UNSCORED, MeanLogLikelihood, Scorer
from fusionroute.engine.sequence import Sequence, TraceRecord
from fusionroute.errors import SettingsError


@dataclass(frozen=True)
class Proposal:
    """A candidate token of one expert, with its score and the expert's logits ``[vocabulary]``."""

    token: int
    expert: str
    score: float
    logits: Tensor


class Collab(GreedyOnly):
    """The candidate whose continuation scores highest is written; of equals the first expert's likeliest.

    A candidate is scored from its own token on, together with what its expert would write after it. Each has a shadow
    row in every model that reads it, kept from step to step, so a model reads the answer so far once per row. The
    same token proposed by two experts is two candidates. A sequence fails if a model fails on it.

    Args:
        experts: name to causal LM, of one vocabulary.
        scorer: None = the experts themselves by `MeanLogLikelihood`.
        candidates: likeliest tokens that each expert proposes.
        rollout: tokens that an expert writes after each of its candidates, fewer where the answer ends.

    Raises:
        SettingsError, VocabularyError: as `OfExperts`; and for settings that sample, see `GreedyOnly`.
    """

    def __init__(
        self,
        experts: Mapping[str, Any],
        scorer: Scorer | None = None,
        *,
        candidates: int = 1,
        rollout: int = 8,
        make_runner: MakeRunner = Runner,
    ):
        if candidates < 1 or rollout < 0:
            raise SettingsError(
                f"candidates are at least 1 and rollout at least 0; got candidates={candidates}, rollout={rollout}"
            )
        super().__init__(experts, make_runner)
        self.scorer: Scorer = scorer or MeanLogLikelihood(self.experts)
        self.runners = tuple(dict.fromkeys([*self.experts, *self.scorer.runners]))
        self.context_length = min(self.context_length, self.scorer.context_length)
        self.rollout = rollout
        self.rows = candidates
        self._shadows: dict[Sequence, list[Sequence]] = {}

    def asked(self, sequence: Sequence) -> Asked:
        return ()  # what is read are shadows, and their prompts at once

    def step(self, sequences: ListLike[Sequence]) -> None:
        best: dict[Sequence, Proposal] = {}
        for expert in self.experts:
            for sequence, proposal in self._proposals(expert, unfinished(sequences)):
                if sequence not in best or proposal.score > best[sequence].score:
                    best[sequence] = proposal
        for sequence, proposal in best.items():
            if proposal.score == UNSCORED:
                sequence.fail("the scorer could judge no candidate; its context may be too short for them")
            else:
                append_tokens(
                    [sequence], torch.tensor([proposal.token]), proposal.logits[None], experts=[proposal.expert]
                )

    def rollback(self, sequence: Sequence, length: int) -> None:
        for shadow in self._shadows.get(sequence, ()):
            realign(shadow, sequence, self.runners)

    def release(self, sequence: Sequence) -> None:
        release(self._shadows.pop(sequence, []), self.runners)

    def _proposals(self, expert: AnyRunner, sequences: list[Sequence]) -> Iterator[tuple[Sequence, Proposal]]:
        """One expert's candidates for all sequences, scored, the likelier first; a failure becomes the sequence's."""
        logits = dict(zip(sequences, self._read(expert, sequences), strict=True))
        sequences = unfinished(sequences)
        shadows = [shadow for sequence in sequences for shadow in self._shadows[sequence]]
        tokens = [token for sequence in sequences for token in _likeliest(logits[sequence], self.rows)]
        parents = [sequence for sequence in sequences for _ in range(self.rows)]
        for shadow, token in zip(shadows, tokens, strict=True):
            shadow.append(TraceRecord(token, expert.name))
        extend(expert, shadows, self.rollout)
        scores = self.scorer.score(shadows, [len(sequence) for sequence in parents])
        pass_on_failures(shadows, parents)
        for sequence, token, score in zip(parents, tokens, scores, strict=True):
            yield sequence, Proposal(token, expert.name, score, logits[sequence])

    def _read(self, expert: AnyRunner, sequences: list[Sequence]) -> list[Tensor]:
        """What the expert says after each sequence, ``[vocabulary]``, read in the row of its first shadow."""
        for sequence in sequences:
            if sequence not in self._shadows:
                self._shadows[sequence] = [shadow_of(sequence) for _ in range(self.rows)]
            for shadow in self._shadows[sequence]:
                realign(shadow, sequence, self.runners)
        first = [self._shadows[sequence][0] for sequence in sequences]
        logits = list(expert.read(first).logits[:, -1].float()) if first else []
        pass_on_failures(first, sequences)
        return logits


def _likeliest(logits: Tensor, count: int) -> list[int]:
    """Tokens, the likeliest first; of one, the same that greedy decoding takes among equals."""
    return [int(logits.argmax())] if count == 1 else logits.topk(count).indices.tolist()
