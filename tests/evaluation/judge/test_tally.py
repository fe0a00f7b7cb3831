from dataclasses import replace

import pytest

from fusionroute.evaluation.judge.tally import outcome, tally
from fusionroute.evaluation.judge.verdicts import NoScores, Verdict
from fusionroute.evaluation.statistics import wilson


def verdict(a: float | None, b: float | None, a_first: bool = True, problem: NoScores | None = None) -> Verdict:
    return Verdict("x", a_first, a, b, problem, "", "judge-1", 100, 10, "?")


WIN, LOSS, TIE = verdict(8, 7), verdict(7, 8, a_first=False), verdict(5, 5)
ODD, NONSENSE = verdict(None, None, problem="off_step"), verdict(None, None, problem="unparsable")
REFUSED = Verdict("x", True, None, None, "refused", "HTTP 400: too long", "", None, None, "?")


def test_two_orders_are_summed() -> None:
    assert outcome([verdict(8, 7), verdict(6, 7.5, a_first=False)]) == "loss"
    assert outcome([verdict(8, 7), verdict(7, 8, a_first=False)]) == "tie"
    assert outcome([verdict(8, 8), verdict(7.25, 7, a_first=False)]) == "win"
    assert outcome([verdict(8, 1), ODD]) == "off_step"
    assert outcome([ODD, NONSENSE]) == "unparsable"
    assert outcome([WIN, REFUSED]) == "refused"


def test_win_rates_by_hand() -> None:
    found = [WIN] * 5 + [LOSS] * 2 + [TIE] * 3 + [ODD, NONSENSE, NONSENSE]
    judged = [[replace(verdict, item=f"item {at}")] for at, verdict in enumerate(found)]
    forbid, half = tally(judged, "forbid"), tally(judged, "half")
    for each in (forbid, half):
        assert (each.wins, each.losses, each.ties, each.off_step, each.unparsable, each.n) == (5, 2, 3, 1, 2, 10)
    assert forbid.win_rate == wilson(5, 10)
    assert half.win_rate is not None
    assert (half.win_rate.value, half.win_rate.n) == (0.65, 10)
    assert (half.win_rate.low, half.win_rate.high) == (wilson(6, 10).low, wilson(7, 10).high)
    assert forbid.by_order == {
        "a_first": {"wins": 5, "losses": 0, "ties": 3},
        "b_first": {"wins": 0, "losses": 2, "ties": 0},
    }
    assert forbid.first_preferred == wilson(7, 7)  # whoever stands first wins
    assert (forbid.prompt_tokens, forbid.completion_tokens, forbid.answered_as) == (1300, 130, ("judge-1",))
    again = tally([*judged, judged[0]], "forbid")  # an item that stands there twice has one verdict, paid for once
    assert (again.wins, again.n, again.prompt_tokens) == (6, 11, 1300)
    assert str(forbid) == (
        "wins 50.0 % of 10 (95 % interval 23.7 to 76.3): 5 wins, 2 losses, 3 ties; "
        "not counted: 2 unparsable, 1 off the steps of 0.25"
    )


def test_what_the_judge_refuses_is_not_in_n() -> None:
    counted = tally([[WIN], [REFUSED], [REFUSED]], "forbid")
    assert (counted.refused, counted.n, counted.win_rate) == (2, 1, wilson(1, 1))
    assert (counted.prompt_tokens, counted.answered_as) == (100, ("judge-1",))
    assert str(counted).endswith("1 wins, 0 losses, 0 ties; not counted: 2 refused")


def test_without_ties_both_ways_are_the_same() -> None:
    judged = [[WIN]] * 5 + [[LOSS]] * 2
    assert tally(judged, "forbid") == tally(judged, "half")


def test_nothing_decided_is_no_win_rate() -> None:
    empty = tally([[ODD], [NONSENSE]], "forbid")
    assert (empty.win_rate, empty.first_preferred, empty.n) == (None, None, 0)
    assert "no verdict can be read (0 wins, 0 losses, 0 ties; not counted: 1 unparsable, 1 off" in str(empty)


@pytest.mark.parametrize("judged", [[[WIN]], [[WIN], [verdict(3, 4)]]])
def test_a_that_is_always_first_says_nothing_of_order(judged: list[list[Verdict]]) -> None:
    assert tally(judged, "forbid").first_preferred is None
