"""How sure a measured accuracy is: 95 % intervals. Knows nothing about models or tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

Z = 1.959963984540054  # the normal distribution's 97.5 % point
DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A measured value, its 95 % interval and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: int, n: int) -> Estimate:
    """A proportion with Wilson's score interval, which stays inside [0, 1] and is honest at 0 and at n successes."""
    assert 0 <= successes <= n > 0, f"{successes} successes of {n}"
    share = successes / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    reach = Z / (1 + Z**2 / n) * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Estimate(share, max(0.0, centre - reach), min(1.0, centre + reach), n)


def stratified_mean(groups: Sequence[Sequence[float]], *, seed: int = 0) -> Estimate:
    """The mean of the groups' means (each task counts the same), with a percentile bootstrap inside each group.

    A group whose items are all equal adds no width, so small groups of only right or only wrong answers look surer
    than they are.
    """
    assert groups, "an average needs at least one group"
    assert all(len(group) for group in groups), "every group needs an item"
    generator = np.random.default_rng(seed)
    draws = np.mean([_resampled_means(np.asarray(group, float), generator) for group in groups], axis=0)
    low, high = np.percentile(draws, [2.5, 97.5])
    value = np.mean([np.mean(np.asarray(group, float)) for group in groups])
    return Estimate(float(value), float(low), float(high), sum(len(group) for group in groups))


def paired_difference(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], *, seed: int = 0
) -> Estimate:
    """``first`` minus ``second`` on the same items in the same groups; resampling items keeps each pair together."""
    differences = [
        [float(a) - float(b) for a, b in zip(mine, theirs, strict=True)]
        for mine, theirs in zip(first, second, strict=True)
    ]
    return stratified_mean(differences, seed=seed)


def crossed_mean(groups: Sequence[np.ndarray], *, seed: int = 0) -> Estimate:
    """The mean of the groups' means where every run answered the same items: ``[runs, items]`` per group.

    Runs are resampled together for all groups and items inside each group, so the interval covers both another draw
    of items and another training run. With few runs it is an approximation, and for one run that of the items alone.
    """
    assert groups, "an average needs at least one group"
    runs = {len(group) for group in groups}
    assert len(runs) == 1, "every group needs the same runs"
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, runs.pop(), size=(DRAWS, len(groups[0])))
    draws = np.mean([_crossed_means(np.asarray(group, float), picks, generator) for group in groups], axis=0)
    low, high = np.percentile(draws, [2.5, 97.5])
    value = float(np.mean([np.mean(group) for group in groups]))
    return Estimate(value, float(low), float(high), sum(np.asarray(group).shape[1] for group in groups))


def _crossed_means(values: np.ndarray, runs: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    items = generator.integers(0, values.shape[1], size=(DRAWS, values.shape[1]))
    return np.array([values[run][:, item].mean() for run, item in zip(runs, items, strict=True)])


def _resampled_means(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    picks = generator.integers(0, len(values), size=(DRAWS, len(values)))
    return values[picks].mean(axis=1)
