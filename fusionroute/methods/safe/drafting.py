"""Generate: the drafter alone writes a few tokens ahead."""

from collections.abc import Sequence as ListLike
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from fusionroute.config import GenerationSettings
from fusionroute.engine.choice import choose_tokens
from fusionroute.engine.runner import AnyRunner
from fusionroute.engine.sequence import Sequence
from fusionroute.engine.text_reader import View, is_inside_character
from fusionroute.models.vocabulary import Pieces


@dataclass
class Proposal:
    """One drafted token.

    Attributes:
        logits: what it was chosen from, float32 ``[vocabulary]``.
        ends: whether the answer ends with it.
        probability: of the token by a softmax over them; if it ends the answer, of all ways to end it together.
        largest: probability of any token.
    """

    id: int
    logits: Tensor
    ends: bool
    probability: float = 0.0
    largest: float = 0.0


@dataclass
class Draft:
    """What the drafter has written ahead of one sequence."""

    sequence: Sequence
    view: View
    length: int  # tokens that it is to have
    proposals: list[Proposal] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return [proposal.id for proposal in self.proposals]

    @property
    def settings(self) -> GenerationSettings:
        return self.sequence.settings

    @property
    def seed(self) -> int:
        return self.sequence.seed

    @property
    def position(self) -> int:
        """Of the next token to be drafted; the counter of its random number."""
        return self.sequence.position + len(self.proposals)

    @property
    def output_ids(self) -> list[int]:
        return self.sequence.output_ids + self.ids


class Drafting:
    """Drafts for many sequences, in one batch.

    Args:
        runner: the drafter.
        length: tokens of a draft. One that would end inside a character goes on until the character is complete: what
            half of it reads like in other tokens says nothing.
    """

    def __init__(self, runner: AnyRunner, pieces: Pieces, length: int):
        self.runner = runner
        self.pieces = pieces
        self.length = length
        self.drafted = 0
        self._drafts: dict[Sequence, Draft] = {}

    def view(self, sequence: Sequence) -> View:
        """What the drafter reads of the sequence."""
        if sequence not in self._drafts:
            prompt_ids = sequence.token_ids[: sequence.prompt_length]
            self._drafts[sequence] = Draft(sequence, View(sequence, prompt_ids, sequence.max_length), self.length)
        return self._drafts[sequence].view

    def draft(self, sequences: ListLike[Sequence]) -> list[Draft]:
        """One draft for each. What an earlier one has left behind is its beginning."""
        drafts, new = [self._start(sequence) for sequence in sequences], list[Proposal]()
        while short := [draft for draft in drafts if self._goes_on(draft)]:
            new += self._extend(short)
        if new:
            self._weigh(new)
        return drafts

    def text(self, draft: Draft, lead: bytes) -> tuple[bytes, list[int]]:
        """The answer with its draft, and where in it each drafted token starts (bytes).

        Args:
            lead: what the drafter's template puts before an answer, which is no part of it.
        """
        written = self.pieces.text(draft.sequence.output_ids)
        drafted = [self.pieces.bytes_of[each] or b"" for each in draft.ids]
        text = b"".join([written, *drafted])
        starts = accumulate(map(len, drafted[:-1]), initial=len(written))
        skipped = len(lead) if text.startswith(lead) else 0
        return text[skipped:], [max(0, start - skipped) for start in starts]

    def shorten(self, draft: Draft) -> None:
        """Draft half as much from here on, because not all of it fits a verifier.

        If one token (or one character, which is drafted whole) does not, the answer ends.
        """
        if draft.length == 1:
            draft.sequence.finish("length")
        draft.length = max(1, min(draft.length, len(draft.proposals)) // 2)
        draft.proposals = draft.proposals[: draft.length]

    def drop(self, sequence: Sequence) -> None:
        """Forget what was written ahead."""
        if sequence in self._drafts:
            self._drafts[sequence].proposals = []

    def release(self, sequence: Sequence) -> None:
        if sequence in self._drafts:
            self.runner.release(self._drafts.pop(sequence).view)

    def _start(self, sequence: Sequence) -> Draft:
        view, draft = self.view(sequence), self._drafts[sequence]
        answer_ids = sequence.output_ids + draft.ids
        self.runner.rollback(view, view.common_with(answer_ids))
        view.token_ids[sequence.prompt_length :] = answer_ids
        return draft

    def _goes_on(self, draft: Draft) -> bool:
        has_ended = draft.sequence.is_finished or (draft.proposals and draft.proposals[-1].ends)
        if has_ended or len(draft.view) >= draft.sequence.max_length:
            return False
        return len(draft.proposals) < draft.length or self._is_inside_character(draft)

    def _is_inside_character(self, draft: Draft) -> bool:
        tail = self.pieces.text(draft.view.token_ids[-4:])  # a character has four bytes at most
        return is_inside_character(tail, len(tail))

    def _extend(self, drafts: list[Draft]) -> list[Proposal]:
        """One more token for each, not weighed yet; none for a sequence on which the model has failed."""
        logits = self.runner.read([draft.view for draft in drafts]).logits[:, -1].float()
        new = []
        for row, (draft, token) in enumerate(zip(drafts, choose_tokens(logits, drafts).tolist(), strict=True)):
            if not draft.sequence.is_finished:
                new.append(Proposal(token, logits[row], ends=token in draft.sequence.eos_ids))
                draft.proposals.append(new[-1])
                draft.view.token_ids.append(token)
                self.drafted += 1
        return new

    def _weigh(self, proposals: list[Proposal]) -> None:
        """Their probabilities, at once for all tokens of all drafts: nothing hangs on them while drafting."""
        probabilities = torch.stack([each.logits for each in proposals]).softmax(-1)
        own = torch.tensor([each.id for each in proposals], device=probabilities.device)
        end_ids = torch.tensor(sorted(self.pieces.end_ids), device=probabilities.device)
        said = [
            probabilities.gather(-1, own[:, None]).squeeze(-1),
            probabilities.amax(-1),
            probabilities[:, end_ids].sum(-1),
        ]
        for proposal, (probability, largest, ending) in zip(proposals, torch.stack(said).T.tolist(), strict=True):
            proposal.probability, proposal.largest = ending if proposal.ends else probability, largest
