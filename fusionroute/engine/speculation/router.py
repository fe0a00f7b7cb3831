"""The team's own router drafts: it is a language model, and it reads every token anyway."""

from collections.abc import Sequence as ListLike

import torch
from torch import Tensor

from fusionroute.engine.prefill import Budget
from fusionroute.engine.runner import AnyRunner, Reading
from fusionroute.engine.sequence import Sequence
from fusionroute.engine.speculation.drafter import proposals
from fusionroute.engine.speculation.positions import Positions, in_rows


class RouterDrafter:
    """Asked token by token; what it says at each position is kept, so that only the experts are still to be asked."""

    is_free = False
    is_heard = True  # it reads the newest token also where it drafts nothing

    def __init__(self, router: AnyRunner):
        self.router = router
        self.runners: ListLike[AnyRunner] = ()  # none but the team's
        self.guesses: dict[Sequence, int | None] = {}
        self.passes = 0

    def foresee(self, sequences: ListLike[Sequence], rooms: ListLike[int]) -> list[int]:
        return list(rooms)

    def draft(self, positions: Positions, lengths: ListLike[int], sure: float, budget: Budget | None) -> list[int]:
        self.guesses.clear()
        asked = list(range(len(positions.sequences)))
        readings, readers = list[Reading](), list[list[int]]()
        while asked:
            reading = self.router.read([positions.sequences[at] for at in asked])
            readings.append(reading)
            readers.append(asked)
            if not any(lengths):
                self._guess(positions, reading, sure)
                break
            asked = self._extend(positions, asked, reading.logits[:, -1].float(), lengths, sure)
        self.passes = len(readings)
        positions.said = _in_rows(readings, readers)
        return list(lengths)

    def forget(self, sequence: Sequence) -> None:
        self.guesses.pop(sequence, None)

    def _guess(self, positions: Positions, reading: Reading, sure: float) -> None:
        said = proposals(positions.sequences, reading.logits[:, -1].float(), sure)
        self.guesses = dict(zip(positions.sequences, said, strict=True))

    def _extend(
        self, positions: Positions, asked: list[int], logits: Tensor, lengths: ListLike[int], sure: float
    ) -> list[int]:
        """One more token for those of ``asked`` that are to have one; returns which these are."""
        rows = [row for row, at in enumerate(asked) if len(positions.drafts[at]) < lengths[at]]
        if not rows:
            return []
        wanted = [asked[row] for row in rows]
        mine = logits if len(rows) == len(asked) else logits[rows]
        written = []
        for at, token in zip(wanted, proposals([positions.sequences[at] for at in wanted], mine, sure), strict=True):
            if token is not None:
                positions.append(at, token)
                written.append(at)
        return written


def _in_rows(readings: ListLike[Reading], readers: ListLike[list[int]]) -> Reading:
    """What was said pass by pass, each time to fewer ``readers``, sequence by sequence: ``[rows, …]``."""
    if len(readings) == 1:
        return in_rows(readings[0], [1] * len(readers[0]))
    logits = torch.cat([reading.logits[:, -1] for reading in readings])
    routes = torch.cat([reading.route_logits[:, -1] for reading in readings if reading.route_logits is not None])
    order = torch.tensor([at for each in readers for at in each]).argsort(stable=True)
    return Reading(logits[order.to(logits.device)], routes[order.to(routes.device)])
