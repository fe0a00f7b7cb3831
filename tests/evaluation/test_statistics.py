import numpy as np
import pytest

from fusionroute.evaluation.statistics import paired_difference, stratified_mean, wilson


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
