"""Draft, look ahead, learn: what a method does before and after it asks its models."""

from collections.abc import Sequence as ListLike
from dataclasses import dataclass

from fusionroute.engine.runner import AnyRunner
from fusionroute.engine.sequence import Sequence
from fusionroute.engine.speculation.drafter import Drafter
from fusionroute.engine.speculation.model import ModelDrafter
from fusionroute.engine.speculation.ngram import NgramDrafter
from fusionroute.engine.speculation.pace import Luck, Pace
from fusionroute.engine.speculation.positions import Positions
from fusionroute.engine.speculation.router import RouterDrafter
from fusionroute.engine.speculation.settings import MODEL, NGRAM, SpeculationSettings

SURE = 0.7  # probability of its own token below which a drafter that costs passes stops: most of these are rejected


@dataclass
class Round:
    """One round in the making, for what is learnt of it.

    Attributes:
        length: γ of this round.
        asked: tokens that were to be drafted for each sequence.
        is_usual: whether its duration says something of others: no sequence is new, so no prompt is read.
        is_probe: a try of a drafter that is off.
    """

    started: float
    length: int
    asked: list[int]
    is_usual: bool
    is_probe: bool
    drafting: float = 0.0  # seconds


class Speculation:
    """The drafts of one method's sequences.

    The tokens written are those that would be written without: at each position the choice is made from the same
    distribution by the same random number, and a drafted token stands if it is that choice.

    Args:
        drafter: None drafts nothing.
        most: γ, the longest draft.
        pace: None drafts so many tokens in every round.

    Attributes:
        drafted, accepted: tokens.
    """

    def __init__(self, drafter: Drafter | None = None, most: int = 0, pace: Pace | None = None):
        self.drafter = drafter
        self.most = most
        self.pace = pace
        self.drafted = self.accepted = 0
        self._lucks: dict[Sequence, Luck] = {}
        self._round: Round | None = None

    @classmethod
    def of(
        cls,
        settings: SpeculationSettings | None,
        *,
        router: AnyRunner,
        model: AnyRunner | None = None,
        context_length: int = 2**62,
        pace: Pace | None = None,
    ) -> "Speculation":
        """As the settings say; None drafts nothing.

        Args:
            model: the runner of ``settings.model``, which can hold ``context_length`` positions.
            pace: what is known already; None knows nothing yet. Without effect where the settings are not adaptive.
        """
        if settings is None:
            return cls()
        assert (model is not None) == (settings.drafter == MODEL), "a model is loaded where one drafts"
        drafter: Drafter
        if model is not None:
            drafter = ModelDrafter(model, context_length)
        else:
            drafter = NgramDrafter() if settings.drafter == NGRAM else RouterDrafter(router)
        if not settings.adaptive:
            return cls(drafter, settings.max_draft)
        return cls(drafter, settings.max_draft, pace or new_pace(settings))

    @property
    def runners(self) -> ListLike[AnyRunner]:
        """Models that are asked for drafts alone."""
        return () if self.drafter is None else self.drafter.runners

    def begin(self, sequences: ListLike[Sequence]) -> Positions:
        """Draft; until `end` the drafts stand behind their sequences."""
        positions = Positions(sequences)
        if self.drafter is None:
            return positions
        rooms = [min(self.most, sequence.max_length - len(sequence) - 1) for sequence in sequences]
        try:
            if self.pace is None:
                self.drafter.draft(positions, self.drafter.foresee(sequences, rooms), 0.0)
            else:
                self._draft(self.drafter, self.pace, positions, rooms)
        except BaseException:
            positions.withdraw()
            raise
        return positions

    def end(self, positions: Positions, runners: ListLike[AnyRunner]) -> None:
        """The round is over, well or not: nothing of a draft stays that was not written."""
        positions.withdraw()
        positions.cut(runners)
        if positions.is_settled:
            self.drafted += sum(map(len, positions.drafts))
            self.accepted += sum(positions.accepted)
            if self.pace is not None and self._round is not None:
                self._learn(self.pace, positions, self._round)
        self._round = None

    def rollback(self, sequence: Sequence) -> None:
        """The sequence was cut back."""
        if self.drafter is not None:
            self.drafter.forget(sequence)

    def release(self, sequence: Sequence) -> None:
        """The sequence has left."""
        self.rollback(sequence)
        self._lucks.pop(sequence, None)

    def _draft(self, drafter: Drafter, pace: Pace, positions: Positions, rooms: list[int]) -> None:
        """As far as pays by what is known now."""
        started, sequences = pace.clock(), positions.sequences
        is_usual = all(sequence in self._lucks for sequence in sequences)
        lucks = [self._lucks.setdefault(sequence, pace.new_luck()) for sequence in sequences]
        limits = drafter.foresee(sequences, rooms)
        length = pace.length(lucks, limits)
        asked = [min(length, limit) for limit in limits]
        is_probe = not length and not drafter.is_heard and is_usual and any(limits) and pace.is_time_to_probe()
        if is_probe:
            asked[next(at for at, limit in enumerate(limits) if limit)] = 1
        self._round = Round(started, length, asked, is_usual, is_probe)
        drafting = pace.clock()
        drafter.draft(positions, asked, SURE)
        self._round.drafting = pace.clock() - drafting

    def _learn(self, pace: Pace, positions: Positions, this: Round) -> None:
        assert self.drafter is not None
        batch = len(this.asked)
        if this.is_probe:
            pace.observe_probe(this.drafting, has_helped=any(positions.accepted))
        elif this.is_usual:
            pace.observe(batch, this.length, pace.clock() - this.started)
        passes = self.drafter.passes
        if passes and this.is_usual:
            pace.observe_pass(1 if this.is_probe else batch, this.drafting / passes)
        for at, (sequence, asked) in enumerate(zip(positions.sequences, this.asked, strict=True)):
            accepted, luck = positions.accepted[at], self._lucks[sequence]
            if asked:
                pace.accept(luck, accepted, has_failed=accepted < asked)
            elif sequence in self.drafter.guesses and len(sequence) > positions.lengths[at]:
                is_right = self.drafter.guesses[sequence] == sequence.token_ids[positions.lengths[at]]
                pace.accept(luck, int(is_right), has_failed=not is_right)


def new_pace(settings: SpeculationSettings) -> Pace:
    """One that knows nothing yet of how such drafts fare; several methods over the same models may share it."""
    return Pace(settings.max_draft, is_free=settings.drafter == NGRAM)
