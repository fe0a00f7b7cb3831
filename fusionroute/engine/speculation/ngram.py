"""Prompt lookup: what followed the last few tokens where they stood before, in the prompt or the answer."""

from collections.abc import Sequence as ListLike

from fusionroute.engine.prefill import Budget
from fusionroute.engine.runner import AnyRunner
from fusionroute.engine.sequence import Sequence
from fusionroute.engine.speculation.positions import Positions

LONGEST, SHORTEST = 4, 2  # tokens that have to be the same


class NgramDrafter:
    """No model is asked. A sequence's index grows with it, so a token costs the same however long the text is."""

    is_free = is_heard = True
    passes = 0

    def __init__(self) -> None:
        self.runners: ListLike[AnyRunner] = ()
        self.guesses: dict[Sequence, int | None] = {}
        self._indices: dict[Sequence, Index] = {}
        self._proposals: list[list[int]] = []

    def foresee(self, sequences: ListLike[Sequence], rooms: ListLike[int]) -> list[int]:
        self._proposals = [self._propose(*each) for each in zip(sequences, rooms, strict=True)]
        return [len(proposal) for proposal in self._proposals]

    def draft(self, positions: Positions, lengths: ListLike[int], sure: float, budget: Budget | None) -> list[int]:
        """What was foreseen of the same sequences, as far as is asked for."""
        self.guesses.clear()
        for at, (proposal, length) in enumerate(zip(self._proposals, lengths, strict=True)):
            for token in proposal[:length]:
                positions.append(at, token)
            if proposal and not length:
                self.guesses[positions.sequences[at]] = proposal[0]
        return list(lengths)

    def forget(self, sequence: Sequence) -> None:
        self._indices.pop(sequence, None)
        self.guesses.pop(sequence, None)

    def _propose(self, sequence: Sequence, room: int) -> list[int]:
        if sequence not in self._indices:
            self._indices[sequence] = Index()
        proposal = self._indices[sequence].continuation(sequence.token_ids, room)
        ends = (at for at, token in enumerate(proposal) if token in sequence.eos_ids)
        return proposal[: next(ends, room)]


class Index:
    """Where each run of a few tokens stood last in a text that grows at its end."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # of a run, the position behind it
        self._known = 0  # positions up to which all runs are indexed: all that something stands behind

    def continuation(self, token_ids: list[int], count: int) -> list[int]:
        """Up to ``count`` tokens that followed the longest run which the text ends with and has had before."""
        self._grow(token_ids)
        for size in range(LONGEST, SHORTEST - 1, -1):
            at = self._after.get(tuple(token_ids[-size:])) if len(token_ids) >= size else None
            if at is not None:
                return _copied(token_ids, at, count)
        return []

    def _grow(self, token_ids: list[int]) -> None:
        for end in range(self._known + 1, len(token_ids)):
            for size in range(SHORTEST, min(LONGEST, end) + 1):
                self._after[tuple(token_ids[end - size : end])] = end
        self._known = max(self._known, len(token_ids) - 1)


def _copied(token_ids: list[int], at: int, count: int) -> list[int]:
    """The tokens from ``at`` on; where they reach the end of the text they go on as if it repeated itself."""
    period = len(token_ids) - at
    return [token_ids[at + ahead % period] for ahead in range(max(0, count))]
