import numpy as np
import pytest

from fusionroute.evaluation.statistics import (
    crossed_difference,
    crossed_mean,
    holm,
    paired_difference,
    stratified_mean,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),  # at the edge: z² / (n + z²)
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_wilson_by_hand(successes: int, n: int, low: float, high: float) -> None:
    estimate = wilson(successes, n)
    assert (estimate.value, estimate.n) == (successes / n, n)
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_each_group_counts_the_same() -> None:
    """One group of four right answers, one of two wrong ones: the average is a half, not four sixths."""
    estimate = stratified_mean([[True] * 4, [False] * 2])
    assert estimate.value == 0.5
    assert (estimate.low, estimate.high) == (0.5, 0.5)  # nothing to resample
    assert estimate.n == 6


def test_the_bootstrap_agrees_with_the_normal_interval_where_that_is_right() -> None:
    groups = [[True] * 120 + [False] * 80, [True] * 60 + [False] * 140]
    spread = 1.96 * 0.5 * np.sqrt(0.6 * 0.4 / 200 + 0.3 * 0.7 / 200)
    estimate = stratified_mean(groups)
    assert estimate.value == pytest.approx(0.45)
    assert (estimate.low, estimate.high) == (
        pytest.approx(0.45 - spread, abs=0.005),
        pytest.approx(0.45 + spread, abs=0.005),
    )


def test_the_same_seed_gives_the_same_interval() -> None:
    groups = [[True, False, True, True, False]]
    assert stratified_mean(groups, seed=3) == stratified_mean(groups, seed=3)


def test_pairs_stay_together() -> None:
    """Both methods fail on the same hard half: paired, the difference is exactly known; unpaired it would not be."""
    hard = [True] * 20 + [False] * 20
    estimate = paired_difference([hard], [hard])
    assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_a_difference_by_hand() -> None:
    """Right on 3 of 4 against 1 of 4, then 1 of 2 against 2 of 2: (0.5 − 0.5) / 2 = 0."""
    first, second = [[1, 1, 1, 0], [1, 0]], [[1, 0, 0, 0], [1, 1]]
    estimate = paired_difference(first, second)
    assert estimate.value == 0.0
    assert estimate.low < 0 < estimate.high
    assert paired_difference(second, first).value == -estimate.value


def test_different_items_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([[1, 0]], [[1]])


def test_standard_errors_are_those_of_the_textbook() -> None:
    assert wilson(30, 100).stderr == pytest.approx(np.sqrt(0.3 * 0.7 / 100))
    assert stratified_mean([[True] * 30 + [False] * 70]).stderr == pytest.approx(np.sqrt(0.3 * 0.7 / 100), rel=0.03)


def test_runs_that_differ_widen_the_interval() -> None:
    """Two runs, one right on everything and one wrong on everything: the items alone would look perfectly sure."""
    alike, apart = np.array([[1.0] * 50, [1.0] * 50]), np.array([[1.0] * 50, [0.0] * 50])
    assert crossed_mean([alike]).low == crossed_mean([alike]).high == 1.0
    found = crossed_mean([apart])
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    assert found.stderr == pytest.approx(0.5 / np.sqrt(2), rel=0.03)  # of the mean of two coin flips


def test_runs_are_resampled_together_for_all_groups() -> None:
    """A run that is bad at one task and good at the other evens out: its resampling moves both at once."""
    one, other = np.array([[1.0] * 9, [0.0] * 9]), np.array([[0.0] * 9, [1.0] * 9])
    found = crossed_mean([one, other])
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_p_values_by_the_sign_test_of_the_normal_approximation() -> None:
    """20 items better, 10 worse, 70 equal: z = 10 / sqrt(30 − 1) = 1.857, p = 0.063."""
    values = np.array([[1.0] * 20 + [-1.0] * 10 + [0.0] * 70])
    found = crossed_difference([values])
    assert found.value == pytest.approx(0.1)
    assert found.p == pytest.approx(0.066, abs=0.015)
    assert crossed_difference([-values]).p == pytest.approx(found.p, abs=0.01)


def test_no_difference_has_p_one_and_a_clear_one_a_small_p() -> None:
    assert crossed_difference([np.zeros((1, 40))]).p == 1.0
    assert crossed_difference([np.ones((1, 40))]).p < 0.001


def test_a_handful_of_items_proves_nothing() -> None:
    """Five items that all differ one way: of 32 ways to flip signs two are as extreme, p = 1/16."""
    assert crossed_difference([np.ones((1, 1))]).p == 1.0
    assert crossed_difference([np.ones((1, 5))]).p == 1 / 16
    assert crossed_difference([np.ones((1, 5)), np.zeros((1, 50))]).p == 1 / 16


def test_holm_by_hand() -> None:
    """0.01 × 3, then max(0.03, 0.02 × 2), then max(0.04, 0.5 × 1)."""
    assert holm({"b": 0.02, "c": 0.5, "a": 0.01}) == pytest.approx({"b": 0.04, "c": 0.5, "a": 0.03})
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.03, "b": 0.031})["b"] == 0.06  # never below a smaller one's
    assert holm({}) == {}
