"""How far drafting pays: tokens that are expected of a round by what was accepted so far, by the seconds it takes.

Nothing of what is written depends on it, so it may look at the clock.
"""

import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as ListLike
from dataclasses import dataclass, field
from statistics import fmean

LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # lengths that are told apart; few, so that each is soon measured
PLAIN_FIRST = 2  # rounds without a draft that have to be measured before one with
RECENT = 9  # rounds of one kind that count
STALE = 400  # rounds after which a measurement is forgotten, and so made again
FIRST = 4  # the longest draft before any was measured
WIDER = 0.1  # of a plain round's time, that a round with drafts is taken to need more before one was measured
GAIN = 1.02  # by which drafting has to be faster
OWN = 0.92  # of what a sequence's own past counts for when a round has gone by
ALL = 0.99  # the same of the past of all
MEAN_COUNTS = 6  # tokens for which a sequence's own past takes the mean of all to stand
PROBING = 0.015  # of the time, spent on trying a drafter again that did not pay
PATIENCE = 16  # a drafter that never pays is tried this many times more rarely still


@dataclass
class Share:
    """Of what was tried lately, how much came true."""

    hits: float
    trials: float

    def add(self, hits: int, trials: int, memory: float) -> None:
        self.hits = self.hits * memory + hits
        self.trials = self.trials * memory + trials

    def given(self, mean: float) -> float:
        return (self.hits + MEAN_COUNTS * mean) / (self.trials + MEAN_COUNTS)

    @property
    def value(self) -> float:
        return self.hits / self.trials


@dataclass
class Luck:
    """How drafts of one sequence, or of all, have fared.

    Attributes:
        first: of first tokens of a draft behind a rejected one; `later`: of tokens behind an accepted one. Drafts that
            copy a text are wrong at once or right for long, so one number for both would say little.
        in_run: whether the last token drafted was accepted.
    """

    first: Share
    later: Share
    in_run: bool = False

    def add(self, accepted: int, has_failed: bool, memory: float) -> None:
        """``accepted`` tokens in a row, and, if so, one that was not."""
        tried = accepted + has_failed
        if not tried:
            return
        behind = tried if self.in_run else tried - 1
        if not self.in_run:
            self.first.add(min(accepted, 1), 1, memory)
        if behind:
            self.later.add(behind - has_failed if self.in_run or accepted else 0, behind, memory**behind)
        self.in_run = not has_failed


@dataclass
class Durations:
    """Seconds of recent rounds of one kind."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    newest: int = 0  # the round that was measured last

    @property
    def mean(self) -> float:
        """The longest left out, and of very few all but the shortest: something else may have had the machine."""
        return fmean(sorted(self.seconds)[: max(1, len(self.seconds) - 1 - (len(self.seconds) == 3))])


class Pace:
    """What drafting has brought and cost; shared by whoever writes with the same models.

    Args:
        most: γ, the longest draft.
        is_free: a draft costs no pass of a model.
        clock: seconds.
    """

    def __init__(self, most: int, *, is_free: bool, clock: Callable[[], float] = time.perf_counter):
        self.lengths = [length for length in LADDER if length < most] + [most]
        self.is_free = is_free
        self.clock = clock
        self.luck = Luck(Share(1.0, 2.0), Share(1.0, 2.0))
        self._durations: dict[tuple[int, int], Durations] = {}  # by size of the batch and length of the drafts
        self._pass: dict[int, float] = {}  # seconds of one pass of the drafter, by size of the batch
        self._rounds = 0
        self._until_probe, self._patience = 0.0, 1.0

    def new_luck(self) -> Luck:
        """Of a sequence that nothing is known of."""
        return Luck(Share(0.0, 0.0), Share(0.0, 0.0))

    def length(self, lucks: ListLike[Luck], limits: ListLike[int]) -> int:
        """How many tokens to draft for everybody who has so many to draft; 0 where that is the fastest."""
        batch, most = len(lucks), max(limits, default=0)
        if not most or not self._is_known(batch, 0):
            return 0
        if sum(map(self._expected, lucks, limits)) <= GAIN * batch:  # not even if drafting took no time
            return 0
        best, best_rate = 0, GAIN * batch / self.seconds(batch, 0)
        for length in self._worth_trying(batch, most):
            tokens = sum(self._expected(luck, min(length, limit)) for luck, limit in zip(lucks, limits, strict=True))
            rate = tokens / self.seconds(batch, length)
            if rate > best_rate:
                best, best_rate = length, rate
        return best

    def is_time_to_probe(self) -> bool:
        """Whether a drafter that is off may be tried again, of which nothing is heard while it is off."""
        return self._until_probe <= 0

    def seconds(self, batch: int, length: int) -> float:
        """That a round takes; of one that was not measured lately, by the nearest that was."""
        size = _size(batch)
        if (size, length) in self._durations:
            return self._durations[size, length].mean
        known = sorted(length for at, length in self._durations if at == size)
        shorter = max(each for each in known if each < length)
        a_pass = 0.0 if self.is_free else self._pass.get(size, self.seconds(batch, 0) / 8)
        taken = self.seconds(batch, shorter) + (length - shorter) * a_pass
        if not shorter:
            taken += WIDER * self.seconds(batch, 0)
        if longer := [each for each in known if each > length]:
            return min(taken, self.seconds(batch, longer[0]))
        return taken

    def observe(self, batch: int, length: int, seconds: float) -> None:
        """A round has taken so long, with drafts of up to ``length``."""
        self._rounds += 1
        durations = self._durations.setdefault((_size(batch), length), Durations())
        durations.seconds.append(seconds)
        durations.newest = self._rounds
        for kind in [kind for kind, each in self._durations.items() if each.newest < self._rounds - STALE]:
            del self._durations[kind]
        if not length:
            self._until_probe -= seconds

    def observe_pass(self, batch: int, seconds: float) -> None:
        """One pass of the drafter has taken so long."""
        size = _size(batch)
        self._pass[size] = min(seconds, 0.8 * self._pass.get(size, seconds) + 0.2 * seconds)

    def observe_probe(self, seconds: float, *, has_helped: bool) -> None:
        """A probe has cost so long; the next one comes when it has become a small part of the time."""
        self._patience = 1.0 if has_helped else min(PATIENCE, 2 * self._patience)
        self._until_probe = self._patience * seconds / PROBING

    def accept(self, luck: Luck, accepted: int, *, has_failed: bool) -> None:
        """A draft of a sequence had so many tokens accepted, and then one that was not if ``has_failed``."""
        self.luck.in_run = luck.in_run
        self.luck.add(accepted, has_failed, ALL)
        luck.add(accepted, has_failed, OWN)

    def _is_known(self, batch: int, length: int) -> bool:
        known = self._durations.get((_size(batch), length))
        return known is not None and len(known.seconds) >= PLAIN_FIRST

    def _worth_trying(self, batch: int, most: int) -> list[int]:
        """Lengths up to ``most``, not far beyond what was tried: what those take is still a guess."""
        tried = max(length for size, length in self._durations if size == _size(batch))
        return [length for length in {*self.lengths, most} if length <= min(most, max(FIRST, 2 * tried))]

    def _expected(self, luck: Luck, length: int) -> float:
        """Tokens that a round writes: those of the draft that are accepted, and the one behind them."""
        if not length:
            return 1.0
        later = luck.later.given(self.luck.later.value)
        first = later if luck.in_run else luck.first.given(self.luck.first.value)
        return 1 + first * ((1 - later**length) / (1 - later) if later < 1 else length)


def _size(batch: int) -> int:
    """Batches of about one size, whose rounds take about as long."""
    return batch.bit_length()
