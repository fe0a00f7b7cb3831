"""Where one round looks: behind every sequence's text, and behind each token that was drafted after it.

Rows of a round are its positions, a sequence's one after another, the sequences in their order.
"""

from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fusionroute.config import GenerationSettings
from fusionroute.engine.choice import Drawing
from fusionroute.engine.runner import AnyRunner, Reading
from fusionroute.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Ahead:
    """A sequence as far as some of its draft, for drawing what follows; valid while the draft stands."""

    sequence: Sequence
    position: int

    @property
    def settings(self) -> GenerationSettings:
        return self.sequence.settings

    @property
    def seed(self) -> int:
        return self.sequence.seed

    @property
    def output_ids(self) -> list[int]:
        begin = self.sequence.prompt_length
        return self.sequence.token_ids[begin : begin + self.position]


class Positions:
    """Drafts stand at the end of their sequences' own token ids, so that every model reads them as text.

    Whoever begins a round with one ends it with `withdraw` and `cut`, whatever happens between.

    Attributes:
        drafts: of each sequence; may be empty.
        accepted: tokens of each draft that stand, known once it is settled.
        written: whose token each row that `settle` returns is.
        is_settled: whether it was found out which tokens stand.
        said: what the router says at each row, ``[rows, …]``, if it has drafted itself.
    """

    def __init__(self, sequences: ListLike[Sequence]):
        self.sequences = list(sequences)
        self.lengths = [len(sequence) for sequence in sequences]  # without their drafts
        self.drafts: list[list[int]] = [[] for _ in sequences]
        self.accepted = [0] * len(self.sequences)
        self.said: Reading | None = None
        self.is_settled = False
        self.written: list[Sequence] = []
        self._stand = False  # nothing does that would have to be taken away

    def append(self, at: int, token: int) -> None:
        """Draft one more token of a sequence."""
        self._stand = True
        self.sequences[at].token_ids.append(token)
        self.drafts[at].append(token)

    def take_back(self, at: int) -> None:
        """Draft nothing for this sequence after all."""
        del self.sequences[at].token_ids[self.lengths[at] :]
        self.drafts[at] = []

    @property
    def has_drafts(self) -> bool:
        return any(self.drafts)

    @cached_property
    def counts(self) -> list[int]:
        """Rows of each sequence, once all are drafted."""
        return [len(draft) + 1 for draft in self.drafts]

    @property
    def drawings(self) -> list[Drawing]:
        """Of each row; where nothing is drafted, the sequences themselves."""
        if not self.has_drafts:
            return list(self.sequences)
        return [
            Ahead(sequence, length - sequence.prompt_length + ahead)
            for sequence, length, count in zip(self.sequences, self.lengths, self.counts, strict=True)
            for ahead in range(count)
        ]

    def settle(self, tokens: ListLike[int]) -> list[int]:
        """The rows whose tokens are written: all drafted ones that were chosen too, and the choice behind them.

        Args:
            tokens: chosen at each row, as if everything drafted before it stood.
        """
        self.is_settled = True
        if not self.has_drafts:
            self.written = self.sequences
            return list(range(len(tokens)))
        rows, first = list[int](), 0
        for at, draft in enumerate(self.drafts):
            count = 0
            while count < len(draft) and tokens[first + count] == draft[count]:
                count += 1
            self.accepted[at] = count
            rows += range(first, first + count + 1)
            self.written += [self.sequences[at]] * (count + 1)
            first += len(draft) + 1
        return rows

    def withdraw(self) -> None:
        """Take the drafts from behind their sequences."""
        if self._stand:
            for sequence, length in zip(self.sequences, self.lengths, strict=True):
                del sequence.token_ids[length:]
        self._stand = False

    def cut(self, runners: ListLike[AnyRunner]) -> None:
        """Let no model keep what was drafted and does not stand; the newest token is for the next round to read."""
        if not self.has_drafts:
            return
        for sequence, draft in zip(self.sequences, self.drafts, strict=True):
            for runner in runners if draft else ():
                runner.rollback(sequence, len(sequence) - 1)


@dataclass
class Part:
    """What one model is asked of a round.

    Attributes:
        readers: indices of the sequences it reads.
        lasts: positions at the end of each that it speaks at.
        rows: the rows that are its own.
        places: the same among the rows that it speaks at.
    """

    readers: list[int]
    lasts: list[int]
    rows: list[int]
    places: list[int]


def part_of(model: int, chosen: ListLike[int], counts: ListLike[int]) -> Part:
    """Of the model that is ``chosen`` for some rows: in each sequence it speaks from the first of them on."""
    part, begin, said = Part([], [], [], []), 0, 0
    for at, count in enumerate(counts):
        mine = [row for row in range(begin, begin + count) if chosen[row] == model]
        if mine:
            last = begin + count - mine[0]
            part.readers.append(at)
            part.lasts.append(last)
            part.rows += mine
            part.places += [said + row - mine[0] for row in mine]
            said += last
        begin += count
    return part


def in_rows(reading: Reading, counts: ListLike[int]) -> Reading:
    """What a model says of the last ``counts[i]`` positions of sequence i, as ``[rows, …]``."""
    routes = reading.route_logits
    return Reading(_in_rows(reading.logits, counts), None if routes is None else _in_rows(routes, counts))


def _in_rows(said: Tensor, counts: ListLike[int]) -> Tensor:
    widest = said.shape[1]
    if min(counts) == widest:
        return said.flatten(0, 1)
    rows = [at * widest + column for at, count in enumerate(counts) for column in range(widest - count, widest)]
    return said.flatten(0, 1)[torch.tensor(rows, device=said.device)]
