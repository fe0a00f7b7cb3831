"""From verdicts to a win rate."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Literal

from fusionroute.evaluation.judge.verdicts import NoScores, Verdict
from fusionroute.evaluation.statistics import Estimate, wilson

Ties = Literal["forbid", "half"]
Outcome = Literal["win", "loss", "tie"] | NoScores
REASONS: dict[NoScores, str] = {"refused": "refused", "unparsable": "unparsable", "off_step": "off the steps of 0.25"}


@dataclass(frozen=True)
class Tally:
    """How often ``a`` was preferred.

    Attributes:
        win_rate: wins / n with Wilson's interval, n being wins, losses and ties; a tie is no win, or half a win
            (``ties="half"``, where the interval is a little wider than it need be). None if n is 0.
        refused, unparsable, off_step: items without a verdict, which are not in n.
        by_order: the outcomes of single verdicts with ``a`` shown first and with ``b`` shown first.
        first_preferred: how often the answer shown first had the higher score, of single verdicts that are no tie; far
            from a half it shows a judge that goes by the order. None if ``a`` was always first or nothing decided.
        answered_as: the names by which the endpoint called the judge.
        prompt_tokens, completion_tokens: as the endpoint counted them; None if it did not.
    """

    win_rate: Estimate | None
    wins: int
    losses: int
    ties: int
    refused: int
    unparsable: int
    off_step: int
    n: int
    by_order: Mapping[str, Mapping[str, int]]
    first_preferred: Estimate | None
    answered_as: tuple[str, ...]
    prompt_tokens: int | None
    completion_tokens: int | None

    def __str__(self) -> str:
        said = f"{self.wins} wins, {self.losses} losses, {self.ties} ties"
        counts: dict[str, int] = {text: getattr(self, name) for name, text in REASONS.items()}
        if left_out := [f"{count} {text}" for text, count in counts.items() if count]:
            said += f"; not counted: {', '.join(left_out)}"
        if self.win_rate is None:
            return f"no verdict can be read ({said})"
        percent = " to ".join(f"{100 * bound:.1f}" for bound in (self.win_rate.low, self.win_rate.high))
        return f"wins {100 * self.win_rate.value:.1f} % of {self.n} (95 % interval {percent}): {said}"


def tally(judged: Sequence[Sequence[Verdict]], ties: Ties) -> Tally:
    """Count items; each has one verdict, or two in both orders, whose scores are summed."""
    verdicts = [verdict for item in judged for verdict in item]
    answered = {verdict.place: verdict for verdict in verdicts if verdict.problem != "refused"}.values()
    outcomes = Counter(outcome(item) for item in judged)
    n = outcomes["win"] + outcomes["loss"] + outcomes["tie"]
    worth = outcomes["win"] + (outcomes["tie"] / 2 if ties == "half" else 0)
    return Tally(
        win_rate=_share(worth, n) if n else None,
        wins=outcomes["win"],
        losses=outcomes["loss"],
        ties=outcomes["tie"],
        refused=outcomes["refused"],
        unparsable=outcomes["unparsable"],
        off_step=outcomes["off_step"],
        n=n,
        by_order={name: _counts(verdicts, a_first) for name, a_first in (("a_first", True), ("b_first", False))},
        first_preferred=_first_preferred(verdicts),
        answered_as=tuple(sorted({verdict.model for verdict in verdicts if verdict.model})),
        prompt_tokens=_total([verdict.prompt_tokens for verdict in answered]),
        completion_tokens=_total([verdict.completion_tokens for verdict in answered]),
    )


def outcome(verdicts: Sequence[Verdict]) -> Outcome:
    """What the verdicts on one item say of ``a``; one that says nothing leaves the item out."""
    problems = {verdict.problem for verdict in verdicts}
    for reason in REASONS:
        if reason in problems:
            return reason
    ahead = sum((verdict.score_a or 0.0) - (verdict.score_b or 0.0) for verdict in verdicts)
    return "win" if ahead > 0 else "loss" if ahead < 0 else "tie"


def _share(worth: float, n: int) -> Estimate:
    """Wilson's interval is one of counts; half a win more lies between those of its neighbours."""
    below, above = wilson(floor(worth), n), wilson(ceil(worth), n)
    return replace(below, value=worth / n, high=above.high, stderr=max(below.stderr, above.stderr))


def _counts(verdicts: Sequence[Verdict], a_first: bool) -> dict[str, int]:
    counted = Counter(outcome([verdict]) for verdict in verdicts if verdict.a_first is a_first)
    names: dict[str, Outcome] = {"wins": "win", "losses": "loss", "ties": "tie"}
    return {name: counted[each] for name, each in names.items()}


def _first_preferred(verdicts: Sequence[Verdict]) -> Estimate | None:
    decided = [verdict for verdict in verdicts if outcome([verdict]) in ("win", "loss")]
    if not decided or all(verdict.a_first for verdict in verdicts):
        return None
    return wilson(sum((outcome([verdict]) == "win") is verdict.a_first for verdict in decided), len(decided))


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None
