"""How far drafting pays: tokens that are expected of a round by what was accepted so far, by the seconds it takes.

Nothing of what is written depends on it, so it may look at the clock.
"""

import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as ListLike
from dataclasses import dataclass, field
from threading import Lock

LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # lengths that are tried; few, so that each is soon measured
PLAIN_FIRST = 2  # rounds without a draft that have to be measured before one with
RECENT = 9  # rounds of one kind that count
STALE, CLEANING = 400, 50  # rounds after which a measurement is forgotten, and so made again; looked at so often
FIRST = 4  # the longest draft before any was measured
GAIN = 1.02  # by which drafting has to be faster
OWN = 0.92  # of what a sequence's own past counts for when a round has gone by
ALL = 0.99  # the same of the past of all
MEAN_COUNTS = 6  # tokens for which the mean of all stands, beside a sequence's own past
UNTRIED, UNTRIED_COUNTS = 0.5, 2  # share of tokens taken to be right before any was tried, and for how many it stands
PROBING = 0.01  # of the time, spent on trying a drafter again that did not pay
POOR = 0.3  # of the first tokens of drafts: where fewer are right, drafting can hardly pay
NEGLIGIBLE = 0.01  # chance of a token below which no further ones are counted on


@dataclass
class Share:
    """Of what was tried lately, how much came true."""

    hits: float
    trials: float

    def add(self, hits: int, trials: int, memory: float) -> None:
        self.hits = self.hits * memory + hits
        self.trials = self.trials * memory + trials

    def given(self, expected: float, counts: float) -> float:
        """With what was expected, which stands for so many trials."""
        return (self.hits + counts * expected) / (self.trials + counts)


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
        if not self.in_run:
            self.first.add(min(accepted, 1), 1, memory)
            tried, accepted = tried - 1, accepted - 1
        if tried:
            self.later.add(accepted, tried, memory**tried)
        self.in_run = not has_failed


@dataclass
class Durations:
    """Seconds of recent rounds of one kind.

    Attributes:
        newest: the round that was measured last.
        mean: the longest left out, and of very few all but the shortest: something else may have had the machine.
    """

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    newest: int = 0
    mean: float = 0.0

    def add(self, seconds: float, at: int) -> None:
        self.seconds.append(seconds)
        self.newest = at
        counted = sorted(self.seconds)[: max(1, len(self.seconds) - 1 - (len(self.seconds) == 3))]
        self.mean = sum(counted) / len(counted)


