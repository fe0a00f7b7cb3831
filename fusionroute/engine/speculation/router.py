"""The team's own router drafts: it is a language model, and it reads every token anyway."""

from collections.abc import Sequence as ListLike

import torch
from torch import Tensor

from fusionroute.engine.runner import AnyRunner, Reading
from fusionroute.engine.sequence import Sequence
from fusionroute.engine.speculation.drafter import proposals
from fusionroute.engine.speculation.positions import Positions

LISTEN = 4  # of so many rounds in which it drafts nothing, one in which it is noted what it would have drafted


class RouterDrafter:
    """Asked token by token; what it says at each position is kept, so that only the experts are still to be asked."""

    is_free = False
    is_heard = True  # it reads the newest token also where it drafts nothing

    def __init__(self, router: AnyRunner):
        self.router = router
        self.runners: ListLike[AnyRunner] = ()  # none but the team's
        self.guesses: dict[Sequence, int | None] = {}
        self.passes = 0
        self._silent = 0  # rounds in a row in which it drafted nothing

    def foresee(self, sequences: ListLike[Sequence], rooms: ListLike[int]) -> list[int]:
        return list(rooms)

    def draft(self, positions: Positions, lengths: ListLike[int], sure: float) -> None:
        self.guesses.clear()
        self._silent = 0 if any(lengths) else self._silent + 1
        asked = list(range(len(positions.sequences)))
        readings, places, heard = list[Reading](), [list[int]() for _ in asked], 0
        while asked:
            reading = self.router.read([positions.sequences[at] for at in asked])
            for row, at in enumerate(asked, heard):
                places[at].append(row)
            heard += len(asked)
            readings.append(reading)
            asked = self._extend(positions, asked, reading.logits[:, -1].float(), lengths, sure)
        self.passes = len(readings)
        positions.said = _in_rows(readings, [place for each in places for place in each])

    def forget(self, sequence: Sequence) -> None:
        """Nothing is kept beyond a round."""

    def _extend(
        self, positions: Positions, asked: list[int], logits: Tensor, lengths: ListLike[int], sure: float
    ) -> list[int]:
        """One more token for those of ``asked`` that are to have one; returns which these are.

        Where nothing is to be drafted, what would have been is noted, if anybody learns from it.
        """
        listens = sure > 0 and self._silent % LISTEN == 1
        rows = [
            row
            for row, at in enumerate(asked)
            if len(positions.drafts[at]) < lengths[at] or (listens and not lengths[at])
        ]
        if not rows:
            return []
        wanted = [asked[row] for row in rows]
        mine = logits if len(rows) == len(asked) else logits[rows]
        written = []
        for at, token in zip(wanted, proposals([positions.sequences[at] for at in wanted], mine, sure), strict=True):
            if not lengths[at]:
                self.guesses[positions.sequences[at]] = token
            elif token is not None:
                positions.append(at, token)
                written.append(at)
        return written


def _in_rows(readings: ListLike[Reading], places: list[int]) -> Reading:
    """What was said pass by pass, sequence by sequence: ``[rows, …]``."""
    logits = torch.cat([reading.logits[:, -1] for reading in readings])
    routes = torch.cat([reading.route_logits[:, -1] for reading in readings if reading.route_logits is not None])
    if places != sorted(places):
        order = torch.tensor(places)
        logits, routes = logits[order.to(logits.device)], routes[order.to(routes.device)]
    return Reading(logits, routes)
