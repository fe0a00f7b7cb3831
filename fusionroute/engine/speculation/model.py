"""A small language model of the same vocabulary drafts."""

from collections.abc import Sequence as ListLike

from fusionroute.engine.runner import AnyRunner, Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.engine.speculation.drafter import proposals
from fusionroute.engine.speculation.positions import Positions

PART = 256  # tokens of a text that it reads in one round


class ModelDrafter:
    """It reads what it missed when it is next asked, as every model does. For a text longer than its context it drafts
    nothing.
    """

    is_free = False
    is_heard = False

    def __init__(self, runner: AnyRunner, context_length: int = 2**62):
        self.runner = runner
        self.runners: ListLike[AnyRunner] = (runner,)
        self.context_length = context_length
        self.guesses: dict[Sequence, int | None] = {}
        self.passes = 0
        self._given_up: set[Sequence] = set()  # sequences on which it has failed

    def foresee(self, sequences: ListLike[Sequence], rooms: ListLike[int]) -> list[int]:
        return [
            0 if sequence in self._given_up else max(0, min(room, self.context_length - len(sequence)))
            for sequence, room in zip(sequences, rooms, strict=True)
        ]

    def draft(self, positions: Positions, lengths: ListLike[int], sure: float) -> None:
        self.passes = 0
        asked = [at for at, length in enumerate(lengths) if length and not self._catches_up(positions.sequences[at])]
        while asked:
            self.passes += 1
            sequences = [positions.sequences[at] for at in asked]
            logits = self.runner.read(sequences).logits[:, -1].float()
            for at, token in zip(asked, proposals(sequences, logits, sure), strict=True):
                if positions.sequences[at].is_finished:
                    self._give_up(positions, at)
                elif token is not None:
                    positions.append(at, token)
            asked = [at for at in asked if len(positions.drafts[at]) == self.passes < lengths[at]]

    def forget(self, sequence: Sequence) -> None:
        self._given_up.discard(sequence)

    def _catches_up(self, sequence: Sequence) -> bool:
        """Whether it reads a part of a long text instead, so that nobody waits for the whole."""
        if not isinstance(self.runner, Runner) or self.runner.missing(sequence) <= PART:
            return False
        self.runner.read_ahead([sequence], [PART])
        return True

    def _give_up(self, positions: Positions, at: int) -> None:
        """It has failed on this sequence. A draft is but a guess: the answer goes on without."""
        positions.take_back(at)
        positions.sequences[at].rollback(positions.lengths[at])
        self._given_up.add(positions.sequences[at])