class Pace:
    """What drafting has brought and cost; shared by whoever writes with the same models, from any thread.

    Args:
        most: γ, the longest draft.
        is_free: a draft costs no pass of a model.
        clock: seconds.
    """

    def __init__(self, most: int, *, is_free: bool, clock: Callable[[], float] = time.perf_counter):
        self.lengths = [length for length in LADDER if length <= most]
        self.is_free = is_free
        self.clock = clock
        self.luck = self.new_luck()
        self._lock = Lock()  # guards all that follows, and the luck
        self._durations: dict[tuple[int, int], Durations] = {}  # by size of the batch and length of the drafts
        self._pass: dict[int, float] = {}  # seconds of one pass of the drafter, by size of the batch
        self._rounds = 0
        self._until_probe = 0.0

    def new_luck(self) -> Luck:
        """Of a sequence that nothing is known of."""
        return Luck(Share(0.0, 0.0), Share(0.0, 0.0))

    def length(self, lucks: ListLike[Luck], limits: ListLike[int]) -> int:
        """How many tokens to draft for everybody who has so many to draft; 0 where that is the fastest."""
        with self._lock:
            batch, size = len(lucks), _size(len(lucks))
            lengths = self._worth_trying(size, max(limits, default=0))
            if not lengths:
                return 0
            tokens = self._expected(lucks, limits, lengths)
            if tokens[-1] <= GAIN * batch:  # not even if drafting took no time
                return 0
            best, best_rate = 0, GAIN * batch / self._seconds(size, 0)
            for length, count in zip(lengths, tokens, strict=True):
                if (rate := count / self._seconds(size, length)) > best_rate:
                    best, best_rate = length, rate
            return best

    @property
    def is_poor(self) -> bool:
        """Whether so few drafts come true that it is enough to look now and then whether that has changed."""
        return self.luck.first.given(UNTRIED, UNTRIED_COUNTS) < POOR

    def is_time_to_probe(self, batch: int) -> bool:
        """Whether a drafter that is off may be tried again, of which nothing is heard while it is off."""
        with self._lock:
            return self._until_probe <= 0 and self._is_known(_size(batch))

    def observe(self, batch: int, length: int, seconds: float) -> None:
        """A round has taken so long, with drafts of up to ``length``."""
        with self._lock:
            self._rounds += 1
            kind = _size(batch), length
            if kind not in self._durations:
                self._durations[kind] = Durations()
            self._durations[kind].add(seconds, self._rounds)
            if self._rounds % CLEANING == 0:
                oldest = self._rounds - STALE
                self._durations = {kind: each for kind, each in self._durations.items() if each.newest >= oldest}
            if not length:
                self._until_probe -= seconds

    def observe_pass(self, batch: int, seconds: float) -> None:
        """One pass of the drafter has taken so long."""
        with self._lock:
            size = _size(batch)
            self._pass[size] = min(seconds, 0.8 * self._pass.get(size, seconds) + 0.2 * seconds)

    def observe_probe(self, seconds: float) -> None:
        """A probe has cost so long; the next one comes when it has become a small part of the time."""
        with self._lock:
            self._until_probe = seconds / PROBING

    def accept(self, luck: Luck, accepted: int, *, has_failed: bool) -> None:
        """A draft of a sequence had so many tokens accepted, and then one that was not if ``has_failed``."""
        with self._lock:
            self.luck.in_run = luck.in_run
            self.luck.add(accepted, has_failed, ALL)
        luck.add(accepted, has_failed, OWN)

    def _is_known(self, size: int) -> bool:
        """Whether rounds without drafts were measured, to which others could be compared."""
        plain = self._durations.get((size, 0))
        return plain is not None and len(plain.seconds) >= PLAIN_FIRST

    def _worth_trying(self, size: int, most: int) -> list[int]:
        """Lengths up to ``most``, not far beyond what was tried: what those take is still a guess."""
        if not most or not self._is_known(size):
            return []
        tried = max(length for at, length in self._durations if at == size)
        return [length for length in self.lengths if length <= min(most, max(FIRST, 2 * tried))]

    def _seconds(self, size: int, length: int) -> float:
        """That a round takes; of one that was not measured lately, by the nearest that was."""
        if (size, length) in self._durations:
            return self._durations[size, length].mean
        plain = self._durations[size, 0].mean
        known = sorted(length for at, length in self._durations if at == size)
        shorter = max(each for each in known if each < length)
        a_pass = 0.0 if self.is_free else self._pass.get(size, plain / 8)
        taken = self._durations[size, shorter].mean + (length - shorter) * a_pass
        longer = [self._durations[size, each].mean for each in known if each > length]
        return min(taken, longer[0]) if longer else taken

    def _expected(self, lucks: ListLike[Luck], limits: ListLike[int], lengths: ListLike[int]) -> list[float]:
        """Tokens that a round writes by length of the drafts: those that are accepted, and the one behind them."""
        first = self.luck.first.given(UNTRIED, UNTRIED_COUNTS)
        later = self.luck.later.given(first, UNTRIED_COUNTS)
        added = [0.0] * len(lengths)  # by those of a draft's tokens that the length before it does not have
        for luck, limit in zip(lucks, limits, strict=True):
            goes_on, drafted = luck.later.given(later, MEAN_COUNTS), 0
            chance = goes_on if luck.in_run else luck.first.given(first, MEAN_COUNTS)
            for at, length in enumerate(lengths):
                if chance < NEGLIGIBLE or drafted >= limit:
                    break
                for _ in range(drafted, min(length, limit)):
                    added[at] += chance
                    chance *= goes_on
                drafted = length
        totals, total = [], float(len(lucks))
        for each in added:
            total += each
            totals.append(total)
        return totals


def _size(batch: int) -> int:
    """Batches of about one size, whose rounds take about as long."""
    return batch.bit_length()
