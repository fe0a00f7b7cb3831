"""Draft, look ahead, learn: what a method does before and after it asks its models."""

from collections.abc import Sequence as ListLike
from dataclasses import dataclass

from fusionroute.engine.prefill import Budget
from fusionroute.engine.prompt_scoring import MAX_LOGITS
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
LISTEN, SELDOM = 4, 12  # in one of so many rounds without drafts it is noted what they would have been; where few fit


@dataclass
class Round:
    """One round in the making, for what is learnt of it.

    Attributes:
        length: γ of this round.
        is_usual: whether its duration says something of others: no sequence is new, so no prompt is read.
        is_probe: a try of a drafter that is off.
        is_heard: nothing is drafted, but the drafter says what it would have begun with.
        tried: tokens that were to be drafted for each sequence; none where the drafter was not asked.
        drafting: seconds.
    """

    started: float
    length: int
    is_usual: bool
    is_probe: bool = False
    is_heard: bool = False
    tried: ListLike[int] = ()
    drafting: float = 0.0


class Speculation:
    """The drafts of one method's sequences.

    The tokens written are those that would be written without: at each position the choice is made from the same
    distribution by the same random number, and a drafted token stands if it is that choice.

    Args:
        drafter: None drafts nothing.
        most: γ, the longest draft.
        pace: None drafts so many tokens in every round.
        most_rows: positions of all sequences that one round looks at.

    Attributes:
        drafted, kept: tokens that were proposed, and how many of them stand in answers.
    """

    def __init__(self, drafter: Drafter | None = None, most: int = 0, pace: Pace | None = None, most_rows: int = 2**62):
        self.drafter = drafter
        self.most = most
        self.pace = pace
        self.most_rows = most_rows
        self.drafted = self.kept = 0
        self._lucks: dict[Sequence, Luck] = {}
        self._misled: set[Sequence] = set()  # sequences whose drafts a model has failed behind
        self._silent = 0  # rounds in which the drafter was off
        self._round: Round | None = None

    @classmethod
    def of(
        cls,
        settings: SpeculationSettings | None,
        *,
        router: AnyRunner,
        vocabulary: int,
        model: ModelDrafter | None = None,
        pace: Pace | None = None,
    ) -> "Speculation":
        """As the settings say; None drafts nothing.

        Args:
            vocabulary: its size; what models say of a round's positions is bounded by that.
            model: who drafts where the settings let a model do so.
            pace: what is known already; None knows nothing yet. Without effect where the settings are not adaptive.
        """
        if settings is None:
            return cls()
        assert (model is not None) == (settings.drafter == MODEL), "a model is loaded where one drafts"
        drafter: Drafter
        if model is not None:
            drafter = model
        else:
            drafter = NgramDrafter() if settings.drafter == NGRAM else RouterDrafter(router)
        paced = (pace or new_pace(settings)) if settings.adaptive else None
        return cls(drafter, settings.max_draft, paced, MAX_LOGITS // vocabulary)

    @property
    def runners(self) -> ListLike[AnyRunner]:
        """Models that are asked for drafts alone."""
        return () if self.drafter is None else self.drafter.runners

    def begin(self, positions: Positions, budget: Budget | None = None) -> None:
        """Draft: until `end`, which has to be called whatever happens, drafts stand behind the sequences.

        Args:
            budget: see `Drafter.draft`.
        """
        if self.drafter is None:
            return
        rooms = self._rooms(positions.sequences)
        if self.pace is None:
            self.drafter.draft(positions, self.drafter.foresee(positions.sequences, rooms), 0.0, budget)
        else:
            self._round = self._draft(self.drafter, self.pace, positions, rooms, budget)

    def take_back_failures(self, positions: Positions, runners: ListLike[AnyRunner]) -> bool:
        """Whether models failed behind drafts, which have left then, as have the failures and what came of them.

        What stands behind a token that may never be written says nothing of the answer, so the round has to be written
        once more. Nothing is drafted for these sequences any more: a failure of their own will be told then.
        """
        failed = [each for each, draft in zip(positions.sequences, positions.drafts, strict=True) if draft]
        failed = [sequence for sequence in failed if sequence.is_finished]
        if not failed:
            return False
        positions.withdraw()
        for sequence in failed:
            sequence.rollback(len(sequence))
            self._misled.add(sequence)
            for runner in runners:  # a NaN that is cut off would survive in its row
                runner.release(sequence)
        return True

    def end(self, positions: Positions, runners: ListLike[AnyRunner]) -> None:
        """The round is over, well or not: nothing of a draft stays that was not written."""
        positions.withdraw()
        positions.cut(runners)
        this, self._round = self._round, None
        if not positions.is_settled:
            return
        if positions.has_drafts:
            self._count(positions)
        if self.pace is not None and this is not None:
            self._learn(self.pace, positions, this)

    def rollback(self, sequence: Sequence) -> None:
        """The sequence was cut back."""
        if self.drafter is not None:
            self.drafter.forget(sequence)

    def release(self, sequence: Sequence) -> None:
        """The sequence has left."""
        self.rollback(sequence)
        self._lucks.pop(sequence, None)
        self._misled.discard(sequence)

    def _rooms(self, sequences: ListLike[Sequence]) -> list[int]:
        """Tokens that could be drafted for each: as many as there is room for in its length, and in the memory."""
        most = min(self.most, self.most_rows // len(sequences) - 1)
        return [
            max(0, min(most, each.max_length - len(each) - 1)) if each not in self._misled else 0 for each in sequences
        ]

    def _draft(
        self, drafter: Drafter, pace: Pace, positions: Positions, rooms: list[int], budget: Budget | None
    ) -> Round:
        """As far as pays by what is known now."""
        started, sequences = pace.clock(), positions.sequences
        is_usual = all(sequence in self._lucks for sequence in sequences)
        if not is_usual:
            for sequence in sequences:
                self._lucks.setdefault(sequence, pace.new_luck())
        lucks = [self._lucks[sequence] for sequence in sequences]
        limits = drafter.foresee(sequences, rooms)
        length = pace.length(lucks, limits)
        this = Round(started, length, is_usual)
        if not length:
            this.is_heard = self._is_listening(pace) and drafter.is_heard
            this.is_probe = is_usual and not drafter.is_heard and pace.is_time_to_probe(len(sequences))
            if not (this.is_heard or this.is_probe):
                return this
        asked = [min(length, limit) for limit in limits]
        if this.is_probe and any(limits):
            asked[next(at for at, limit in enumerate(limits) if limit)] = 1
        drafting = pace.clock()
        this.tried = drafter.draft(positions, asked, SURE, budget)
        this.drafting = pace.clock() - drafting
        this.is_usual &= this.tried == asked
        return this

    def _is_listening(self, pace: Pace) -> bool:
        self._silent += 1
        return self._silent % (SELDOM if pace.is_poor else LISTEN) == 1

    def _count(self, positions: Positions) -> None:
        """Behind the end of an answer nothing stands, whatever was accepted."""
        self.drafted += sum(map(len, positions.drafts))
        for sequence, length, accepted in zip(positions.sequences, positions.lengths, positions.accepted, strict=True):
            self.kept += min(accepted, len(sequence) - length)

    def _learn(self, pace: Pace, positions: Positions, this: Round) -> None:
        assert self.drafter is not None
        batch = len(positions.sequences)
        if this.is_probe:
            pace.observe_probe(this.drafting)
        elif this.is_usual:
            pace.observe(batch, this.length, pace.clock() - this.started)
        if not this.tried:
            return
        if self.drafter.passes and this.is_usual:
            pace.observe_pass(1 if this.is_probe else batch, this.drafting / self.drafter.passes)
        for at, (sequence, tried) in enumerate(zip(positions.sequences, this.tried, strict=True)):
            accepted, luck = positions.accepted[at], self._lucks[sequence]
            if tried:
                pace.accept(luck, accepted, has_failed=accepted < tried)
            elif sequence in self.drafter.guesses and len(sequence) > positions.lengths[at]:
                is_right = self.drafter.guesses[sequence] == sequence.token_ids[positions.lengths[at]]
                pace.accept(luck, int(is_right), has_failed=not is_right)


def new_pace(settings: SpeculationSettings) -> Pace:
    """One that knows nothing yet of how such drafts fare; several methods over the same models may share it."""
    return Pace(settings.max_draft, is_free=settings.drafter == NGRAM)
