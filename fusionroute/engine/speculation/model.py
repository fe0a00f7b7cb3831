"""A small language model of the same vocabulary drafts."""

from collections.abc import Sequence as ListLike

from fusionroute.engine.prefill import Budget, read_a_part
from fusionroute.engine.runner import AnyRunner, Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.engine.speculation.drafter import proposals
from fusionroute.engine.speculation.positions import Positions

PART = 256  # tokens of a text that it may miss and draft all the same; also what it reads of longer ones in a round


class ModelDrafter:
    """It reads what it missed when it is next asked, as every model does; of a long text a part each round, and drafts
    when it has caught up. For a text longer than its context, or with a token that it does not have, it drafts nothing.

    Args:
        vocabulary: token ids that it knows.
        most_ids: of these, those that the team knows too: models of one tokenizer may be padded to different sizes.
    """

    is_free = False
    is_heard = False

    def __init__(
        self, runner: AnyRunner, context_length: int = 2**62, *, vocabulary: int = 2**62, most_ids: int = 2**62
    ):
        self.runner = runner
        self.runners: ListLike[AnyRunner] = (runner,)
        self.context_length = context_length
        self.vocabulary, self.most_ids = vocabulary, most_ids
        self.guesses: dict[Sequence, int | None] = {}
        self.passes = 0
        self._given_up: set[Sequence] = set()  # sequences on which it has failed

    def foresee(self, sequences: ListLike[Sequence], rooms: ListLike[int]) -> list[int]:
        return [
            0 if self._cannot_read(sequence) else max(0, min(room, self.context_length - len(sequence)))
            for sequence, room in zip(sequences, rooms, strict=True)
        ]

    def draft(self, positions: Positions, lengths: ListLike[int], sure: float, budget: Budget | None) -> list[int]:
        self.passes = 0
        lengths = self._caught_up(positions.sequences, lengths, budget)
        asked = [at for at, length in enumerate(lengths) if length]
        while asked:
            self.passes += 1
            sequences = [positions.sequences[at] for at in asked]
            logits = self.runner.read(sequences).logits[:, -1, : self.most_ids].float()
            for at, token in zip(asked, proposals(sequences, logits, sure), strict=True):
                if positions.sequences[at].is_finished:
                    self._give_up(positions, at)
                elif token is not None:
                    positions.append(at, token)
            asked = [at for at in asked if len(positions.drafts[at]) == self.passes < lengths[at]]
        return lengths

    def forget(self, sequence: Sequence) -> None:
        self._given_up.discard(sequence)

    def _cannot_read(self, sequence: Sequence) -> bool:
        if sequence in self._given_up:
            return True
        return self.vocabulary < self.most_ids and max(sequence.token_ids) >= self.vocabulary

    def _caught_up(self, sequences: ListLike[Sequence], lengths: ListLike[int], budget: Budget | None) -> list[int]:
        """``lengths``, 0 where it reads a part of a long text instead, so that nobody waits for the whole."""
        if budget is None or (budget.is_alone and len(sequences) == 1):  # there is nobody else to delay
            budget = Budget(PART)
        ready = list(lengths)
        for at, sequence in enumerate(sequences):
            if ready[at] and isinstance(self.runner, Runner) and self.runner.missing(sequence) > PART:
                ready[at] = 0
                read_a_part([(self.runner, sequence)], budget)
        return ready

    def _give_up(self, positions: Positions, at: int) -> None:
        """It has failed on this sequence. A draft is but a guess: the answer goes on without."""
        positions.take_back(at)
        positions.sequences[at].rollback(positions.lengths[at])
        self._given_up.add(positions.sequences[at])
